// What an output is made of: which of its leaves have a row for each input row, the others, which
// are the same for every row, and how the frontend puts them together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <tensorkey/error.h>
#include <tensorkey/layer.h>

namespace tensorkey::internal {

// An output that cannot be kept row by row; the text names the leaf.
class UnfitOutput final : public Error {
 public:
  explicit UnfitOutput(const std::string& why)
      : Error(ErrorCode::kInvalidArgument, "[CachedLayer] " + why) {}
};

// A tensor of its own, in C order.
struct HostTensor {
  DType dtype = DType::kUInt8;
  std::string params = {};
  std::vector<std::int64_t> shape = {};
  std::vector<std::byte> data = {};

  [[nodiscard]] TensorView view() const noexcept {
    return {.data = data.data(), .dtype = dtype, .shape = shape, .dtype_params = params};
  }
};

[[nodiscard]] HostTensor host_copy(const TensorView& leaf);

struct Form {
  std::string bytes;                  // the frontend's
  std::vector<std::uint8_t> by_row;   // of each leaf: 1 or 0
  std::vector<HostTensor> constants;  // the leaves that are not by row, in order
};

// Which leaves of an output are by row: their first dim follows the number of rows in two outputs
// of the same row, and nothing else does. Throws UnfitOutput for a leaf that is neither by row nor
// equal in both.
[[nodiscard]] std::vector<std::uint8_t> leaves_by_row(const LayerOutput& one, std::size_t one_rows,
                                                      const LayerOutput& other,
                                                      std::size_t other_rows);

// Copies what is the same for every row. Throws UnfitOutput unless `output` has as many leaves and
// `rows` rows in those that are by row.
[[nodiscard]] Form form_of(const LayerOutput& output, std::size_t rows,
                           std::vector<std::uint8_t> by_row);

// Throws UnfitOutput unless form_of() would be the same.
void check_output(const Form& form, const LayerOutput& output, std::size_t rows);

// The leaves that are by row.
[[nodiscard]] std::vector<TensorView> row_leaves(const Form& form, const LayerOutput& output);

}  // namespace tensorkey::internal
