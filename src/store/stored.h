// The rules that a stored tensor keeps, checked in one place for whoever writes and whoever reads.
#pragma once

#include <cstddef>
#include <string>

#include <tensorkey/entry.h>

namespace tensorkey::internal {

inline constexpr std::size_t kMaxRank = 64;

struct Stored {
  std::size_t bytes = 0;     // of the elements once decoded
  std::string problem = {};  // what is wrong and what would be right; empty: nothing
};

// dtype, codec, strides, rank, dims and the length of the data go together. Nothing is decompressed
// and, unless there is a problem, nothing allocated.
[[nodiscard]] Stored check_stored(const TensorParts& tensor);

}  // namespace tensorkey::internal
