#include "digest/blake3_tree.h"

#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "digest/blake3_kernels.h"
#include "digest/workers.h"

namespace tensorkey::internal {
namespace {

// Chunks whose nodes are kept on the stack and joined level by level; longer data are halved.
constexpr std::size_t kLeafChunks = 512;

// The shortest part of a chunk that is worth going beside a whole one.
constexpr std::size_t kPartFrom = 256;

// What one thread takes at a time: a subtree of this many chunks.
constexpr std::size_t kUnitChunks = 1024;

std::byte* bytes_of(Cv& cv) noexcept { return std::as_writable_bytes(std::span(cv)).data(); }

Words8 words_of(const Digest& bytes) noexcept {
  Words8 words;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const auto* b = bytes.data() + 4 * i;
    words[i] = static_cast<std::uint32_t>(b[0]) | static_cast<std::uint32_t>(b[1]) << 8 |
               static_cast<std::uint32_t>(b[2]) << 16 | static_cast<std::uint32_t>(b[3]) << 24;
  }
  return words;
}

// The chunks of `data`, into nodes[0..chunk_count). The last chunk may be short.
void leaves(const Mode& mode, std::span<const std::byte> data, std::uint64_t first_chunk,
            std::ptrdiff_t prefetch, Cv* nodes) noexcept {
  Batch batch{.key = &mode.key,
              .length = kChunkBytes,
              .flags = mode.flags,
              .first_flags = kChunkStart,
              .last_flags = kChunkEnd,
              .prefetch = prefetch};
  const std::size_t whole = data.size() / kChunkBytes;
  LaneQueue queue(kernels(), batch);
  for (std::size_t i = 0; i < whole; ++i) {
    queue.push(data.data() + i * kChunkBytes, bytes_of(nodes[i]), first_chunk + i);
  }
  queue.flush();
  batch.length = data.size() % kChunkBytes;
  if (batch.length != 0) {
    compress_one(batch, data.data() + whole * kChunkBytes, bytes_of(nodes[whole]),
                 first_chunk + whole);
  }
}

// A chunk and a part of one, such as 384 floats: the blocks of the part but its last go beside the
// chunk's, then each goes on alone from the value reached. A quarter quicker than one by one.
void chunk_and_part(const Mode& mode, std::span<const std::byte> data, Cv* nodes) noexcept {
  const std::size_t part = data.size() - kChunkBytes;
  const std::size_t together = (part - 1) / kBlockBytes * kBlockBytes;
  Lanes lanes;
  lanes.set(0, data.data(), bytes_of(nodes[0]), 0);
  lanes.set(1, data.data() + kChunkBytes, bytes_of(nodes[1]), 1);
  kernels().compress({.key = &mode.key,
                      .length = together,
                      .flags = mode.flags,
                      .first_flags = kChunkStart,
                      .last_flags = 0},
                     lanes, 2);
  for (std::size_t i = 0; i < 2; ++i) {
    const Words8 reached = words_of(nodes[i]);
    compress_one({.key = &reached,
                  .length = (i == 0 ? kChunkBytes : part) - together,
                  .flags = mode.flags,
                  .first_flags = 0,
                  .last_flags = kChunkEnd},
                 data.data() + i * kChunkBytes + together, bytes_of(nodes[i]), i);
  }
}

// Joins `count` nodes two by two, in place; returns how many are left.
std::size_t join_level(const Mode& mode, Cv* nodes, std::size_t count) noexcept {
  LaneQueue queue(kernels(), {.key = &mode.key,
                              .length = kBlockBytes,
                              .flags = mode.flags | kParent,
                              .first_flags = 0,
                              .last_flags = 0});
  for (std::size_t i = 0; i + 1 < count; i += 2) {
    queue.push(bytes_of(nodes[i]), bytes_of(nodes[i / 2]), 0);
  }
  queue.flush();
  if (count % 2 != 0) nodes[count / 2] = nodes[count - 1];
  return (count + 1) / 2;
}

// Bytes of the left subtree of more than one chunk.
std::size_t left_bytes(std::size_t bytes) noexcept {
  return std::bit_floor((bytes - 1) / kChunkBytes) * kChunkBytes;
}

}  // namespace

Mode mode_of(const Digest* key) noexcept {
  if (key == nullptr) return {};
  return {.key = words_of(*key), .flags = kKeyedHash};
}

Cv parent(const Mode& mode, const Cv& left, const Cv& right, std::uint32_t extra_flags) noexcept {
  std::array<Cv, 2> pair = {left, right};
  compress_one({.key = &mode.key,
                .length = kBlockBytes,
                .flags = mode.flags | kParent,
                .first_flags = 0,
                .last_flags = extra_flags},
               bytes_of(pair[0]), bytes_of(pair[0]), 0);
  return pair[0];
}

Cv subtree(const Mode& mode, std::span<const std::byte> data, std::uint64_t first_chunk,
           std::ptrdiff_t prefetch) noexcept {
  if (data.size() > kLeafChunks * kChunkBytes) {
    const std::size_t left = left_bytes(data.size());
    const Cv l = subtree(mode, data.first(left), first_chunk, prefetch);
    const Cv r = subtree(mode, data.subspan(left), first_chunk + left / kChunkBytes, prefetch);
    return parent(mode, l, r, 0);
  }
  Cv nodes[kLeafChunks];
  leaves(mode, data, first_chunk, prefetch, nodes);
  std::size_t count = chunk_count(data.size());
  while (count > 1) count = join_level(mode, nodes, count);
  return nodes[0];
}

Digest root(const Mode& mode, std::span<const std::byte> data, std::ptrdiff_t prefetch) noexcept {
  if (data.size() > kLeafChunks * kChunkBytes) {
    const std::size_t left = left_bytes(data.size());
    const Cv l = subtree(mode, data.first(left), 0, prefetch);
    const Cv r = subtree(mode, data.subspan(left), left / kChunkBytes, prefetch);
    return parent(mode, l, r, kRoot);
  }
  if (data.size() <= kChunkBytes) {
    Digest digest;
    compress_one({.key = &mode.key,
                  .length = data.size(),
                  .flags = mode.flags,
                  .first_flags = kChunkStart,
                  .last_flags = kChunkEnd | kRoot},
                 data.data(), bytes_of(digest), 0);
    return digest;
  }
  Cv nodes[kLeafChunks];
  const bool has_part = data.size() >= kChunkBytes + kPartFrom && data.size() < 2 * kChunkBytes;
  if (has_part && kernels().width > 1) {
    chunk_and_part(mode, data, nodes);
  } else {
    leaves(mode, data, 0, prefetch, nodes);
  }
  std::size_t count = chunk_count(data.size());
  while (count > 2) count = join_level(mode, nodes, count);
  return parent(mode, nodes[0], nodes[1], kRoot);
}

Digest root_threaded(const Mode& mode, std::span<const std::byte> data, unsigned threads) {
  constexpr std::size_t kUnitBytes = kUnitChunks * kChunkBytes;
  const std::size_t units = (data.size() + kUnitBytes - 1) / kUnitBytes;
  if (threads <= 1 || units < 2) return root(mode, data, kPrefetchBytes);
  std::vector<Cv> nodes(units);
  const auto work = [&](std::size_t i) noexcept {
    const std::size_t at = i * kUnitBytes;
    nodes[i] = subtree(mode, data.subspan(at, std::min(kUnitBytes, data.size() - at)),
                       i * kUnitChunks, kPrefetchBytes);
  };
  run_units(threads, units, work);
  std::size_t count = units;
  while (count > 2) count = join_level(mode, nodes.data(), count);
  return parent(mode, nodes[0], nodes[1], kRoot);
}

}  // namespace tensorkey::internal
