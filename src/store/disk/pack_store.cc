#include "store/disk/pack_store.h"

#include <sys/stat.h>

#include <cstring>

#include "store/disk/stored_entry.h"

namespace tensorkey::internal {

PackStore::PackStore(const CacheOptions& options) : pack_(options.pack), ttl_(whole_ttl(options)) {}

std::span<const std::byte> PackStore::record_of(const Key& key, RecordHead& head) {
  const std::optional<Place> place = pack_.find(key);
  if (!place) return {};
  const std::span record = scratch(place->length);
  if (!pack_.read(key, *place, record)) {
    ++corrupt_;
    return {};
  }
  head = *read_record_head(record.first<kRecordHead>());
  if (is_expired(head, ttl_)) {
    ++expired_;
    return {};
  }
  return record;
}

void PackStore::find(std::span<const Key> keys, const Secret& secret, Take take) {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    RecordHead head;
    const std::span record = record_of(keys[i], head);
    bool found = false;
    if (!record.empty()) {
      found = decode_stored(keys[i], record.subspan(kRecordHead), secret,
                            [&](const EntryParts& parts) { take(i, parts, head.scope); });
      corrupt_ += found ? 0 : 1;
    }
    ++(found ? hits_ : misses_);
  }
}

void PackStore::read(std::span<const Key> keys, std::span<std::byte> out, std::span<bool> found,
                     const Secret& secret) {
  const std::size_t bytes = out.size() / keys.size();
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (found[i]) continue;
    find(keys.subspan(i, 1), secret, [&](std::size_t, const EntryParts& parts, std::uint64_t) {
      found[i] = copy_values(parts, out.subspan(i * bytes, bytes));
    });
  }
}

bool PackStore::contains(const Key& key) {
  RecordHead head;
  return !record_of(key, head).empty();
}

void PackStore::export_entries(const std::optional<std::uint64_t>& scope, Export take) {
  for (const PackRow& row : pack_.rows()) {
    RecordHead head;
    const std::span record = record_of(row.key, head);
    if (record.empty() || (scope && head.scope != *scope)) continue;
    take(row.key, head.scope, head.stored, record.subspan(kRecordHead));
  }
}

DiskStats PackStore::stats() {
  DiskStats stats;
  stats.state = "read-only";
  struct stat status {};
  if (::stat(pack_.path().c_str(), &status) == 0) {
    stats.bytes = stats.bound = static_cast<std::uint64_t>(status.st_size);
  }
  stats.entries = pack_.entries();
  stats.index_bytes = stats.index_bound = pack_.entries() * sizeof(PackRow);
  stats.hits = hits_;
  stats.misses = misses_;
  stats.corrupt = corrupt_;
  stats.expired = expired_;
  return stats;
}

}  // namespace tensorkey::internal
