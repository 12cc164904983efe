// Reading the logical bytes of a view: its elements in C order, little-endian, bools as 0 or 1,
// canonical if asked. A view that lies in memory like that is read in place; any other is copied
// tile by tile, so the extra memory is at most kTileBytes whatever the size of the tensor.
//
// REQUIRES everywhere: a view that check_view accepts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <tensorkey/view.h>

namespace tensorkey::internal {

inline constexpr std::size_t kTileBytes = std::size_t{256} * 1024;

// Where a row of the first dimension begins and how rows follow each other.
struct PlainRows {
  bool plain = false;         // each row's logical bytes lie in one piece, as they are
  std::ptrdiff_t stride = 0;  // bytes from a row to the next
};

// Whether the logical bytes of the whole view lie in one piece at view.data (no copy needed).
[[nodiscard]] bool is_plain(const TensorView& view, bool canonical) noexcept;

// The same for each row of a view of rank 1 or more.
[[nodiscard]] PlainRows plain_rows(const TensorView& view, bool canonical) noexcept;

// view[i]: the row's view. Borrows the same arrays. REQUIRES: rank >= 1, 0 <= i < shape[0].
[[nodiscard]] TensorView row_view(const TensorView& view, std::int64_t i) noexcept;

// Copies `out.size()` logical bytes beginning at logical byte `offset` to `out`. offset and size
// are multiples of the item size and stay inside the view.
void read_logical(const TensorView& view, bool canonical, std::size_t offset,
                  std::span<std::byte> out) noexcept;

// Whether the logical bytes of the view are exactly `bytes` (of the same total length).
[[nodiscard]] bool equal_logical(const TensorView& view, bool canonical,
                                 std::span<const std::byte> bytes);

// Calls sink(piece) for the logical bytes in order: one piece if is_plain, else tiles.
template <class Sink>
void walk(const TensorView& view, bool canonical, Sink&& sink);

}  // namespace tensorkey::internal
