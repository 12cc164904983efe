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

void DiskTier::find(std::span<const Key> keys, const Secret& secret, const Take& take) {
  writer_.start();
  std::vector<std::size_t> order;
  order.reserve(keys.size());
  // What waits to be written first: when it leaves the queue the catalog knows it.
  for (std::size_t i = 0; i < keys.size(); ++i) {
    bool waiting = false;
    writer_.queue().find(keys[i], [&](std::span<const std::byte> encoded, std::uint64_t scope) {
      waiting = decode_stored(keys[i], encoded, secret,
                              [&](const EntryParts& parts) { take(i, parts, scope); });
    });
    if (!waiting) order.push_back(i);
  }
  const std::size_t waiting = keys.size() - order.size();
  std::vector<Place> places(keys.size());
  catalog_.locate(keys, places, false);
  std::ranges::sort(order, {},
                    [&](std::size_t i) { return std::pair(places[i].segment, places[i].offset); });
  std::vector<Usage::Hit> found;
  std::vector<Key> missed;
  for (const std::size_t i : order) {
    std::optional<double> cost;
    if (places[i].segment != 0) {
      cost = find_at(keys[i], places[i], secret,
                     [&](const EntryParts& parts, std::uint64_t scope) { take(i, parts, scope); });
    }
    if (cost) {
      found.push_back({.key = keys[i], .segment = places[i].segment, .cost = *cost});
    } else {
      missed.push_back(keys[i]);
    }
  }
  context_.counters.hits += waiting + found.size();
  context_.counters.misses += missed.size();
  context_.usage.add(found, missed);
}

// What the entry cost, if it was taken. `place` becomes where it was.
std::optional<double> DiskTier::find_at(
    const Key& key, Place& place, const Secret& secret,
    const std::function<void(const EntryParts&, std::uint64_t)>& take) {
  RecordHead head;
  const std::span record = record_of(key, place, head);
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
std::span<const std::byte> DiskTier::record_of(const Key& key, Place& place, RecordHead& head) {
  bool corrupt = false;
  std::span<const std::byte> record = read_record(key, place, head, corrupt);
  if (record.empty()) {
    // What the mirror says may be old: the entry has moved, or is gone.
    const std::optional<Place> now = catalog_.look_up(key);
    if (!now) {
      context_.mirror.erase(key, place);
      ++context_.counters.stale;
      return {};
    }
    if (*now != place) {
      place = *now;
      record = read_record(key, place, head, corrupt);
    }
    if (record.empty()) {
      if (corrupt) bad(key, place, false);
      return {};
    }
  }
  if (is_expired(head, ttl_)) {
    ++context_.counters.expired;
    context_.mirror.erase(key, place);
    writer_.report(key, place, false);
    return {};
  }
  return record;
}

std::span<const std::byte> DiskTier::read_record(const Key& key, const Place& place,
                                                 RecordHead& head, bool& corrupt) {
  const SegmentFiles::FilePtr file = context_.files.open(place.segment);
  corrupt = true;
  if (file == nullptr) return {};
  if (place.length > kTrustedLength) {
    struct stat status {};
    if (::fstat(file->descriptor.get(), &status) != 0) return {};
    const auto size = static_cast<std::uint64_t>(status.st_size);
    if (place.offset > size || place.length > size - place.offset) return {};
  }
  const std::span record = scratch(place.length);
  if (!read_at(file->descriptor.get(), place.offset, record)) {
    corrupt = errno == 0;  // the end of the file; else the device refuses
    if (!corrupt) ++context_.counters.errors;
    return {};
  }
  const std::optional<RecordHead> found = check_record(record, key, place, file->mark);
  if (!found) return {};
  head = *found;
  return record;
}

void DiskTier::bad(const Key& key, const Place& place, bool foreign) {
  ++context_.counters.corrupt;
  context_.mirror.erase(key, place);
  writer_.report(key, place, foreign);
}

bool DiskTier::read(const Key& key, std::span<std::byte> out, const Secret& secret) {
  writer_.start();
  Place place;
  catalog_.locate({&key, 1}, {&place, 1}, false);
  bool found = false;
  if (place.segment != 0 && !secret && ttl_ == 0) {
    const SegmentFiles::FilePtr file = context_.files.open(place.segment);
    found = file != nullptr && read_values(*file, key, place, out);
  }
  if (found) {
    ++context_.counters.hits;
    touch(key, 0, 1);
    return true;
  }
  find({&key, 1}, secret, [&](std::size_t, const EntryParts& parts, std::uint64_t) {
    found = copy_values(parts, out);
  });
  return found;
}

bool DiskTier::contains(const Key& key) {
  if (writer_.queue().contains(key)) return true;
  Place place;
  catalog_.locate({&key, 1}, {&place, 1}, false);
  if (place.segment == 0) return false;
  RecordHead head;
  return !record_of(key, place, head).empty();
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
  writer_.start();
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

void DiskTier::refresh() { catalog_.synchronise(true); }

void DiskTier::touch(const Key& key, double cost, double hits) {
  Place place;
  context_.mirror.find({&key, 1}, {&place, 1});
  if (place.segment == 0) return;
  const Usage::Hit hit{.key = key, .segment = place.segment, .cost = cost, .count = hits};
  context_.usage.add({&hit, 1}, {});
}

void DiskTier::export_entries(const std::optional<std::uint64_t>& scope, const Export& take) {
  std::int64_t after = 0;
  for (;;) {
    const std::vector<IndexEntry> entries = catalog_.next_entries(after);
    if (entries.empty()) return;
    for (const IndexEntry& entry : entries) {
      Place place = entry.place;
      RecordHead head;
      const std::span record = record_of(entry.key, place, head);
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
  stats.bytes = context_.directory.allocated();
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
