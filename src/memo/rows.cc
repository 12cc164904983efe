#include "memo/rows.h"

#include <tensorkey/error.h>

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <string>
#include <utility>

#include "store/entry_block.h"
#include "store/key_hash.h"

namespace tensorkey::internal {
namespace {

constexpr std::size_t kFewRows = 256;

// Seeded: rows may be made by whoever wants their keys to meet.
std::size_t hash_of(const Key& key) noexcept {
  static const HashSeeds<4> seeds = random_seeds<4>();
  return seeded_hash(key.bytes().data(), seeds);
}

void check_batch(std::span<const TupleMember> members) {
  if (members.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "[Memo::lookup] no tensors; expected at least one with a batch dimension");
  }
  for (const TupleMember& member : members) {
    check_view(member.view, "Memo::lookup");
    if (member.view.shape.empty()) {
      throw Error(ErrorCode::kInvalidArgument,
                  "[Memo::lookup] \"" + std::string(member.path) +
                      "\" has rank 0 and so no rows; expected a batch dimension");
    }
    if (member.view.shape[0] != members[0].view.shape[0]) {
      throw Error(ErrorCode::kInvalidArgument,
                  "[Memo::lookup] \"" + std::string(member.path) + "\" has " +
                      std::to_string(member.view.shape[0]) + " rows, but \"" +
                      std::string(members[0].path) + "\" has " +
                      std::to_string(members[0].view.shape[0]) + "; expected one batch size");
    }
  }
}

}  // namespace

std::vector<Key> keys_of_rows(std::span<const TupleMember> members, const KeyOptions& options) {
  check_batch(members);
  std::vector<Key> keys(static_cast<std::size_t>(members[0].view.shape[0]));
  if (members.size() == 1) {
    row_keys(members[0].view, keys, options);
  } else {
    tuple_row_keys(members, keys, options);
  }
  return keys;
}

// Finds the repeats by open addressing, and moves the keys of the others together. The table is at
// most half full; that of a small batch needs no heap.
DistinctRows::DistinctRows(std::vector<Key> rows) : keys_(std::move(rows)) {
  const std::size_t count = keys_.size();
  std::array<std::size_t, kFewRows * 2> few;
  std::vector<std::size_t> many;
  const std::size_t places = std::bit_ceil(std::max<std::size_t>(2 * count, 2));
  std::span<std::size_t> table(few.data(), std::min(places, few.size()));
  if (places > few.size()) {
    many.resize(places);
    table = many;
  } else {
    std::ranges::fill(table, 0);
  }

  std::size_t slots = 0;
  for (std::size_t row = 0; row < count; ++row) {
    const Key& key = keys_[row];
    std::size_t place = hash_of(key) & (places - 1);
    while (table[place] != 0 && !same_key(keys_[table[place] - 1], key)) {
      place = (place + 1) & (places - 1);
    }
    if (table[place] == 0) {
      table[place] = ++slots;
      if (slot_of_.empty()) continue;
      keys_[slots - 1] = key;
      first_.push_back(static_cast<std::int64_t>(row));
      uses_.push_back(1);
    } else {
      if (slot_of_.empty()) write_down(row);
      ++uses_[table[place] - 1];
    }
    slot_of_.push_back(table[place] - 1);
  }
  keys_.resize(slots);
}

// The first `rows` rows are distinct, and the next one is not.
void DistinctRows::write_down(std::size_t rows) {
  slot_of_.reserve(keys_.size());
  slot_of_.resize(rows);
  std::iota(slot_of_.begin(), slot_of_.end(), std::size_t{0});
  first_.assign(slot_of_.begin(), slot_of_.end());
  uses_.assign(rows, 1);
}

}  // namespace tensorkey::internal
