// What the eviction policy sees of an access and of an entry.
#pragma once

#include <atomic>
#include <cstdint>

namespace tensorkey::internal {

// One access, as the policy sees it.
struct Request {
  std::uint64_t hash = 0;  // uniform bits that stand for the key
  std::uint64_t size = 1;  // bytes it takes, metadata included
  double cost = 1;         // seconds of recomputation that a hit saves
};

// An entry as the policy sees it; part of the entry. The owner fills `request` before link() and
// leaves it; hits write `marks`, relaxed; all else belongs to the policy.
struct PolicyNode {
  Request request;
  // Hits since the entry was last examined, saturating (low 4 bits), and when the last was.
  std::atomic<std::uint32_t> marks{0};
  std::uint32_t slot = 0;  // in its heap
  double heat = 0;         // log2 of the frequency, see Ranking
  enum : std::uint8_t { kNone, kWindow, kMain } place = kNone;  // which heap
};

}  // namespace tensorkey::internal
