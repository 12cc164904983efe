// The numbers of a tensor as doubles, for measuring how far two outputs are apart. No arithmetic of
// a layer is done with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <tensorkey/dtype.h>

namespace tensorkey::internal {

enum class NumberKind : std::uint8_t { kOther, kInteger, kFloat };

struct NumberInfo {
  NumberKind kind = NumberKind::kOther;  // bools and dates are no numbers
  double epsilon = 0;                    // of a float: from 1 to the next one
  double limit = 64;                     // epsilons of the largest that count as the last bits
};

[[nodiscard]] NumberInfo number_info(DType dtype) noexcept;

// Appends the numbers of elements in C order, two for a complex one or a pair of 4-bit floats.
// REQUIRES: a dtype of numbers, whole elements. Integers beyond 2^53 are rounded.
void append_numbers(DType dtype, std::span<const std::byte> elements, std::vector<double>& out);

}  // namespace tensorkey::internal
