// Incremental BLAKE3 for data that comes in pieces: strided walks. Internal: whoever holds the
// bytes in one piece calls blake3(). Not thread-safe; each piece is hashed with all SIMD lanes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include <tensorkey/digest.h>

#include "digest/blake3_tree.h"

namespace tensorkey::internal {

class Blake3Stream {
 public:
  // key: null for the plain mode, else 32 bytes for keyed_hash (copied).
  explicit Blake3Stream(const Digest* key = nullptr) noexcept : mode_(mode_of(key)) {}
  explicit Blake3Stream(const Mode& mode) noexcept : mode_(mode) {}

  void update(std::span<const std::byte> piece) noexcept;

  // The digest of all pieces so far; may be called once.
  [[nodiscard]] Digest finalize() noexcept;

 private:
  void push_subtree(std::span<const std::byte> data) noexcept;

  // The data fall into a part that is hashed (chunks_ chunks, always a multiple of kHeldChunks)
  // and one that is held back: it may be the end of the message, where the root lies.
  static constexpr std::size_t kHeldChunks = 16;
  static constexpr std::size_t kMaxDepth = 54;  // 2^54 chunks are 2^64 bytes

  Mode mode_;
  std::uint64_t chunks_ = 0;
  std::size_t depth_ = 0;
  std::size_t held_ = 0;
  std::array<Cv, kMaxDepth> stack_;  // complete subtrees, one for each bit set in chunks_
  std::array<std::byte, kHeldChunks * kChunkBytes> buffer_;
};

}  // namespace tensorkey::internal
