// De-duplication of rows: a table of row numbers over the caller's own memory. Rows share dtype and
// shape, so their bytes decide; no row is copied, except in tiles where it is not in one piece.
#include <algorithm>
#include <cstring>
#include <utility>

#include <tensorkey/map.h>

#include "digest/xxh3.h"
#include "view/walk.h"

namespace tensorkey {
namespace {

using internal::kTileBytes;

class Rows {
 public:
  Rows(const TensorView& view, bool canonical)
      : view_(view),
        canonical_(canonical),
        plain_(internal::plain_rows(view, canonical)),
        size_(view.shape[0] == 0 ? 0 : byte_count(internal::row_view(view, 0))) {}

  [[nodiscard]] std::uint64_t hash(std::int64_t i) {
    if (const auto piece = row(i, one_)) return internal::xxh3({piece, size_}).low;
    internal::Xxh3Stream stream;
    internal::walk(internal::row_view(view_, i), canonical_,
                   [&](std::span<const std::byte> piece) { stream.update(piece); });
    return stream.finalize().low;
  }

  [[nodiscard]] bool equal(std::int64_t i, std::int64_t j) {
    if (size_ == 0) return true;
    if (const auto* piece = row(i, one_)) {
      return std::memcmp(piece, row(j, other_), size_) == 0;
    }
    one_.resize(kTileBytes);
    other_.resize(kTileBytes);
    for (std::size_t at = 0; at < size_; at += kTileBytes) {
      const std::size_t n = std::min(kTileBytes, size_ - at);
      internal::read_logical(internal::row_view(view_, i), canonical_, at,
                             std::span(one_).first(n));
      internal::read_logical(internal::row_view(view_, j), canonical_, at,
                             std::span(other_).first(n));
      if (std::memcmp(one_.data(), other_.data(), n) != 0) return false;
    }
    return true;
  }

 private:
  // The row's bytes in one piece, gathered into `room` if they are few; null if they are many.
  const std::byte* row(std::int64_t i, std::vector<std::byte>& room) {
    if (plain_.plain) return static_cast<const std::byte*>(view_.data) + i * plain_.stride;
    if (size_ > kTileBytes) return nullptr;
    room.resize(size_);
    internal::read_logical(internal::row_view(view_, i), canonical_, 0, room);
    return room.data();
  }

  const TensorView& view_;
  bool canonical_;
  internal::PlainRows plain_;
  std::size_t size_;
  std::vector<std::byte> one_, other_;
};

}  // namespace

UniqueRows unique_rows(const TensorView& view, const MapOptions& options) {
  check_view(view, "unique_rows");
  if (view.shape.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "[unique_rows] the tensor has rank 0; expected at least one dimension");
  }
  struct Slot {
    std::uint64_t hash;
    std::int64_t group;  // -1: free
  };
  const std::int64_t count = view.shape[0];
  UniqueRows result;
  result.inverse.reserve(static_cast<std::size_t>(count));
  Rows rows(view, options.canonical);
  std::vector<Slot> slots(16, Slot{0, -1});

  for (std::int64_t i = 0; i < count; ++i) {
    const std::size_t groups = result.first.size();
    if (groups + 1 > slots.size() / 4 * 3) {
      std::vector<Slot> grown(slots.size() * 4, Slot{0, -1});
      for (const Slot& slot : slots) {
        if (slot.group < 0) continue;
        std::size_t at = slot.hash & (grown.size() - 1);
        while (grown[at].group >= 0) at = (at + 1) & (grown.size() - 1);
        grown[at] = slot;
      }
      slots = std::move(grown);
    }
    const std::uint64_t hash = rows.hash(i);
    const std::size_t mask = slots.size() - 1;
    std::size_t at = hash & mask;
    const auto is_row = [&](const Slot& slot) {
      return slot.hash == hash && rows.equal(i, result.first[static_cast<std::size_t>(slot.group)]);
    };
    while (slots[at].group >= 0 && !is_row(slots[at])) at = (at + 1) & mask;
    if (slots[at].group < 0) {
      slots[at] = {hash, static_cast<std::int64_t>(groups)};
      result.first.push_back(i);
      result.counts.push_back(0);
    }
    result.inverse.push_back(slots[at].group);
    ++result.counts[static_cast<std::size_t>(slots[at].group)];
  }
  return result;
}

}  // namespace tensorkey
