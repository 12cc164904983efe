// Content keys of a tensor and of the rows of a batch.
#include <tensorkey/error.h>
#include <tensorkey/key.h>

#include <algorithm>
#include <string>
#include <vector>

#include "digest/blake3_stream.h"
#include "key/header.h"
#include "view/walk.h"

namespace tensorkey {
namespace {

using internal::Blake3Stream;
using internal::kTileBytes;

Digest content_digest(const TensorView& view, const Digest& header, bool canonical) {
  if (internal::is_plain(view, canonical)) {
    return blake3({static_cast<const std::byte*>(view.data), byte_count(view)}, {.key = &header});
  }
  Blake3Stream stream(&header);
  internal::walk(view, canonical, [&](std::span<const std::byte> piece) { stream.update(piece); });
  return stream.finalize();
}

std::span<Digest> as_digests(std::span<Key> keys) noexcept {
  static_assert(sizeof(Key) == sizeof(Digest) && alignof(Key) == alignof(Digest));
  return {reinterpret_cast<Digest*>(keys.data()), keys.size()};
}

// Rows that are not in memory as they are to be digested: gathered a tile at a time, so that even
// they are digested many at once.
void gathered_row_keys(const TensorView& view, std::span<Key> out, const Digest& header,
                       bool canonical, std::size_t row_bytes) {
  const std::size_t tile_rows = kTileBytes / row_bytes;
  if (tile_rows == 0) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const TensorView row = internal::row_view(view, static_cast<std::int64_t>(i));
      out[i] = Key(content_digest(row, header, canonical));
    }
    return;
  }
  std::vector<std::byte> tile(std::min(tile_rows, out.size()) * row_bytes);
  for (std::size_t first = 0; first < out.size(); first += tile_rows) {
    const std::size_t count = std::min(tile_rows, out.size() - first);
    const std::span<std::byte> bytes(tile.data(), count * row_bytes);
    internal::read_logical(view, canonical, first * row_bytes, bytes);
    blake3_rows({.data = tile.data(),
                 .count = count,
                 .bytes = row_bytes,
                 .stride = static_cast<std::ptrdiff_t>(row_bytes)},
                as_digests(out.subspan(first, count)), {.key = &header});
  }
}

}  // namespace

Key key(const TensorView& view, const KeyOptions& options) {
  check_view(view, "key");
  const Digest header = internal::header_digest(
      {.dtype = view.dtype, .shape = view.shape, .dtype_params = view.dtype_params}, options,
      "key");
  return Key(content_digest(view, header, options.canonical));
}

void row_keys(const TensorView& view, std::span<Key> out, const KeyOptions& options) {
  check_view(view, "row_keys");
  if (view.shape.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "[row_keys] the tensor has rank 0 and so no rows; expected at least one dim");
  }
  if (out.size() != static_cast<std::size_t>(view.shape[0])) {
    throw Error(ErrorCode::kInvalidArgument, "[row_keys] room for " + std::to_string(out.size()) +
                                                 " keys, but the tensor has " +
                                                 std::to_string(view.shape[0]) + " rows");
  }
  if (out.empty()) return;
  const Digest header = internal::header_digest(
      {.dtype = view.dtype, .shape = view.shape.subspan(1), .dtype_params = view.dtype_params},
      options, "row_keys");
  const std::size_t row_bytes = byte_count(view) / out.size();
  const internal::PlainRows rows = internal::plain_rows(view, options.canonical);
  if (rows.plain || row_bytes == 0) {
    blake3_rows({.data = static_cast<const std::byte*>(view.data),
                 .count = out.size(),
                 .bytes = row_bytes,
                 .stride = row_bytes == 0 ? 0 : rows.stride},
                as_digests(out), {.key = &header});
  } else {
    gathered_row_keys(view, out, header, options.canonical, row_bytes);
  }
}

}  // namespace tensorkey
