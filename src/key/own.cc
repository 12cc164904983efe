// Keys of the caller's own: a name or a number in place of content.
#include <tensorkey/error.h>
#include <tensorkey/key.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "base/utf8.h"
#include "key/header.h"

namespace tensorkey {
namespace {

using Type = OwnId::Type;

// Data up to this length are digested many at once, those of one length together.
constexpr std::size_t kShort = 128;

bool is_decimal(std::string_view text) noexcept {
  if (text.starts_with('-')) {
    text.remove_prefix(1);
    if (text.starts_with('0')) return false;
  }
  if (text.empty() || (text.size() > 1 && text.starts_with('0'))) return false;
  return std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

[[noreturn]] void refuse(std::size_t i, const char* what) {
  throw Error(ErrorCode::kInvalidArgument, "[own_keys] id " + std::to_string(i) + what);
}

void check(const OwnId& id, std::size_t i) {
  switch (id.type) {
    case Type::kInt:
      if (!is_decimal(id.data)) {
        refuse(i, " is no int in decimal; expected digits, with a '-' alone before them");
      }
      return;
    case Type::kText:
      if (!internal::is_utf8(id.data)) refuse(i, " is text, but no UTF-8; expected UTF-8");
      return;
    case Type::kBytes: return;
  }
  refuse(i, " has an unknown type; expected an int, text or bytes");
}

void write_data(const OwnId& id, std::byte* to) noexcept {
  *to = static_cast<std::byte>(id.type);
  if (!id.data.empty()) std::memcpy(to + 1, id.data.data(), id.data.size());
}

}  // namespace

void own_keys(std::span<const OwnId> ids, std::span<Key> out, const KeyOptions& options) {
  if (out.size() != ids.size()) {
    throw Error(ErrorCode::kInvalidArgument, "[own_keys] room for " + std::to_string(out.size()) +
                                                 " keys; expected room for " +
                                                 std::to_string(ids.size()));
  }
  // How many there are of each length, then where those of a length begin.
  std::array<std::size_t, kShort + 2> begin{};
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    check(ids[i], i);
    const std::size_t size = ids[i].data.size() + 1;
    if (size > kShort) continue;
    ++begin[size + 1];
    bytes += size;
  }
  for (std::size_t size = 1; size < begin.size(); ++size) begin[size] += begin[size - 1];
  const Digest header =
      internal::header_digest({.kind = internal::Kind::kOwn},
                              {.scope = options.scope, .secret = options.secret}, "own_keys");

  std::vector<std::size_t> order(begin.back());
  auto place = begin;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::size_t size = ids[i].data.size() + 1;
    if (size <= kShort) {
      order[place[size]++] = i;
    } else {
      std::vector<std::byte> data(size);
      write_data(ids[i], data.data());
      out[i] = Key(blake3(data, {.key = &header}));
    }
  }
  std::vector<std::byte> table(bytes);
  std::vector<Digest> digests(order.size());
  const std::byte* rows = table.data();
  std::byte* to = table.data();
  for (std::size_t size = 1; size <= kShort; ++size) {
    const std::size_t first = begin[size];
    const std::size_t count = begin[size + 1] - first;
    if (count == 0) continue;
    for (std::size_t i = first; i < first + count; ++i, to += size) write_data(ids[order[i]], to);
    blake3_rows(
        {.data = rows, .count = count, .bytes = size, .stride = static_cast<std::ptrdiff_t>(size)},
        std::span(digests).subspan(first, count), {.key = &header});
    rows = to;
  }
  for (std::size_t i = 0; i < order.size(); ++i) out[order[i]] = Key(digests[i]);
}

}  // namespace tensorkey
