#include "view/walk.h"

#include <bit>
#include <cstring>

#include "view/element.h"
#include "view/strided.h"

// Elements are read as they lie, and keys are little-endian.
static_assert(std::endian::native == std::endian::little);

namespace tensorkey::internal {
namespace {

bool is_swapped(const TensorView& view) noexcept {
  return view.byteswapped && find_dtype(view.dtype)->swap_size > 1;
}

// Whether dims `first` and after lie in C order without gaps. REQUIRES: elements.
bool is_contiguous(const TensorView& view, std::size_t first) noexcept {
  if (view.strides.empty()) return true;
  auto expected = static_cast<std::int64_t>(item_size(view.dtype));
  for (std::size_t d = view.shape.size(); d > first;) {
    --d;
    if (view.shape[d] != 1 && byte_stride(view, d) != expected) return false;
    expected *= view.shape[d];
  }
  return true;
}

const std::byte* first_byte(const TensorView& view) noexcept {
  return static_cast<const std::byte*>(view.data);
}

std::size_t row_bytes(const TensorView& view) noexcept {
  std::size_t bytes = item_size(view.dtype);
  for (const std::int64_t dim : view.shape.subspan(1)) bytes *= static_cast<std::size_t>(dim);
  return bytes;
}

std::ptrdiff_t row_stride(const TensorView& view) noexcept {
  return view.strides.empty() ? static_cast<std::ptrdiff_t>(row_bytes(view)) : byte_stride(view, 0);
}

bool rows_normal(const TensorView& view, bool canonical) noexcept {
  if (always_normal(view.dtype, canonical)) return true;
  const std::ptrdiff_t stride = row_stride(view);
  const std::size_t bytes = row_bytes(view);
  // Rows that touch are one piece, and equal rows (stride 0) are one row.
  if (stride == static_cast<std::ptrdiff_t>(bytes)) {
    return is_normal(view.dtype, canonical, first_byte(view), byte_count(view));
  }
  const std::int64_t rows = stride == 0 ? 1 : view.shape[0];
  for (std::int64_t i = 0; i < rows; ++i) {
    if (!is_normal(view.dtype, canonical, first_byte(view) + i * stride, bytes)) return false;
  }
  return true;
}

}  // namespace

bool is_plain(const TensorView& view, bool canonical) noexcept {
  if (element_count(view) == 0) return true;
  return is_contiguous(view, 0) && !is_swapped(view) &&
         is_normal(view.dtype, canonical, first_byte(view), byte_count(view));
}

PlainRows plain_rows(const TensorView& view, bool canonical) noexcept {
  if (element_count(view) == 0) return {.plain = true, .stride = 0};
  if (!is_contiguous(view, 1) || is_swapped(view) || !rows_normal(view, canonical)) return {};
  return {.plain = true, .stride = row_stride(view)};
}

TensorView row_view(const TensorView& view, std::int64_t i) noexcept {
  TensorView row = view;
  row.shape = view.shape.subspan(1);
  if (!view.strides.empty()) row.strides = view.strides.subspan(1);
  // Where there are no elements a stride may be anything, and no address is formed from it.
  if (element_count(view) != 0) row.data = first_byte(view) + i * row_stride(view);
  return row;
}

void read_logical(const TensorView& view, bool canonical, std::size_t offset,
                  std::span<std::byte> out) noexcept {
  if (out.empty()) return;
  const std::size_t item = item_size(view.dtype);
  gather(merge_dims(view), static_cast<std::int64_t>(offset / item),
         static_cast<std::int64_t>((offset + out.size()) / item), out.data());
  if (is_swapped(view)) swap_bytes(view.dtype, out.data(), out.size());
  normalize(view.dtype, canonical, out.data(), out.size());
}

bool equal_logical(const TensorView& view, bool canonical, std::span<const std::byte> bytes) {
  if (bytes.empty()) return true;
  if (is_contiguous(view, 0) && !is_swapped(view)) {
    // Logical bytes are normal, so a view with the same bytes is normal too.
    if (std::memcmp(view.data, bytes.data(), bytes.size()) == 0) return true;
    if (is_normal(view.dtype, canonical, first_byte(view), bytes.size())) return false;
  }
  Tile tile(bytes.size());
  for (std::size_t offset = 0; offset < bytes.size();) {
    const std::span<std::byte> piece =
        tile.bytes().first(std::min(bytes.size() - offset, tile.bytes().size()));
    read_logical(view, canonical, offset, piece);
    if (std::memcmp(piece.data(), bytes.data() + offset, piece.size()) != 0) return false;
    offset += piece.size();
  }
  return true;
}

}  // namespace tensorkey::internal
