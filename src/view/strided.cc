#include "view/strided.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace tensorkey::internal {
namespace {

struct Loop {
  std::int64_t count;
  std::int64_t from;  // byte stride in the source
  std::int64_t to;    // byte stride in the destination
};

struct Sixteen {
  std::uint64_t parts[2];
};

template <class T>
void copy_one(const std::byte* from, std::byte* to) noexcept {
  std::memcpy(to, from, sizeof(T));
}

template <class T>
void copy_run(const std::byte* from, std::byte* to, const Loop& run) noexcept {
  constexpr std::int64_t kItem = sizeof(T);
  // A call of memcpy costs more than a few elements do.
  if (run.from == kItem && run.count * kItem > 64) {
    std::memcpy(to, from, static_cast<std::size_t>(run.count * kItem));
  } else if (run.from == 0) {
    T value;
    std::memcpy(&value, from, sizeof value);
    for (std::int64_t i = 0; i < run.count; ++i) std::memcpy(to + i * kItem, &value, sizeof value);
  } else {
    for (std::int64_t i = 0; i < run.count; ++i) copy_one<T>(from + i * run.from, to + i * kItem);
  }
}

// A transposed pair: `outer` is the denser dim of the source. Squares of about a cache line a side
// use each line that they touch while it is near.
template <class T>
void copy_transposed(const std::byte* from, std::byte* to, const Loop& outer,
                     const Loop& inner) noexcept {
  constexpr std::int64_t kSide = sizeof(T) >= 8 ? 8 : 64 / static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t j0 = 0; j0 < inner.count; j0 += kSide) {
    const std::int64_t j1 = std::min(inner.count, j0 + kSide);
    for (std::int64_t i0 = 0; i0 < outer.count; i0 += kSide) {
      const std::int64_t i1 = std::min(outer.count, i0 + kSide);
      for (std::int64_t i = i0; i < i1; ++i) {
        const std::byte* source = from + i * outer.from;
        std::byte* target = to + i * outer.to;
        for (std::int64_t j = j0; j < j1; ++j) {
          copy_one<T>(source + j * inner.from, target + j * static_cast<std::int64_t>(sizeof(T)));
        }
      }
    }
  }
}

template <class T>
void copy_pair(const std::byte* from, std::byte* to, const Loop& outer,
               const Loop& inner) noexcept {
  if (std::abs(outer.from) < std::abs(inner.from) && outer.from != 0) {
    copy_transposed<T>(from, to, outer, inner);
    return;
  }
  for (std::int64_t i = 0; i < outer.count; ++i) {
    copy_run<T>(from + i * outer.from, to + i * outer.to, inner);
  }
}

// Copies a whole box. The last loop is dense in the destination; its partner is the loop that is
// densest in the source, wherever it stands, so that a line of the source serves several elements.
template <class T>
void copy_box(const std::byte* from, std::byte* to, Loop* loops, std::size_t rank) noexcept {
  if (rank == 0) return copy_one<T>(from, to);
  if (rank == 1) return copy_run<T>(from, to, loops[0]);
  std::size_t partner = rank - 2;
  for (std::size_t d = 0; d + 2 < rank; ++d) {
    if (loops[d].from != 0 && std::abs(loops[d].from) < std::abs(loops[partner].from)) partner = d;
  }
  std::swap(loops[partner], loops[rank - 2]);
  std::array<std::int64_t, kMaxDims> index{};
  while (true) {
    copy_pair<T>(from, to, loops[rank - 2], loops[rank - 1]);
    std::size_t d = rank - 2;
    while (d > 0) {
      --d;
      if (++index[d] < loops[d].count) {
        from += loops[d].from;
        to += loops[d].to;
        break;
      }
      index[d] = 0;
      from -= loops[d].from * (loops[d].count - 1);
      to -= loops[d].to * (loops[d].count - 1);
      if (d == 0) return;
    }
    if (rank == 2) return;
  }
}

// Copies entries first to last of dim d of `array`, whose element (.., 0, ..) lies at `from`.
void copy_entries(const Strided& array, std::size_t d, const std::byte* from, std::int64_t first,
                  std::int64_t last, std::byte* out) noexcept {
  std::array<Loop, kMaxDims> loops;
  std::size_t rank = 0;
  std::int64_t to = static_cast<std::int64_t>(array.item);
  for (std::size_t e = array.rank; e > d;) {
    --e;
    const std::int64_t count = e == d ? last - first : array.dims[e];
    loops[rank++] = {count, array.strides[e], to};
    to *= count;
  }
  std::reverse(loops.begin(), loops.begin() + static_cast<std::ptrdiff_t>(rank));
  if (d < array.rank) from += first * array.strides[d];
  switch (array.item) {
    case 1: return copy_box<std::uint8_t>(from, out, loops.data(), rank);
    case 2: return copy_box<std::uint16_t>(from, out, loops.data(), rank);
    case 4: return copy_box<std::uint32_t>(from, out, loops.data(), rank);
    case 8: return copy_box<std::uint64_t>(from, out, loops.data(), rank);
    default: return copy_box<Sixteen>(from, out, loops.data(), rank);
  }
}

// Elements begin to end of the array formed by dims d and after: a piece of an entry at each end
// and whole entries between.
std::byte* gather_from(const Strided& array, std::size_t d, const std::byte* from,
                       std::int64_t begin, std::int64_t end, std::byte* out) noexcept {
  if (begin == end) return out;
  std::int64_t entry = 1;
  for (std::size_t e = d + 1; e < array.rank; ++e) entry *= array.dims[e];
  std::int64_t first = begin / entry;
  const std::int64_t last = end / entry;
  const auto bytes = [&](std::int64_t elements) {
    return elements * static_cast<std::int64_t>(array.item);
  };
  if (begin % entry != 0) {
    const std::int64_t stop = std::min(end - first * entry, entry);
    out = gather_from(array, d + 1, from + first * array.strides[d], begin % entry, stop, out);
    ++first;
  }
  if (first < last) {
    copy_entries(array, d, from, first, last, out);
    out += bytes((last - first) * entry);
  }
  if (first <= last && end % entry != 0) {
    out = gather_from(array, d + 1, from + last * array.strides[d], 0, end % entry, out);
  }
  return out;
}

}  // namespace

Strided merge_dims(const TensorView& view) noexcept {
  Strided array;
  array.data = static_cast<const std::byte*>(view.data);
  array.item = item_size(view.dtype);
  if (view.strides.empty()) {
    const std::int64_t count = element_count(view);
    if (count == 1) return array;
    array.rank = 1;
    array.dims[0] = count;
    array.strides[0] = static_cast<std::int64_t>(array.item);
    return array;
  }
  for (std::size_t d = 0; d < view.shape.size(); ++d) {
    const std::int64_t dim = view.shape[d];
    if (dim == 1) continue;
    const std::int64_t stride = byte_stride(view, d);
    std::int64_t span;  // overflows for strides that nothing could be read through
    if (array.rank != 0 && !__builtin_mul_overflow(dim, stride, &span) &&
        array.strides[array.rank - 1] == span) {
      array.dims[array.rank - 1] *= dim;
      array.strides[array.rank - 1] = stride;
    } else {
      array.dims[array.rank] = dim;
      array.strides[array.rank] = stride;
      ++array.rank;
    }
  }
  return array;
}

void gather(const Strided& array, std::int64_t begin, std::int64_t end, std::byte* out) noexcept {
  if (begin == end) return;
  if (array.rank == 0) {
    copy_entries(array, 0, array.data, 0, 1, out);
    return;
  }
  gather_from(array, 0, array.data, begin, end, out);
}

}  // namespace tensorkey::internal
