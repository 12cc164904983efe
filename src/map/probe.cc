#include <tensorkey/map.h>

#include "base/bytes.h"
#include "digest/xxh3.h"
#include "view/walk.h"

namespace tensorkey::internal {
namespace {

Hash128 hash_pieces(const TensorView& view, bool canonical) {
  Xxh3Stream stream;
  walk(view, canonical, [&](std::span<const std::byte> piece) { stream.update(piece); });
  return stream.finalize();
}

// The data's hash is hashed once more behind dtype, shape and parameters: a lookup costs two calls
// of XXH3 and, with the usual few dims, nothing on the heap.
std::uint64_t hash_header(const TensorView& view, const Hash128& data) {
  ByteWriter header;
  header.put(data.low);
  header.put(data.high);
  header.put(static_cast<std::uint64_t>(view.dtype) | (std::uint64_t{view.shape.size()} << 16));
  for (const std::int64_t dim : view.shape) header.put(static_cast<std::uint64_t>(dim));
  header.put(view.dtype_params);
  return xxh3(header.bytes()).low;
}

std::size_t checked_size(const TensorView& view, std::string_view where) {
  check_view(view, where);
  return byte_count(view);
}

}  // namespace

Probe::Probe(const TensorView& view, bool canonical, std::string_view where)
    : Probe(view, checked_size(view, where), canonical) {}

Probe::Probe(const TensorView& view, std::size_t size, bool canonical)
    : view_(view), size_(size), canonical_(canonical) {
  if (is_plain(view, canonical)) {
    bytes_ = static_cast<const std::byte*>(view.data);
  } else if (size_ <= kTileBytes) {
    gathered_ = std::make_unique_for_overwrite<std::byte[]>(size_);
    read_logical(view, canonical, 0, {gathered_.get(), size_});
    bytes_ = gathered_.get();
  }
  const bool one_piece = bytes_ != nullptr || size_ == 0;
  hash_ = hash_header(view, one_piece ? xxh3({bytes_, size_}) : hash_pieces(view, canonical));
}

}  // namespace tensorkey::internal
