#include "store/disk/disk.h"

#include <tensorkey/error.h>

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "store/disk/stored_entry.h"

namespace tensorkey::internal {
namespace {

// Above this a record's length is held against its file's before memory is made for it.
constexpr std::uint64_t kTrustedLength = std::uint64_t{1} << 20;

}  // namespace

DiskTier::DiskTier(const CacheOptions& options)
    : context_(options), ttl_(whole_ttl(options)), catalog_(context_), writer_(context_, catalog_) {
  writer_.start();
}

// --- Lookups

DiskTier::Order DiskTier::in_order(std::span<const Key> keys) {
  Order order{.places = std::vector<Place>(keys.size()),
              .positions = std::vector<std::size_t>(keys.size())};
  catalog_.locate(keys, order.places);
  std::iota(order.positions.begin(), order.positions.end(), std::size_t{0});
  std::ranges::sort(order.positions, {}, [&](std::size_t i) {
    return std::pair(order.places[i].segment, order.places[i].offset);
  });
  return order;
}

void DiskTier::find(std::span<const Key> keys, const Secret& secret, Take take) {
  writer_.start();
  if (keys.size() == 1) return find_one(keys[0], secret, take);
  // What waits to be written first: when it leaves the queue the catalog knows it.
  std::vector<bool> waiting(keys.size());
  for (std::size_t i = 0; i < keys.size() && !writer_.queue().empty(); ++i) {
    waiting[i] = find_waiting(keys[i], secret, [&](const EntryParts& parts, std::uint64_t scope) {
      take(i, parts, scope);
    });
  }
  auto [places, order] = in_order(keys);
  std::vector<Usage::Hit> found;
  found.reserve(keys.size());
  std::vector<Key> missed;
  SegmentFiles::FilePtr file;
  for (const std::size_t i : order) {
    if (waiting[i]) continue;
    std::optional<double> cost;
    if (places[i].segment != 0) {
      cost = find_at(keys[i], places[i], file, secret,
                     [&](const EntryParts& parts, std::uint64_t scope) { take(i, parts, scope); });
    }
    if (cost) {
      found.push_back({.key = keys[i], .segment = places[i].segment, .cost = *cost});
    } else {
      missed.push_back(keys[i]);
    }
  }
  context_.counters.hits += keys.size() - missed.size();
  context_.counters.misses += missed.size();
  context_.usage.add(found, missed);
}

// The same without a batch's lists.
void DiskTier::find_one(const Key& key, const Secret& secret, Take take) {
  const auto taken = [&](const EntryParts& parts, std::uint64_t scope) { take(0, parts, scope); };
  if (find_waiting(key, secret, taken)) {
    ++context_.counters.hits;
    return;
  }
  Place place;
  SegmentFiles::FilePtr file;
  catalog_.locate({&key, 1}, {&place, 1});
  std::optional<double> cost;
  if (place.segment != 0) cost = find_at(key, place, file, secret, taken);
  if (!cost) {
    ++context_.counters.misses;
    context_.usage.add({}, {&key, 1});
    return;
  }
  ++context_.counters.hits;
  const Usage::Hit hit{.key = key, .segment = place.segment, .cost = *cost};
  context_.usage.add({&hit, 1}, {});
}

bool DiskTier::find_waiting(const Key& key, const Secret& secret,
                            FunctionRef<void(const EntryParts&, std::uint64_t)> take) {
  bool found = false;
  writer_.queue().find(key, [&](std::span<const std::byte> encoded, std::uint64_t scope) {
    found =
        decode_stored(key, encoded, secret, [&](const EntryParts& parts) { take(parts, scope); });
  });
  return found;
}

// What the entry cost, if it was taken. `place` becomes where it was.
std::optional<double> DiskTier::find_at(const Key& key, Place& place, SegmentFiles::FilePtr& file,
                                        const Secret& secret,
                                        FunctionRef<void(const EntryParts&, std::uint64_t)> take) {
  RecordHead head;
  const std::span record = record_of(key, place, file, head);
  if (record.empty()) return std::nullopt;
  std::optional<double> cost;
  decode_stored(key, record.subspan(kRecordHead), secret, [&](const EntryParts& parts) {
    take(parts, head.scope);
    cost = parts.seconds;
  });
  // Under another secret than this one, or none, it may be right for somebody else.
  if (!cost) bad(key, place, secret || is_keyed(record.subspan(kRecordHead)));
  return cost;
}

// The bytes are valid until this thread reads again. `place` becomes where it was found.
std::span<const std::byte> DiskTier::record_of(const Key& key, Place& place,
                                               SegmentFiles::FilePtr& file, RecordHead& head) {
  std::span<const std::byte> record;
  Read read = read_record(key, place, file, head, record);
  if (read != Read::kWhole) {
    // What the mirror says may be old: the entry has moved, or is gone.
    const std::optional<Place> now = catalog_.look_up(key);
    if (!now) {
      // Who could not ask the index does not know that the entry is gone.
      if (!catalog_.health().text().empty()) {
        ++context_.counters.errors;
        return {};
      }
      context_.mirror.erase(key, place);
      ++context_.counters.stale;
      return {};
    }
    if (*now != place) {
      place = *now;
      read = read_record(key, place, file, head, record);
    }
  }
  switch (read) {
    case Read::kWhole: break;
    case Read::kGone:  // the file, or its end
      ++context_.counters.stale;
      writer_.report(key, place, false);
      context_.mirror.erase(key, place);
      return {};
    case Read::kDamaged: bad(key, place, false); return {};
    case Read::kRefused: ++context_.counters.errors; return {};
  }
  if (is_expired(head, ttl_)) {
    ++context_.counters.expired;
    writer_.report(key, place, false);
    context_.mirror.erase(key, place);
    return {};
  }
  return record;
}

// Of records in the order of their places each file is asked for once.
void DiskTier::open(std::uint32_t segment, SegmentFiles::FilePtr& file) {
  if (file == nullptr || file->id != segment) file = context_.files.open(segment);
}

DiskTier::Read DiskTier::read_record(const Key& key, const Place& place,
                                     SegmentFiles::FilePtr& file, RecordHead& head,
                                     std::span<const std::byte>& record) {
  open(place.segment, file);
  if (file == nullptr) return errno == 0 ? Read::kGone : Read::kRefused;
  if (place.length > kTrustedLength) {
    struct stat status {};
    if (::fstat(file->descriptor.get(), &status) != 0) return Read::kRefused;
    const auto size = static_cast<std::uint64_t>(status.st_size);
    if (place.offset > size || place.length > size - place.offset) return Read::kGone;
  }
  std::span<std::byte> memory;
  try {
    memory = scratch(place.length);
  } catch (const std::exception&) {  // a length that somebody made up, or no memory
    return Read::kRefused;
  }
  if (!read_at(file->descriptor.get(), place.offset, memory)) {
    return errno == 0 ? Read::kGone : Read::kRefused;
  }
  const std::optional<RecordHead> found = check_record(memory, key, place, file->mark);
  if (!found) return Read::kDamaged;
  head = *found;
  record = memory;
  return Read::kWhole;
}

void DiskTier::bad(const Key& key, const Place& place, bool foreign) {
  ++context_.counters.corrupt;
  writer_.report(key, place, foreign);
  context_.mirror.erase(key, place);
}

void DiskTier::read(std::span<const Key> keys, std::span<std::byte> out, std::span<bool> found,
                    const Secret& secret) {
  writer_.start();
  const std::size_t bytes = out.size() / keys.size();
  const auto row = [&](std::size_t i) { return out.subspan(i * bytes, bytes); };
  auto [places, order] = in_order(keys);
  std::vector<Usage::Hit> hits;
  hits.reserve(order.size());
  SegmentFiles::FilePtr file;
  for (const std::size_t i : order) {
    if (found[i]) continue;
    double cost = 0;
    if (places[i].segment != 0 && !secret && ttl_ == 0) {
      open(places[i].segment, file);
      found[i] = file != nullptr && read_values(*file, keys[i], places[i], row(i), cost);
    }
    if (found[i]) {
      hits.push_back({.key = keys[i], .segment = places[i].segment, .cost = cost});
      continue;
    }
    // The long way: it waits to be written, is in another form, or is not there.
    find(keys.subspan(i, 1), secret, [&](std::size_t, const EntryParts& parts, std::uint64_t) {
      found[i] = copy_values(parts, row(i));
    });
  }
  context_.counters.hits += hits.size();
  context_.usage.add(hits, {});
}

bool DiskTier::contains(const Key& key) {
  if (writer_.queue().contains(key)) return true;
  Place place;
  catalog_.locate({&key, 1}, {&place, 1});
  if (place.segment == 0) return false;
  SegmentFiles::FilePtr file;
  RecordHead head;
  return !record_of(key, place, file, head).empty();
}

// --- Changes

Batch DiskTier::encode(std::span<const EntryPtr> entries, std::uint64_t scope,
                       const Secret& secret) {
  Batch batch;
  for (const EntryPtr& entry : entries) {
    if (!writer_.wants(entry->key())) continue;
    try {
      batch.add(*entry, scope, secret);
    } catch (const Error&) {  // what the format cannot hold, such as dates
      ++context_.counters.dropped;
    }
  }
  return batch;
}

void DiskTier::put(std::span<const EntryPtr> entries, std::uint64_t scope, const Secret& secret,
                   double patience) {
  if (context_.directory.read_only()) return;
  const Batch batch = encode(entries, scope, secret);
  if (batch.items.empty()) return;
  // Nobody would make room in the queue.
  if (!writer_.start()) patience = 0;
  context_.counters.dropped += writer_.queue().push(batch, patience);
}

void DiskTier::publish(std::span<const EntryPtr> entries, std::uint64_t scope,
                       const Secret& secret) {
  if (context_.directory.read_only()) return;
  Batch batch = encode(entries, scope, secret);
  if (!batch.items.empty()) writer_.write(batch);
}

bool DiskTier::remove(const Key& key) { return writer_.remove(key); }

std::size_t DiskTier::purge(std::uint64_t scope) { return writer_.purge(scope); }

void DiskTier::clear() { writer_.clear(); }

bool DiskTier::flush(double seconds) {
  if (context_.directory.read_only()) return true;
  writer_.start();
  if (!writer_.queue().drained(seconds)) return false;
  writer_.upkeep();
  return true;
}

void DiskTier::refresh() { catalog_.refresh(); }

void DiskTier::touch(const Key& key, double cost, double hits) {
  Place place;
  context_.mirror.find({&key, 1}, {&place, 1});
  if (place.segment == 0) return;
  const Usage::Hit hit{.key = key, .segment = place.segment, .cost = cost, .count = hits};
  context_.usage.add({&hit, 1}, {});
}

void DiskTier::export_entries(const std::optional<std::uint64_t>& scope, Export take) {
  std::int64_t after = 0;
  SegmentFiles::FilePtr file;
  for (;;) {
    const std::vector<IndexEntry> entries = catalog_.next_entries(after);
    if (entries.empty()) return;
    for (const IndexEntry& entry : entries) {
      Place place = entry.place;
      RecordHead head;
      const std::span record = record_of(entry.key, place, file, head);
      if (record.empty() || (scope && head.scope != *scope)) continue;
      take(entry.key, head.scope, head.stored, record.subspan(kRecordHead));
    }
  }
}

DiskStats DiskTier::stats() {
  DiskStats stats;
  context_.counters.add_to(stats);
  stats.state = context_.directory.read_only() ? "read-only" : "";
  for (const Health* const health : {&catalog_.health(), &writer_.health()}) {
    if (stats.state.empty()) stats.state = health->text();
  }
  stats.bound = writer_.limit();
  try {
    stats.bytes = context_.directory.allocated();
  } catch (const Error& error) {
    if (stats.state.empty()) stats.state = error.what();
  }
  stats.entries = catalog_.entries();
  stats.index_bound = context_.mirror.limit();
  stats.index_bytes = context_.mirror.bytes();
  return stats;
}

// --- Leases

bool DiskTier::shared() {
  return !context_.directory.read_only() && catalog_.health().usable() &&
         writer_.health().usable() && !context_.leases.alone();
}

void DiskTier::lease(std::span<const Key> keys, std::span<std::uint8_t> mine) {
  context_.leases.acquire(keys, mine);
  context_.counters.lease_waits += static_cast<std::uint64_t>(std::ranges::count(mine, 0));
}

bool DiskTier::distrusted(const Key& key) const noexcept { return context_.leases.distrusted(key); }

void DiskTier::distrust(const Key& key) {
  ++context_.counters.lease_timeouts;
  context_.leases.distrust(key);
}

}  // namespace tensorkey::internal
