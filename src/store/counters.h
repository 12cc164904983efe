// What a memory tier counts, spread over cache lines so that hits of several threads do not meet.
#pragma once

#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/epoch.h"

namespace tensorkey::internal {

enum class Lookup : std::uint8_t { kHit, kNew, kEvicted, kExpired };

// The numbers of lookups of each kind.
class LookupCounters {
 public:
  using Counts = std::array<std::uint64_t, 4>;

  void add(Lookup kind, std::uint64_t count) noexcept {
    stripes_[thread_number() % kStripes].counts[static_cast<std::size_t>(kind)].fetch_add(
        count, std::memory_order_relaxed);
  }

  [[nodiscard]] Counts sum() const noexcept {
    Counts sums{};
    for (const Stripe& stripe : stripes_) {
      for (std::size_t i = 0; i < sums.size(); ++i) {
        sums[i] += stripe.counts[i].load(std::memory_order_relaxed);
      }
    }
    return sums;
  }

 private:
  static constexpr std::size_t kStripes = 8;
  struct alignas(64) Stripe {
    std::array<std::atomic<std::uint64_t>, 4> counts{};
  };
  std::array<Stripe, kStripes> stripes_;
};

// How many different hashes were added: HyperLogLog (Flajolet et al., AofA 2007) with 4,096
// registers, standard error 1.6 %, small counts by linear counting. Thread-safe.
class DistinctCounter {
 public:
  void add(std::uint64_t hash) noexcept {
    std::atomic<std::uint8_t>& place = registers_[hash >> 52];
    const std::uint64_t rest = (hash << 12) | (std::uint64_t{1} << 11);  // never 0
    const auto rank = static_cast<std::uint8_t>(__builtin_clzll(rest) + 1);
    std::uint8_t known = place.load(std::memory_order_relaxed);
    while (known < rank && !place.compare_exchange_weak(known, rank, std::memory_order_relaxed)) {
    }
  }

  [[nodiscard]] std::uint64_t estimate() const noexcept {
    constexpr double kCount = kRegisters;
    constexpr double kAlpha = 0.7213 / (1 + 1.079 / kCount);
    double sum = 0;
    std::size_t zeros = 0;
    for (const auto& each : registers_) {
      const std::uint8_t rank = each.load(std::memory_order_relaxed);
      sum += std::ldexp(1.0, -rank);
      zeros += rank == 0;
    }
    const double raw = kAlpha * kCount * kCount / sum;
    if (raw <= 2.5 * kCount && zeros > 0) {
      return static_cast<std::uint64_t>(
          std::llround(kCount * std::log(kCount / static_cast<double>(zeros))));
    }
    return static_cast<std::uint64_t>(std::llround(raw));
  }

  void reset() noexcept {
    for (auto& each : registers_) each.store(0, std::memory_order_relaxed);
  }

 private:
  static constexpr std::size_t kRegisters = 4096;
  std::array<std::atomic<std::uint8_t>, kRegisters> registers_{};
};

}  // namespace tensorkey::internal
