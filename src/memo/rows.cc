#include "memo/rows.h"

#include <tensorkey/error.h>

#include <string>
#include <unordered_map>

namespace tensorkey::internal {
namespace {

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

DistinctRows distinct_rows(std::span<const TupleMember> members, const KeyOptions& options) {
  check_batch(members);
  const auto rows = static_cast<std::size_t>(members[0].view.shape[0]);
  std::vector<Key> keys(rows);
  if (members.size() == 1) {
    row_keys(members[0].view, keys, options);
  } else {
    tuple_row_keys(members, keys, options);
  }

  DistinctRows distinct;
  distinct.keys.reserve(rows);
  distinct.slot_of.reserve(rows);
  std::unordered_map<Key, std::size_t> slots;
  slots.reserve(rows);
  for (std::size_t row = 0; row < rows; ++row) {
    const auto [found, is_new] = slots.try_emplace(keys[row], distinct.keys.size());
    if (is_new) {
      distinct.keys.push_back(keys[row]);
      distinct.first.push_back(static_cast<std::int64_t>(row));
      distinct.uses.push_back(0);
    }
    ++distinct.uses[found->second];
    distinct.slot_of.push_back(found->second);
  }
  return distinct;
}

}  // namespace tensorkey::internal
