// The tiers of a cache, the fastest first: memory, then the stores below it. A lookup reads through
// and fills memory; what is inserted goes to memory at once and to the store behind. Each tier may
// be missing. Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <tensorkey/cache.h>

#include "store/memory.h"
#include "store/store.h"

namespace tensorkey::internal {

class Tiers {
 public:
  // Throws as ActivationCache's constructor does. REQUIRES: checked options.
  explicit Tiers(const CacheOptions& options);

  MemoryTier memory;

  // The secret for entries that leave the process: the caller's, or the cache's.
  [[nodiscard]] Secret secret(const Secret& own) const noexcept;

  // out[i] = the entry of keys[i], or null. Hits are counted, misses are not.
  void find(std::span<const Key> keys, std::span<EntryPtr> out, const Secret& secret);
  // The same below memory, for those where out[i] is null.
  void find_below(std::span<const Key> keys, std::span<EntryPtr> out, const Secret& secret);
  void read(std::span<const Key> keys, std::span<std::byte> out, std::span<bool> found);
  [[nodiscard]] bool contains(const Key& key);

  // Never null where there is a store; else as MemoryTier::insert.
  EntryPtr keep(const EntryParts& parts, std::uint64_t scope);
  bool remove(const Key& key);
  std::size_t purge(std::uint64_t scope);
  void clear();
  bool pin(const Key& key, bool pinned);

  // The store that entries are written to, and that leases are asked of; null: none.
  [[nodiscard]] Store* store() const noexcept { return store_; }
  [[nodiscard]] std::span<const std::unique_ptr<Store>> stores() const noexcept { return stores_; }
  [[nodiscard]] CacheStats stats() const;
  void reset_stats();

  // One computation over processes: who computes the keys that this thread leads and nobody has
  // stored. Does not wait.
  enum class Claim : std::uint8_t {
    kFound,    // `found` is set: it was stored meanwhile
    kCompute,  // here, without a lease: there is nobody else, or he took too long before
    kLeased,   // here; release() when it is published or given up
    kOthers,   // another process is at it: claim again later
  };
  void claim(std::span<const Key> keys, const Secret& secret, std::span<EntryPtr> found,
             std::span<Claim> claims);
  // How long to wait for what another process computes and would take so long here, if known.
  [[nodiscard]] double lease_patience(std::optional<double> seconds) const noexcept;

 private:
  void release(std::span<const Key> keys, std::span<const std::uint8_t> mine,
               std::span<const Claim> claims) const noexcept;

  const std::optional<std::array<std::uint8_t, 32>> secret_;
  const double lease_timeout_;
  std::vector<std::unique_ptr<Store>> stores_;
  Store* store_ = nullptr;
  Store* pack_ = nullptr;
  std::atomic<std::uint64_t> turn_{0};
  // How often something was removed below, after which it goes from memory too. Who sees another
  // number than before he read below may have read what is gone.
  std::atomic<std::uint64_t> removals_{0};
  std::atomic<bool> company_{false};  // other processes had the store open when claim() looked
};

}  // namespace tensorkey::internal
