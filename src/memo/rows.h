// The rows of a batch by their keys: which are the same, and where each first appears.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <tensorkey/key.h>

namespace tensorkey::internal {

// Slots are the distinct rows, in order of first appearance. Most batches repeat no row: a slot is
// then a row, and nothing but the keys is written down.
class DistinctRows {
 public:
  DistinctRows() = default;
  explicit DistinctRows(std::vector<Key> rows);

  [[nodiscard]] std::size_t rows() const noexcept {
    return slot_of_.empty() ? keys_.size() : slot_of_.size();
  }
  [[nodiscard]] std::size_t slots() const noexcept { return keys_.size(); }
  [[nodiscard]] std::span<const Key> keys() const noexcept { return keys_; }  // of each slot
  [[nodiscard]] std::size_t slot_of(std::size_t row) const noexcept {
    return slot_of_.empty() ? row : slot_of_[row];
  }
  // Row where the slot first appears, ascending.
  [[nodiscard]] std::int64_t first(std::size_t slot) const noexcept {
    return slot_of_.empty() ? static_cast<std::int64_t>(slot) : first_[slot];
  }
  // Rows that the slot answers, at least 1.
  [[nodiscard]] std::uint64_t uses(std::size_t slot) const noexcept {
    return slot_of_.empty() ? 1 : uses_[slot];
  }

 private:
  void write_down(std::size_t rows);

  std::vector<Key> keys_;
  std::vector<std::size_t> slot_of_;  // these three are empty if no row repeats another
  std::vector<std::int64_t> first_;
  std::vector<std::uint64_t> uses_;
};

// Keys of all rows: content keys for one member, tuple keys for several. Throws kInvalidArgument
// for no members, a member of rank 0, or different batch sizes.
[[nodiscard]] std::vector<Key> keys_of_rows(std::span<const TupleMember> members,
                                            const KeyOptions& options);

}  // namespace tensorkey::internal
