// Reading the logical bytes of a view: its elements in C order, little-endian, bools as 0 or 1,
// sub-byte kinds as their low bits, canonical if asked (element.h). A view that lies in memory like
// that is read in place; any other is copied tile by tile, so the extra memory is at most
// kTileBytes whatever the size of the tensor.
//
// REQUIRES everywhere: a view that check_view accepts.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <tensorkey/view.h>

namespace tensorkey::internal {

inline constexpr std::size_t kTileBytes = std::size_t{256} * 1024;

// Where a row of the first dimension begins and how rows follow each other.
struct PlainRows {
  bool plain = false;         // each row's logical bytes lie in one piece, as they are
  std::ptrdiff_t stride = 0;  // bytes from a row to the next
};

// Whether the logical bytes of the whole view lie in one piece at view.data (no copy needed).
// For dtypes with bits to normalise (bool, sub-byte; floats if canonical) this reads the elements,
// at several times the speed of a digest: real data is almost always normal already.
[[nodiscard]] bool is_plain(const TensorView& view, bool canonical) noexcept;

// The same for each row of a view of rank 1 or more.
[[nodiscard]] PlainRows plain_rows(const TensorView& view, bool canonical) noexcept;

// view[i]: the row's view. Borrows the same arrays. REQUIRES: rank >= 1, 0 <= i < shape[0].
[[nodiscard]] TensorView row_view(const TensorView& view, std::int64_t i) noexcept;

// Copies `out.size()` logical bytes beginning at logical byte `offset` to `out`. offset and size
// are multiples of the item size and stay inside the view.
void read_logical(const TensorView& view, bool canonical, std::size_t offset,
                  std::span<std::byte> out) noexcept;

// The logical bytes of the whole view: where they lie, if they do in one piece, else gathered in
// `scratch`.
[[nodiscard]] inline std::span<const std::byte> logical_bytes(const TensorView& view,
                                                              std::vector<std::byte>& scratch) {
  const std::size_t bytes = byte_count(view);
  if (is_plain(view, false)) return {static_cast<const std::byte*>(view.data), bytes};
  scratch.resize(bytes);
  read_logical(view, false, 0, scratch);
  return scratch;
}

// Whether the logical bytes of the view are exactly `bytes`. REQUIRES: logical bytes of a view of
// the same dtype and total length, as walk gives them for the same `canonical`.
[[nodiscard]] bool equal_logical(const TensorView& view, bool canonical,
                                 std::span<const std::byte> bytes);

// Room for one tile of a view of `total` bytes; a small one costs no allocation.
class Tile {
 public:
  explicit Tile(std::size_t total) : size_(std::min(total, kTileBytes)) {
    if (size_ > inline_.size()) heap_ = std::make_unique_for_overwrite<std::byte[]>(size_);
  }
  [[nodiscard]] std::span<std::byte> bytes() noexcept {
    return {heap_ ? heap_.get() : inline_.data(), size_};
  }

 private:
  std::size_t size_;
  std::unique_ptr<std::byte[]> heap_;
  std::array<std::byte, 2048> inline_;
};

// Calls sink(piece) for the logical bytes in order: one piece if is_plain, else tiles. No piece is
// empty: a view without elements makes no call.
template <class Sink>
void walk(const TensorView& view, bool canonical, Sink&& sink) {
  const std::size_t total = byte_count(view);
  if (total == 0) return;
  if (is_plain(view, canonical)) {
    sink(std::span(static_cast<const std::byte*>(view.data), total));
    return;
  }
  Tile tile(total);
  for (std::size_t offset = 0; offset < total;) {
    const std::span<std::byte> piece =
        tile.bytes().first(std::min(total - offset, tile.bytes().size()));
    read_logical(view, canonical, offset, piece);
    sink(std::span<const std::byte>(piece));
    offset += piece.size();
  }
}

}  // namespace tensorkey::internal
