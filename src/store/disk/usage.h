// How often keys are asked for, as one process sees it: hits of what is on disk, on their way to the
// index, and frequencies of what is not, which decide whether it is worth a place there. Both are
// bounded, and samples where they must be. Thread-safe.
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

class Usage {
 public:
  // Rows of the index that one report changes: each is a page in SQLite's log.
  static constexpr std::size_t kMostRows = 1024;

  Usage();

  // Each of `found` was hit `weight` times; `missed` were asked for once.
  void add(std::span<const Key> found, std::span<const Key> missed, double weight = 1);
  // How often a key that is not on disk was asked for, at least 1, in the present period.
  [[nodiscard]] double frequency(const Key& key) const;

  struct Report {
    std::vector<HitCount> hits;
    double accesses = 0;
  };
  // What came together since the last report.
  Report report();
  // Frequencies count in this period from now on; there are so many entries on disk.
  void set(std::int64_t period, std::uint64_t entries);

 private:
  void note(const Key& key, double weight);

  mutable ForkMutex mutex_;
  std::unordered_map<Key, double> hits_;
  double share_ = 1;  // of the hits that are noted, each for 1 / share_
  std::uint64_t turn_ = 0;
  double accesses_ = 0;
  GhostTable ghosts_;
  std::int64_t period_ = 0;
};

}  // namespace tensorkey::internal
