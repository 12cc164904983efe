// What a Memo and a batch of it are made of: shared by what a batch looks up, stores and puts
// together (memo.cc), and what it claims and waits for (memo_wait.cc).
#pragma once

#include <tensorkey/memo.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/fork.h"
#include "memo/rows.h"
#include "store/cache_impl.h"

namespace tensorkey {

struct Memo::Impl {
  Impl(std::shared_ptr<ActivationCache> the_cache, const MemoOptions& the_options)
      : cache(std::move(the_cache)), options(the_options) {}

  void count(internal::Lookup reason, std::uint64_t rows) {
    stats.misses += rows;
    switch (reason) {
      case internal::Lookup::kNew: stats.misses_new += rows; break;
      case internal::Lookup::kEvicted: stats.misses_evicted += rows; break;
      case internal::Lookup::kExpired: stats.misses_expired += rows; break;
      case internal::Lookup::kHit: break;
    }
  }

  std::shared_ptr<ActivationCache> cache;
  MemoOptions options;
  internal::ForkMutex mutex;
  MemoStats stats;  // guarded by mutex
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
  void write(std::span<const EntryPtr> stored, std::size_t first, double seconds);
  [[nodiscard]] EntryPtr find(std::size_t slot) const;
  [[nodiscard]] Secret secret_of_entries() const noexcept;
  void know(std::size_t slot, EntryPtr entry);
  void count_hit(MemoStats& stats, std::size_t slot) const;

  std::shared_ptr<Memo::Impl> memo;
  internal::Tiers* tiers = nullptr;  // of the memo's cache, like flights
  internal::Flights* flights = nullptr;
  std::optional<std::array<std::uint8_t, 32>> secret;
  std::uint64_t scope = 0;
  internal::DistinctRows distinct;
  std::vector<EntryPtr> entries;           // of each slot; null: to be computed
  std::vector<std::int64_t> missing_rows;  // where each missing slot first appears, ascending
  std::vector<std::size_t> missing_slots;
  std::vector<internal::Lead> leads;  // of the missing slots
  std::vector<Open> awaited;
  std::vector<Elsewhere> elsewhere;
  std::optional<std::chrono::steady_clock::time_point> elsewhere_until;
  EntryPtr example;
};

namespace internal {

[[nodiscard]] inline bool is_row(const EntryPtr& entry) {
  return entry && entry->tensor_count() == 1;
}

}  // namespace internal

}  // namespace tensorkey
