// How often keys are asked for, as one process sees it: hits of what is on disk, on their way to
// the index, and frequencies of what is not, which decide whether it is worth a place there. Both
// are bounded, and samples where they must be. Thread-safe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include <tensorkey/key.h>

#include "base/fork.h"
#include "policy/ghosts.h"
#include "store/disk/index.h"

namespace tensorkey::internal {

// So that frequency counts where nothing is known of costs.
inline constexpr double kLeastCost = 1e-9;

class Usage {
 public:
  Usage();

  struct Hit {
    Key key;
    std::uint32_t segment;
    double cost;  // seconds
    double count = 1;
  };
  void add(std::span<const Hit> found, std::span<const Key> missed);
  // How often a key that is not on disk was asked for, at least 1, in the present period.
  [[nodiscard]] double frequency(const Key& key) const;

  // What the index does not know yet: hits of a key, and hits * cost of what is in a segment.
  [[nodiscard]] double unreported(const Key& key) const;
  [[nodiscard]] double unreported(std::uint32_t segment) const;

  struct Report {
    std::vector<HitCount> hits;  // a sample
    std::vector<SegmentWorth> worth;
    double accesses = 0;
  };
  // What came together since the last report; at most so many rows, which then stand for the
  // others.
  Report report(std::size_t rows);
  // Frequencies count in this period from now on; there are so many entries on disk.
  void set(std::int64_t period, std::uint64_t entries);

 private:
  std::unordered_map<Key, double> hits_;
  std::unordered_map<std::uint32_t, double> worth_;  // of these hits, by segment
  double share_ = 1;  // of the hits that are noted, each for 1 / share_
  std::uint64_t turn_ = 0;
  double accesses_ = 0;
  GhostTable ghosts_;
  std::int64_t period_ = 0;
  mutable ForkMutex mutex_;
};

}  // namespace tensorkey::internal
