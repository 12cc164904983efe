#include "digest/blake3_stream.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace tensorkey::internal {

// REQUIRES: `data` is a power of two of chunks that divides chunks_, and more data follow.
void Blake3Stream::push_subtree(std::span<const std::byte> data) noexcept {
  stack_[depth_++] = subtree(mode_, data, chunks_, prefetch_for(data.size()));
  chunks_ += data.size() / kChunkBytes;
  for (; depth_ > static_cast<std::size_t>(std::popcount(chunks_)); --depth_) {
    stack_[depth_ - 2] = parent(mode_, stack_[depth_ - 2], stack_[depth_ - 1], 0);
  }
}

void Blake3Stream::update(std::span<const std::byte> piece) noexcept {
  if (piece.empty()) return;
  if (held_ != 0) {
    const std::size_t taken = std::min(buffer_.size() - held_, piece.size());
    std::memcpy(buffer_.data() + held_, piece.data(), taken);
    held_ += taken;
    piece = piece.subspan(taken);
    if (piece.empty()) return;
    push_subtree(buffer_);
    held_ = 0;
  }
  while (piece.size() > buffer_.size()) {
    std::uint64_t chunks = std::bit_floor((piece.size() - 1) / kChunkBytes);
    if (chunks_ != 0) chunks = std::min(chunks, chunks_ & (~chunks_ + 1));  // the lowest bit
    push_subtree(piece.first(static_cast<std::size_t>(chunks) * kChunkBytes));
    piece = piece.subspan(static_cast<std::size_t>(chunks) * kChunkBytes);
  }
  std::memcpy(buffer_.data(), piece.data(), piece.size());
  held_ = piece.size();
}

Digest Blake3Stream::finalize() noexcept {
  const std::span<const std::byte> rest(buffer_.data(), held_);
  if (depth_ == 0) return root(mode_, rest, 0);
  Cv node = subtree(mode_, rest, chunks_, 0);
  while (depth_ > 1) node = parent(mode_, stack_[--depth_], node, 0);
  return parent(mode_, stack_[0], node, kRoot);
}

}  // namespace tensorkey::internal
