#include "memo/layer_form.h"

#include <algorithm>
#include <utility>

#include "memo/gap.h"
#include "view/walk.h"

namespace tensorkey::internal {
namespace {

bool has_rows(const TensorView& leaf, std::size_t rows) {
  return !leaf.shape.empty() && leaf.shape[0] == static_cast<std::int64_t>(rows);
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

[[noreturn]] void refuse_leaf(const LayerOutput& output, std::size_t leaf, std::size_t rows) {
  throw UnfitOutput("output leaf " + output.path(leaf) +
                    " has neither a row for each input row nor the same value for every row: "
                    "shape " +
                    shape_text(output.leaves()[leaf].shape) + " for " + std::to_string(rows) +
                    (rows == 1 ? " row" : " rows"));
}

[[noreturn]] void refuse_form() {
  throw UnfitOutput(
      "what the output is made of, beside its tensors, depends on the rows or their number");
}

}  // namespace

HostTensor host_copy(const TensorView& leaf) {
  HostTensor tensor{.dtype = leaf.dtype,
                    .params = std::string(leaf.dtype_params),
                    .shape = {leaf.shape.begin(), leaf.shape.end()}};
  const auto bytes = logical_bytes(leaf, tensor.data);
  if (bytes.data() != tensor.data.data()) tensor.data.assign(bytes.begin(), bytes.end());
  return tensor;
}

std::vector<std::uint8_t> leaves_by_row(const LayerOutput& one, std::size_t one_rows,
                                        const LayerOutput& other, std::size_t other_rows) {
  const auto left = one.leaves();
  const auto right = other.leaves();
  if (left.size() != right.size()) refuse_form();
  std::vector<std::uint8_t> by_row(left.size());
  for (std::size_t i = 0; i < left.size(); ++i) {
    by_row[i] = has_rows(left[i], one_rows) && has_rows(right[i], other_rows) &&
                        std::ranges::equal(left[i].shape.subspan(1), right[i].shape.subspan(1))
                    ? 1
                    : 0;
  }
  check_output(form_of(one, one_rows, by_row), other, other_rows);
  return by_row;
}

Form form_of(const LayerOutput& output, std::size_t rows, std::vector<std::uint8_t> by_row) {
  const auto leaves = output.leaves();
  if (leaves.size() != by_row.size()) refuse_form();
  Form form{.bytes = output.form(), .by_row = std::move(by_row), .constants = {}};
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    check_view(leaves[i], "CachedLayer");
    if (form.by_row[i] == 0) {
      form.constants.push_back(host_copy(leaves[i]));
    } else if (!has_rows(leaves[i], rows)) {
      refuse_leaf(output, i, rows);
    }
  }
  return form;
}

void check_output(const Form& form, const LayerOutput& output, std::size_t rows) {
  const auto leaves = output.leaves();
  if (leaves.size() != form.by_row.size() || output.form() != form.bytes) refuse_form();
  std::size_t constant = 0;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    check_view(leaves[i], "CachedLayer");
    const bool fits = form.by_row[i] != 0
                          ? has_rows(leaves[i], rows)
                          : same_tensor(form.constants[constant++].view(), leaves[i]);
    if (!fits) refuse_leaf(output, i, rows);
  }
}

std::vector<TensorView> row_leaves(const Form& form, const LayerOutput& output) {
  const auto leaves = output.leaves();
  std::vector<TensorView> rows;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (form.by_row[i] != 0) rows.push_back(leaves[i]);
  }
  return rows;
}

}  // namespace tensorkey::internal
