// What a Memo and a batch of it are made of: shared by what looks up (memo.cc), what stores and
// puts together (memo_batch.cc), what claims and waits (memo_wait.cc) and what keeps rows pending
// (memo_pending.cc).
#pragma once

#include <tensorkey/memo.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/fork.h"
#include "memo/memo_pending.h"
#include "memo/rows.h"
#include "store/cache_impl.h"
#include "store/entry_block.h"

namespace tensorkey {

struct Memo::Impl {
  using Clock = std::chrono::steady_clock;

  Impl(std::shared_ptr<ActivationCache> the_cache, const MemoOptions& the_options)
      : cache(std::move(the_cache)),
        tiers(cache->impl_->tiers),
        flights(cache->impl_->flights),
        options(the_options),
        pending(tiers) {}

  void count(internal::Lookup reason, std::uint64_t rows);
  [[nodiscard]] static MemoBatch look_up(const std::shared_ptr<Impl>& memo, std::vector<Key> keys,
                                         const KeyOptions& options, Keep keep,
                                         std::optional<std::uint64_t> epoch, Flight flight,
                                         Clock::time_point start);

  std::shared_ptr<ActivationCache> cache;
  internal::Tiers& tiers;  // of the cache, like flights
  internal::Flights& flights;
  MemoOptions options;
  internal::ForkMutex mutex;
  MemoStats stats;  // guarded by mutex
  internal::PendingRows pending;
};

struct MemoBatch::Impl {
  // A distinct row that another thread computes.
  struct Open {
    std::size_t slot;
    internal::Flights::FlightPtr flight;
  };

  // A distinct row that this thread leads and another process computes.
  struct Elsewhere {
    std::size_t slot;
    internal::Lead lead;
  };

  // memo_wait.cc
  void take_over(std::span<const std::size_t> slots, std::span<const std::size_t> alone = {});
  void ask_processes(std::vector<Elsewhere> rows, std::vector<std::size_t>& found);
  void compute(std::size_t slot, internal::Lead lead);
  bool await_threads(const internal::Flights::Deadline& deadline);
  bool await_processes(const internal::Flights::Deadline& deadline);

  // memo.cc
  void count_found(std::span<const std::size_t> slots, bool waited);
  void count_missing(std::size_t first);
  void count_hit(MemoStats& stats, std::size_t slot) const;
  [[nodiscard]] EntryPtr find(std::size_t slot) const;
  [[nodiscard]] Secret secret_of_entries() const noexcept;
  void know(std::size_t slot, EntryPtr entry);

  // memo_batch.cc
  void check_outputs(std::size_t first, std::size_t count, std::span<const TensorView> outputs,
                     std::span<const Key> inputs) const;
  [[nodiscard]] EntryPtr keep_row(const EntryParts& parts, bool& stored);
  void write(std::span<const EntryPtr> stored, std::size_t first, double seconds);
  void copy_rows(std::span<const std::span<std::byte>> outs) const;
  void copy_leaf(std::size_t k, std::size_t row_bytes, std::byte* to) const;

  std::shared_ptr<Memo::Impl> memo;
  internal::Tiers* tiers = nullptr;  // of the memo's cache, like flights
  internal::Flights* flights = nullptr;
  internal::PendingRows::OwnSecret secret;
  std::uint64_t scope = 0;
  Keep keep = Keep::kNow;
  std::uint64_t ticket = 0;  // of the memo's pending rows
  internal::DistinctRows distinct;
  std::vector<EntryPtr> entries;           // of each slot; null: to be computed
  std::vector<std::int64_t> missing_rows;  // where each missing slot first appears, ascending
  std::vector<std::size_t> missing_slots;
  std::vector<internal::Lead> leads;  // of the missing slots
  std::vector<bool> computed;         // slots that were ever missing; empty: none
  std::vector<Open> awaited;
  std::vector<Elsewhere> elsewhere;
  std::optional<std::chrono::steady_clock::time_point> elsewhere_until;
  const Entry* example = nullptr;  // one of the entries
};

namespace internal {

// Leaf k of a row, without what Entry::tensor copies. REQUIRES: there is one.
[[nodiscard]] inline const Item& leaf_of(const Block& row, std::size_t k) noexcept {
  const auto* const begin = reinterpret_cast<const std::byte*>(&row);
  const std::byte* const items = begin + sizeof(Block) + (row.has_input ? sizeof(Key) : 0);
  return reinterpret_cast<const Item*>(items)[k];
}

[[nodiscard]] bool has_leaf_names(const Entry& entry);

// An entry whose tensors are the leaves of a row: without a name if there is one, named by their
// number if there are several. One that somebody put under the key with others is no answer.
[[nodiscard]] inline bool is_row(const EntryPtr& entry) {
  if (!entry) return false;
  const Block& block = block_of(*entry);
  return block.tensors == 1 ? leaf_of(block, 0).name_bytes == 0 : has_leaf_names(*entry);
}

}  // namespace internal

}  // namespace tensorkey
