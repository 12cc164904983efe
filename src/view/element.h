// What is done to each element on its way into a key: byte order, bools as 0 or 1, sub-byte kinds
// as their low bits alone, and the canonical form of floats. Everything works on contiguous
// elements and is exact: equal values give equal bytes, and no two values are merged but those
// named.
//
// Canonical: -0.0 becomes 0.0 and every NaN the positive quiet NaN below, in both parts of a
// complex number. Integers, bools, dates and the floats with one NaN and one zero stay as they are.
//
//   float16 7E00   bfloat16 7FC0   float32 7FC00000   float64 7FF8000000000000
//   float8: e3m4 78   e4m3 7C   e4m3fn 7F   e5m2 7E;   fnuz kinds (NaN 80) and e8m0fnu (NaN FF) as
//   is float6, float4 (both of an x2 pair): no NaN; only -0.0 changes
#pragma once

#include <cstddef>

#include <tensorkey/dtype.h>

namespace tensorkey::internal {

// Whether native-order elements can be read as they are, whatever their bits.
[[nodiscard]] bool always_normal(DType dtype, bool canonical) noexcept;

// Whether these elements are already as normalize() would leave them.
[[nodiscard]] bool is_normal(DType dtype, bool canonical, const std::byte* data,
                             std::size_t bytes) noexcept;

// Normalises elements of native byte order in place.
void normalize(DType dtype, bool canonical, std::byte* data, std::size_t bytes) noexcept;

// Reverses the bytes of each number in place (of each part of a complex number).
void swap_bytes(DType dtype, std::byte* data, std::size_t bytes) noexcept;

}  // namespace tensorkey::internal
