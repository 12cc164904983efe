// BLAKE3's tree over one message in one piece. Neighbouring nodes of a level are joined two by
// two and an odd one out moves up as it is: that is the tree of the specification (a left subtree
// is the largest power of two of chunks), and whole levels go through the SIMD lanes. Internal,
// thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <tensorkey/digest.h>

#include "digest/blake3_constants.h"

namespace tensorkey::internal {

using Cv = Digest;  // a node's 32 bytes

// What all nodes of one message share.
struct Mode {
  Words8 key = kIv;
  std::uint32_t flags = 0;  // of every compression: kKeyedHash and so on
};

// keyed_hash with *key, or the plain mode if null.
[[nodiscard]] Mode mode_of(const Digest* key) noexcept;

// Bytes behind the one being read that are prefetched when the data are too long for the caches.
inline constexpr std::ptrdiff_t kPrefetchBytes = 16384;
inline constexpr std::size_t kPrefetchFrom = std::size_t{2} << 20;

[[nodiscard]] constexpr std::size_t chunk_count(std::size_t bytes) noexcept {
  return bytes == 0 ? 1 : (bytes - 1) / kChunkBytes + 1;
}

// How far ahead to prefetch in a message of that many bytes that nothing else follows.
[[nodiscard]] constexpr std::ptrdiff_t prefetch_for(std::size_t bytes) noexcept {
  return bytes > kPrefetchFrom ? kPrefetchBytes : 0;
}

// The digest of a whole message, in the calling thread.
[[nodiscard]] Digest root(const Mode& mode, std::span<const std::byte> data,
                          std::ptrdiff_t prefetch) noexcept;

// The same with up to `threads` threads.
[[nodiscard]] Digest root_threaded(const Mode& mode, std::span<const std::byte> data,
                                   unsigned threads);

// The node over `data`, a part of a message that begins with chunk `first_chunk`.
// REQUIRES: data is not empty and not the whole message.
[[nodiscard]] Cv subtree(const Mode& mode, std::span<const std::byte> data,
                         std::uint64_t first_chunk, std::ptrdiff_t prefetch) noexcept;

// The node over two nodes; extra_flags: kRoot for the last of a message.
[[nodiscard]] Cv parent(const Mode& mode, const Cv& left, const Cv& right,
                        std::uint32_t extra_flags) noexcept;

}  // namespace tensorkey::internal
