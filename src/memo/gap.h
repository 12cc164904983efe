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

// Whether two tensors have the same dtype, shape and elements.
[[nodiscard]] bool same_tensor(const TensorView& one, const TensorView& other);

// Whether `gap` is the worse: beyond what rounding can do by more, or the first that differs at
// all. Limits differ by dtype, so ulps are compared in units of them.
[[nodiscard]] bool is_worse(const Gap& gap, const Gap& than) noexcept;

// "(2, 3)".
[[nodiscard]] std::string shape_text(std::span<const std::int64_t> shape);

// Which leaves of an output are by row: their first dim follows the number of rows in both of two
// outputs of the same row. The others are equal in both. Throws kInvalidArgument, with the leaf's
// path, if a leaf is neither.
[[nodiscard]] std::vector<std::uint8_t> leaves_by_row(const LayerOutput& one, std::size_t one_rows,
                                                      const LayerOutput& other,
                                                      std::size_t other_rows);

// Throws kInvalidArgument, with the leaf's path, unless `output` has the leaves and the form of
// `known`, `rows` rows in each leaf that is by row, and the same elements in the others.
void check_output(const LayerOutput& known, const LayerOutput& output, std::size_t rows,
                  std::span<const std::uint8_t> by_row);

// The gap of two outputs of the same rows, each leaf as one row.
[[nodiscard]] Gap gap_of_wholes(const LayerOutput& one, const LayerOutput& other);

// The gap of all leaves that are by row; rows: those that differ in any of them. REQUIRES: outputs
// that check_output() accepts.
[[nodiscard]] Gap gap_of_outputs(const LayerOutput& one, std::span<const std::int64_t> one_rows,
                                 const LayerOutput& other, std::span<const std::int64_t> other_rows,
                                 std::span<const std::uint8_t> by_row);

}  // namespace tensorkey::internal
