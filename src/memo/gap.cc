#include "memo/gap.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

#include "memo/numbers.h"
#include "view/walk.h"

namespace tensorkey {
namespace internal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Rows of a tensor as bytes, one at a time.
class RowBytes {
 public:
  explicit RowBytes(const TensorView& tensor) : tensor_(tensor) {}
  [[nodiscard]] std::span<const std::byte> operator[](std::int64_t row) {
    return logical_bytes(row_view(tensor_, row), scratch_);
  }

 private:
  TensorView tensor_;
  std::vector<std::byte> scratch_;
};

bool same_bytes(std::span<const std::byte> one, std::span<const std::byte> other) {
  return one.empty() || std::memcmp(one.data(), other.data(), one.size()) == 0;
}

bool same_rows(const TensorView& one, const TensorView& other) {
  return one.dtype == other.dtype && one.dtype_params == other.dtype_params &&
         std::ranges::equal(one.shape.subspan(1), other.shape.subspan(1));
}

// The largest difference of numbers that are not equal; infinity where one is NaN alone.
double apart(std::span<const double> one, std::span<const double> other) {
  double largest = 0;
  for (std::size_t i = 0; i < one.size(); ++i) {
    if (one[i] == other[i] || (std::isnan(one[i]) && std::isnan(other[i]))) continue;
    const double difference = std::abs(one[i] - other[i]);
    if (!std::isfinite(difference)) return kInfinity;
    largest = std::max(largest, difference);
  }
  return largest;
}

// A whole tensor as the only row of another.
class AsRow {
 public:
  explicit AsRow(const TensorView& tensor) : view_(tensor), shape_{1} {
    check_view(tensor, "CachedLayer");
    shape_.insert(shape_.end(), tensor.shape.begin(), tensor.shape.end());
    if (!tensor.strides.empty()) {
      strides_.push_back(0);
      strides_.insert(strides_.end(), tensor.strides.begin(), tensor.strides.end());
    }
    view_.shape = shape_;
    view_.strides = strides_;
  }
  AsRow(const AsRow&) = delete;
  AsRow& operator=(const AsRow&) = delete;
  [[nodiscard]] const TensorView& view() const noexcept { return view_; }

 private:
  TensorView view_;
  std::vector<std::int64_t> shape_;
  std::vector<std::int64_t> strides_;
};

double largest_of(std::span<const double> numbers) {
  double largest = 0;
  for (const double number : numbers) {
    if (std::isfinite(number)) largest = std::max(largest, std::abs(number));
  }
  return largest;
}

// What 64-bit integers differ by is lost in doubles where they are large.
double integers_apart(std::span<const std::byte> one, std::span<const std::byte> other,
                      std::span<const double> one_numbers, std::span<const double> other_numbers) {
  const double difference = apart(one_numbers, other_numbers);
  return difference > 0 || same_bytes(one, other) ? difference : 1;
}

}  // namespace

Gap gap_of_rows(const TensorView& one, std::span<const std::int64_t> one_rows,
                const TensorView& other, std::span<const std::int64_t> other_rows,
                std::vector<std::uint8_t>& differs) {
  const std::size_t count = one_rows.size();
  const NumberInfo info = number_info(one.dtype);
  if (!same_rows(one, other)) {
    std::ranges::fill(differs, std::uint8_t{1});
    return {.rows = count, .ulps = kInfinity, .absolute = kInfinity, .limit = info.limit};
  }
  RowBytes left(one);
  RowBytes right(other);
  std::uint64_t differing = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (same_bytes(left[one_rows[i]], right[other_rows[i]])) continue;
    ++differing;
    differs[i] = 1;
  }
  Gap result{.rows = differing, .limit = info.limit};
  if (differing == 0) return result;
  result.ulps = kInfinity;
  result.absolute = kInfinity;
  if (info.kind == NumberKind::kOther) return result;
  double difference = 0;
  double largest = 0;
  std::vector<double> left_numbers;
  std::vector<double> right_numbers;
  for (std::size_t i = 0; i < count; ++i) {
    left_numbers.clear();
    right_numbers.clear();
    const auto left_bytes = left[one_rows[i]];
    const auto right_bytes = right[other_rows[i]];
    append_numbers(one.dtype, left_bytes, left_numbers);
    append_numbers(one.dtype, right_bytes, right_numbers);
    largest = std::max(largest, largest_of(left_numbers));
    difference = std::max(difference,
                          info.kind == NumberKind::kInteger
                              ? integers_apart(left_bytes, right_bytes, left_numbers, right_numbers)
                              : apart(left_numbers, right_numbers));
  }
  result.absolute = difference;
  if (info.kind == NumberKind::kInteger) return result;
  if (difference == 0) {
    result.ulps = 0;
  } else if (std::isfinite(difference) && largest > 0) {
    result.ulps = difference / std::ldexp(info.epsilon, std::ilogb(largest));
  }
  return result;
}

bool same_tensor(const TensorView& one, const TensorView& other) {
  if (one.dtype != other.dtype || one.dtype_params != other.dtype_params ||
      !std::ranges::equal(one.shape, other.shape)) {
    return false;
  }
  std::vector<std::byte> left;
  std::vector<std::byte> right;
  return same_bytes(logical_bytes(one, left), logical_bytes(other, right));
}

std::string gap_text(const Gap& gap) {
  if (gap.ulps == kInfinity) return "more than rounding can";
  char number[32];
  const int length = std::snprintf(number, sizeof number, "%.3g", gap.ulps);
  return std::string(number, static_cast<std::size_t>(std::max(length, 0))) +
         " units in the last place";
}

bool is_worse(const Gap& gap, const Gap& than) noexcept {
  if (gap.rows == 0 || than.rows == 0) return gap.rows > than.rows;
  return gap.ulps / gap.limit > than.ulps / than.limit;
}

Gap gap_of_wholes(const LayerOutput& one, const LayerOutput& other) {
  static constexpr std::int64_t kFirst[] = {0};
  const auto left = one.leaves();
  const auto right = other.leaves();
  if (left.size() != right.size() || one.form() != other.form()) {
    return {.rows = 1, .ulps = kInfinity, .absolute = kInfinity};
  }
  Gap worst;
  std::vector<std::uint8_t> differs(1);
  for (std::size_t i = 0; i < left.size(); ++i) {
    const AsRow first(left[i]);
    const AsRow second(right[i]);
    Gap gap = gap_of_rows(first.view(), kFirst, second.view(), kFirst, differs);
    gap.leaf = i;
    if (is_worse(gap, worst)) worst = gap;
  }
  return worst;
}

Gap gap_of_outputs(const LayerOutput& one, std::span<const std::int64_t> one_rows,
                   const LayerOutput& other, std::span<const std::int64_t> other_rows,
                   std::span<const std::uint8_t> by_row) {
  const auto left = one.leaves();
  const auto right = other.leaves();
  std::vector<std::uint8_t> differs(one_rows.size());
  Gap worst;
  for (std::size_t i = 0; i < by_row.size(); ++i) {
    if (by_row[i] == 0) continue;
    Gap gap = gap_of_rows(left[i], one_rows, right[i], other_rows, differs);
    gap.leaf = i;
    if (is_worse(gap, worst)) worst = gap;
  }
  if (worst.rows > 0) {
    worst.rows = static_cast<std::uint64_t>(std::ranges::count(differs, std::uint8_t{1}));
  }
  return worst;
}

}  // namespace internal

Gap gap(const TensorView& one, std::span<const std::int64_t> one_rows, const TensorView& other,
        std::span<const std::int64_t> other_rows) {
  check_view(one, "gap");
  check_view(other, "gap");
  std::vector<std::uint8_t> differs(one_rows.size());
  return internal::gap_of_rows(one, one_rows, other, other_rows, differs);
}

}  // namespace tensorkey
