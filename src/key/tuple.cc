// Tuple keys: several tensors that make one item. The members are content keys of their own, so a
// tuple costs one more digest of 32 bytes a member.
#include <tensorkey/error.h>
#include <tensorkey/key.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "key/header.h"

namespace tensorkey {
namespace {

// Positions of the members in the order of their paths' bytes.
std::vector<std::size_t> path_order(std::span<const TupleMember> members, std::string_view where) {
  if (members.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "[" + std::string(where) + "] no members; expected at least one tensor");
  }
  std::vector<std::size_t> order(members.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, {}, [&](std::size_t i) { return members[i].path; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (members[order[i]].path == members[order[i - 1]].path) {
      throw Error(ErrorCode::kInvalidArgument,
                  "[" + std::string(where) + "] two members have the path \"" +
                      std::string(members[order[i]].path) + "\"; expected unique paths");
    }
  }
  return order;
}

Digest tuple_header(std::span<const TupleMember> members, std::span<const std::size_t> order,
                    const KeyOptions& options, std::string_view where) {
  internal::ByteWriter params;
  params.put(static_cast<std::uint32_t>(members.size()));
  for (const std::size_t i : order) params.put_sized(members[i].path);
  const auto bytes = params.bytes();
  const internal::Header header{
      .kind = internal::Kind::kTuple,
      .dtype_params = {reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
  return internal::header_digest(header, options, where);
}

KeyOptions member_options(const KeyOptions& options) noexcept {
  return {.scope = {}, .secret = options.secret, .canonical = options.canonical};
}

}  // namespace

Key tuple_key(std::span<const TupleMember> members, const KeyOptions& options) {
  const std::vector<std::size_t> order = path_order(members, "tuple_key");
  const Digest header = tuple_header(members, order, options, "tuple_key");
  std::vector<Key> keys;
  keys.reserve(members.size());
  for (const std::size_t i : order) keys.push_back(key(members[i].view, member_options(options)));
  return Key(blake3(std::as_bytes(std::span(keys)), {.key = &header}));
}

void tuple_row_keys(std::span<const TupleMember> members, std::span<Key> out,
                    const KeyOptions& options) {
  const std::vector<std::size_t> order = path_order(members, "tuple_row_keys");
  for (const TupleMember& member : members) check_view(member.view, "tuple_row_keys");
  const Digest header = tuple_header(members, order, options, "tuple_row_keys");
  const std::size_t width = members.size();
  std::vector<Key> column(out.size());
  std::vector<Key> table(out.size() * width);
  for (std::size_t j = 0; j < width; ++j) {
    row_keys(members[order[j]].view, column, member_options(options));
    for (std::size_t i = 0; i < out.size(); ++i) table[i * width + j] = column[i];
  }
  std::vector<Digest> digests(out.size());
  blake3_rows({.data = std::as_bytes(std::span(table)).data(),
               .count = out.size(),
               .bytes = width * Key::kSize,
               .stride = static_cast<std::ptrdiff_t>(width * Key::kSize)},
              digests, {.key = &header});
  std::ranges::transform(digests, out.begin(), [](const Digest& digest) { return Key(digest); });
}

}  // namespace tensorkey
