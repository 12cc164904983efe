// Floats to 16 bits and back: IEEE half precision and bfloat16. The result does not depend on the
// thread's rounding mode or on whether it flushes denormals.
#pragma once

#include <cstddef>
#include <span>

#include <tensorkey/dtype.h>
#include <tensorkey/entry.h>

namespace tensorkey::internal {

// Whether kFloat16 and kBFloat16 apply: the parts of an element are float32 or float64.
[[nodiscard]] bool can_halve(DType dtype) noexcept;

// The stored bytes of that many bytes of elements. REQUIRES: can_halve(dtype).
[[nodiscard]] std::size_t halved_size(DType dtype, std::size_t bytes) noexcept;

// REQUIRES: can_halve(dtype), a codec that is one of the two, and for both functions
// halves.size() == halved_size(dtype, elements.size()).
void to_halves(Codec codec, DType dtype, std::span<const std::byte> elements,
               std::span<std::byte> halves) noexcept;
void from_halves(Codec codec, DType dtype, std::span<const std::byte> halves,
                 std::span<std::byte> elements) noexcept;

}  // namespace tensorkey::internal
