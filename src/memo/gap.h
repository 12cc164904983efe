// Gaps of whole outputs: of all their leaves, by row or not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <tensorkey/layer.h>
#include <tensorkey/probe.h>

namespace tensorkey::internal {

// gap(), marking in differs[i] the pairs whose bits differ. REQUIRES: equal sizes.
[[nodiscard]] Gap gap_of_rows(const TensorView& one, std::span<const std::int64_t> one_rows,
                              const TensorView& other, std::span<const std::int64_t> other_rows,
                              std::vector<std::uint8_t>& differs);

// "3.2 units in the last place".
[[nodiscard]] std::string gap_text(const Gap& gap);

// Whether two tensors have the same dtype, shape and elements.
[[nodiscard]] bool same_tensor(const TensorView& one, const TensorView& other);

// Whether `gap` is the worse: beyond what rounding can do by more, or the first that differs at
// all. Limits differ by dtype, so ulps are compared in units of them.
[[nodiscard]] bool is_worse(const Gap& gap, const Gap& than) noexcept;

// The gap of two outputs of the same rows, each leaf as one row.
[[nodiscard]] Gap gap_of_wholes(const LayerOutput& one, const LayerOutput& other);

// The gap of all leaves that are by row; rows: those that differ in any of them. REQUIRES: outputs
// that check_output() of one form accepts.
[[nodiscard]] Gap gap_of_outputs(const LayerOutput& one, std::span<const std::int64_t> one_rows,
                                 const LayerOutput& other, std::span<const std::int64_t> other_rows,
                                 std::span<const std::uint8_t> by_row);

}  // namespace tensorkey::internal
