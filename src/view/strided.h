// Copying a strided array into C order. Dims that lie behind each other in memory are merged first,
// so most views come down to one or two dims; an array has at most 62 dims of two and more
// elements.
//
// REQUIRES: a checked view.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <tensorkey/view.h>

namespace tensorkey::internal {

inline constexpr std::size_t kMaxDims = 63;

struct Strided {
  const std::byte* data = nullptr;
  std::size_t item = 1;
  std::size_t rank = 0;  // of the merged dims; 0: one element
  std::array<std::int64_t, kMaxDims> dims;
  std::array<std::int64_t, kMaxDims> strides;  // in bytes
};

// Stride of dim d in bytes. REQUIRES: strides that are not empty.
[[nodiscard]] inline std::int64_t byte_stride(const TensorView& view, std::size_t d) noexcept {
  return view.strides[d] * view.stride_unit;
}

// REQUIRES: at least one element.
[[nodiscard]] Strided merge_dims(const TensorView& view) noexcept;

// Copies elements begin to end (in C order) to out.
void gather(const Strided& array, std::int64_t begin, std::int64_t end, std::byte* out) noexcept;

}  // namespace tensorkey::internal
