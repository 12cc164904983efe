// Byte shuffle and zstd: the bytes of each element are put apart (all first bytes, then all second
// bytes, ...), because the exponents of neighbouring floats compress well and their last mantissa
// bytes do not at all; then one zstd frame that declares its content size. The only place that
// knows zstd.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace tensorkey::internal {

// Replaces `out` by the frame and returns true; false if it would not be smaller than the elements.
// REQUIRES: elements.size() is a multiple of item_size.
bool compress(std::span<const std::byte> elements, std::size_t item_size,
              std::vector<std::byte>& out);

// What is wrong with this frame of so many bytes of elements, without decompressing: empty if it is
// exactly one zstd frame that declares this size.
[[nodiscard]] std::string frame_problem(std::span<const std::byte> frame, std::size_t bytes);

// Whether the frame decompressed to exactly out.size() bytes of elements.
// REQUIRES: frame_problem(frame, out.size()) is empty.
[[nodiscard]] bool decompress(std::span<const std::byte> frame, std::size_t item_size,
                              std::span<std::byte> out);

}  // namespace tensorkey::internal
