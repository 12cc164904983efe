// The rows of a batch by their keys: which are the same, and where each first appears.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <tensorkey/key.h>

namespace tensorkey::internal {

// Slots are the distinct rows, in order of first appearance.
struct DistinctRows {
  std::vector<Key> keys;             // of each slot
  std::vector<std::int64_t> first;   // row where the slot first appears, ascending
  std::vector<std::uint64_t> uses;   // rows that the slot answers, at least 1
  std::vector<std::size_t> slot_of;  // row -> slot
};

// Keys of all rows (content keys for one member, tuple keys for several), duplicates found once.
// Throws kInvalidArgument for no members, a member of rank 0, or different batch sizes.
[[nodiscard]] DistinctRows distinct_rows(std::span<const TupleMember> members,
                                         const KeyOptions& options);

}  // namespace tensorkey::internal
