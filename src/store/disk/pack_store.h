// A pack as a tier: read, verified, never written.
#pragma once

#include <atomic>

#include "store/disk/pack.h"
#include "store/store.h"

namespace tensorkey::internal {

class PackStore final : public Store {
 public:
  // Throws as PackReader.
  explicit PackStore(const CacheOptions& options);

  void find(std::span<const Key> keys, const Secret& secret, Take take) override;
  void read(std::span<const Key> keys, std::span<std::byte> out, std::span<bool> found,
            const Secret& secret) override;
  [[nodiscard]] bool contains(const Key& key) override;
  void export_entries(const std::optional<std::uint64_t>& scope, Export take) override;
  [[nodiscard]] DiskStats stats() override;
  void reset_stats() override { hits_ = misses_ = corrupt_ = expired_ = 0; }

 private:
  // The record of a key, valid until this thread reads again; empty if there is none.
  std::span<const std::byte> record_of(const Key& key, RecordHead& head);

  const PackReader pack_;
  const std::int64_t ttl_;  // seconds; 0: none
  std::atomic<std::uint64_t> hits_{0}, misses_{0}, corrupt_{0}, expired_{0};
};

}  // namespace tensorkey::internal
