// The disk tier: a directory shared by processes. The index says what exists, segments hold the
// bytes, a mirror of the index says where, so that a hit is one pread. docs/disk_layout.md has the
// files, docs/design.md the reasons.
//
// What fails after construction is counted and told in stats().state, and the tier goes on: a
// lookup misses, an entry is dropped.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "store/disk/catalog.h"
#include "store/disk/context.h"
#include "store/disk/writer.h"
#include "store/store.h"

namespace tensorkey::internal {

class DiskTier final : public Store {
 public:
  static constexpr std::uint64_t kLeastLimit = std::uint64_t{4} << 20;

  // Throws kUnavailable with the remedy for a directory that is refused, or that can neither be
  // read nor made. REQUIRES: checked options.
  explicit DiskTier(const CacheOptions& options);
  ~DiskTier() override = default;  // writes what was accepted

  void find(std::span<const Key> keys, const Secret& secret, Take take) override;
  void read(std::span<const Key> keys, std::span<std::byte> out, std::span<bool> found,
            const Secret& secret) override;
  bool contains(const Key& key) override;
  void put(std::span<const EntryPtr> entries, std::uint64_t scope, const Secret& secret,
           double patience) override;
  void publish(std::span<const EntryPtr> entries, std::uint64_t scope,
               const Secret& secret) override;
  bool remove(const Key& key) override;
  std::size_t purge(std::uint64_t scope) override;
  void clear() override;
  bool flush(double seconds) override;
  void refresh() override;
  void touch(const Key& key, double cost, double hits) override;
  void export_entries(const std::optional<std::uint64_t>& scope, Export take) override;
  [[nodiscard]] DiskStats stats() override;
  void reset_stats() override { context_.counters.reset(); }

  [[nodiscard]] bool shared() override;
  void lease(std::span<const Key> keys, std::span<std::uint8_t> mine) override;
  void release(std::span<const Key> keys) noexcept override { context_.leases.release(keys); }
  [[nodiscard]] bool distrusted(const Key& key) const noexcept override;
  void distrust(const Key& key) override;

 private:
  // The places of keys, and their positions in the order of these places.
  struct Order {
    std::vector<Place> places;
    std::vector<std::size_t> positions;
  };
  Order in_order(std::span<const Key> keys);
  void find_one(const Key& key, const Secret& secret, Take take);
  bool find_waiting(const Key& key, const Secret& secret,
                    FunctionRef<void(const EntryParts&, std::uint64_t)> take);
  std::optional<double> find_at(const Key& key, Place& place, SegmentFiles::FilePtr& file,
                                const Secret& secret,
                                FunctionRef<void(const EntryParts&, std::uint64_t)> take);
  // A record in memory that is this key's and not expired; empty if there is none. `file` is the
  // one read last.
  std::span<const std::byte> record_of(const Key& key, Place& place, SegmentFiles::FilePtr& file,
                                       RecordHead& head);
  enum class Read : std::uint8_t { kWhole, kGone, kDamaged, kRefused };
  Read read_record(const Key& key, const Place& place, SegmentFiles::FilePtr& file,
                   RecordHead& head, std::span<const std::byte>& record);
  void open(std::uint32_t segment, SegmentFiles::FilePtr& file);
  Batch encode(std::span<const EntryPtr> entries, std::uint64_t scope, const Secret& secret);
  void bad(const Key& key, const Place& place, bool foreign);

  DiskContext context_;
  const std::int64_t ttl_;  // seconds; 0: none
  Catalog catalog_;
  Writer writer_;
};

}  // namespace tensorkey::internal
