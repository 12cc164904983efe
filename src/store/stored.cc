#include "store/stored.h"

#include <limits>

#include "store/half.h"
#include "store/lossless.h"

namespace tensorkey::internal {
namespace {

// Bytes of the elements, or a problem.
Stored shape_size(const TensorParts& tensor) {
  // Dims are multiplied apart from zeros, so that (2^62, 2^62, 0) is refused wherever it is read.
  std::size_t bytes = item_size(tensor.dtype);
  bool empty = false;
  for (const std::int64_t dim : tensor.shape) {
    if (dim < 0) return {.problem = "a dim of " + std::to_string(dim) + "; expected 0 or more"};
    empty |= dim == 0;
    if (dim != 0 && (__builtin_mul_overflow(bytes, static_cast<std::size_t>(dim), &bytes) ||
                     bytes > std::numeric_limits<std::int64_t>::max())) {
      return {.problem = "the size of its shape overflows; expected less than 2^63 bytes"};
    }
  }
  return {.bytes = empty ? 0 : bytes};
}

std::string length_problem(std::size_t stored, std::size_t expected) {
  if (stored == expected) return {};
  return std::to_string(stored) + " stored bytes; expected " + std::to_string(expected);
}

}  // namespace

Stored check_stored(const TensorParts& tensor) {
  const auto number = [](auto id) { return std::to_string(static_cast<unsigned>(id)); };
  if (item_size(tensor.dtype) == 0) {
    return {.problem = "dtype id " + number(tensor.dtype) + "; expected a known one"};
  }
  if (tensor.strides > Strides::kFirstDimFastest) {
    return {.problem = "strides class " + number(tensor.strides) + "; expected 0 or 1"};
  }
  if (tensor.shape.size() > kMaxRank) {
    return {.problem = "rank " + std::to_string(tensor.shape.size()) + "; expected at most 64"};
  }
  Stored stored = shape_size(tensor);
  if (!stored.problem.empty()) return stored;
  const std::size_t size = tensor.data.size();
  switch (tensor.codec) {
    case Codec::kRaw: stored.problem = length_problem(size, stored.bytes); return stored;
    case Codec::kLossless:
      if (size >= stored.bytes) {
        stored.problem = std::to_string(size) + " compressed bytes; expected fewer than " +
                         std::to_string(stored.bytes);
      } else {
        stored.problem = frame_problem(tensor.data, stored.bytes);
      }
      return stored;
    case Codec::kFloat16:
    case Codec::kBFloat16:
      if (!can_halve(tensor.dtype) || stored.bytes == 0) {
        stored.problem =
            "a half precision codec; expected it with float32, float64, complex64 or "
            "complex128 elements alone";
      } else {
        stored.problem = length_problem(size, halved_size(tensor.dtype, stored.bytes));
      }
      return stored;
  }
  stored.problem = "codec id " + number(tensor.codec) + "; expected 0 to 3";
  return stored;
}

}  // namespace tensorkey::internal
