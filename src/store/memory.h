// The memory tier: entries under keys within a bound. Readers find blocks without a lock, under an
// epoch guard; all changes happen under one mutex, in the thread that asks for them. The policy
// says who has to go; what was evicted stays in `limbo_` until no reader can see it, and counts in
// the bound until its last owner lets go. With a bound of 0 it stores nothing, and counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include <tensorkey/cache.h>

#include "base/fork.h"
#include "policy/policy.h"
#include "store/accesses.h"
#include "store/counters.h"
#include "store/entry_block.h"
#include "store/table.h"
#include "store/trace.h"

namespace tensorkey::internal {

// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): the members are in the order of use
class MemoryTier {
 public:
  explicit MemoryTier(const CacheOptions& options);
  ~MemoryTier();
  MemoryTier(const MemoryTier&) = delete;
  MemoryTier& operator=(const MemoryTier&) = delete;

  // A hit is counted and told to the policy. A miss is not counted: see count_misses.
  [[nodiscard]] EntryPtr find(const Key& key);
  void find(std::span<const Key> keys, std::span<EntryPtr> out);
  bool read(const Key& key, std::span<std::byte> out);
  // Neither counted nor told.
  [[nodiscard]] EntryPtr peek(const Key& key) const;

  // Why these keys were missed; counts them. reasons may be empty.
  void count_misses(std::span<const Key> keys, std::span<Lookup> reasons);
  // Neither counted nor told to the policy. REQUIRES: the key is not there, or was not just now.
  [[nodiscard]] Lookup why_missing(const Key& key) const;
  [[nodiscard]] std::size_t bound() const;
  // Hits in a tier below.
  void count_stored_hits(std::uint64_t count) noexcept {
    lookups_.add(Lookup::kHit, count);
    stored_hits_.fetch_add(count, std::memory_order_relaxed);
  }
  void count_wait() noexcept { waits_.fetch_add(1, std::memory_order_relaxed); }
  void count_corrupt() noexcept { corrupt_.fetch_add(1, std::memory_order_relaxed); }

  // See ActivationCache::insert.
  EntryPtr insert(const EntryParts& parts, std::uint64_t scope);
  // A copy of an entry that is made already. Never null: the entry of the cache, or the given one
  // if it was rejected.
  EntryPtr insert(const EntryPtr& entry, std::uint64_t scope);

  bool remove(const Key& key);
  std::size_t purge(std::uint64_t scope);
  void clear();
  bool pin(const Key& key, bool pinned);
  void resize(std::size_t bound);
  [[nodiscard]] std::vector<EntryInfo> snapshot() const;
  [[nodiscard]] CacheStats stats() const;
  void reset_stats();
  Trace& trace() noexcept { return trace_; }

 private:
  // What was unlinked: a block whose reference the tier still holds, or an old index.
  struct Retired {
    std::uint64_t tag;
    Block* block;
    EntryTable::SlotsPtr slots;
  };

  void hit(Block& block);
  [[nodiscard]] bool expired(const Block& block) const noexcept;
  [[nodiscard]] Lookup why(const Key& key) const;  // REQUIRES: the mutex

  // All below: mutex_ is held.
  EntryPtr known(const Key& key);
  EntryPtr publish(Block& block, std::uint64_t scope);
  [[nodiscard]] Block* reserve(const Key& key, std::size_t bytes, double seconds);
  bool make_room(std::size_t size, std::size_t extra);
  [[nodiscard]] bool fits(std::size_t size, std::size_t extra) const noexcept;
  void grow_index();
  bool compact();
  void evict_victims();
  void retire(Block& block);
  void drop(Block& block);
  void collect();
  void sweep();
  void learn();
  void count_metadata();

  std::size_t bound_;
  const std::int64_t ttl_;  // ticks; 0: none
  const std::shared_ptr<Arena> arena_;
  EntryTable table_;
  Policy policy_;
  Accesses accesses_;
  LookupCounters lookups_;
  DistinctCounter distinct_;
  std::atomic<std::uint64_t> waits_{0};
  std::atomic<std::uint64_t> corrupt_{0};
  std::atomic<std::uint64_t> stored_hits_{0};
  Trace trace_;

  mutable ForkMutex mutex_;  // newer than that of trace_, which is taken under it
  std::vector<Retired> limbo_;
  std::vector<PolicyNode*> victims_;  // kept to save allocations
  std::vector<void*> places_;         // likewise
  std::size_t metadata_ = 0;          // bytes of the bound that are not in arena_
  // Whether more than a quarter of the bound is taken. Before, there is nothing to choose between,
  // and the policy is told of misses alone: learning from hits is most of what a hit costs.
  std::atomic<bool> crowded_{false};
  std::size_t pinned_ = 0;
  std::size_t swept_ = 0;
  std::size_t coming_ = 0;       // reserved, not yet published
  std::uint64_t seen_hits_ = 0;  // hits that policy_ knows of
  CacheStats counted_;           // insertions, evictions, expirations, rejections
  CacheStats baseline_;          // what reset_stats() forgets
};

}  // namespace tensorkey::internal
