#include "digest/blake3_rows.h"

#include <algorithm>
#include <cstdlib>

#include "digest/blake3_kernels.h"

namespace tensorkey::internal {
namespace {

// Nodes of a group of rows, kept on the stack: 16 KiB.
constexpr std::size_t kGroupNodes = 512;

// From here on one row fills the lanes by itself, and its last few joins cost little.
constexpr std::size_t kManyChunks = 64;

std::byte* bytes_of(Cv& cv) noexcept { return std::as_writable_bytes(std::span(cv)).data(); }

const std::byte* row(const RowSpan& rows, std::size_t i) noexcept {
  return rows.data + static_cast<std::ptrdiff_t>(i) * rows.stride;
}

// How far to look ahead: to where the same lane will read kPrefetchBytes or more from now, when
// `chunks` chunks of each row are read in a batch.
std::ptrdiff_t look_ahead(const RowSpan& rows, std::size_t width, std::size_t chunks) noexcept {
  std::ptrdiff_t step = 0;
  if (rows.count < 2 || chunks == 0 || __builtin_mul_overflow(rows.stride, width, &step)) return 0;
  step /= static_cast<std::ptrdiff_t>(chunks);
  if (step == 0) return 0;
  return step * ((kPrefetchBytes - 1) / std::abs(step) + 1);
}

void short_rows(const Mode& mode, const RowSpan& rows, std::span<Digest> out) noexcept {
  const Kernels& target = kernels();
  LaneQueue queue(target, {.key = &mode.key,
                           .length = rows.bytes,
                           .flags = mode.flags,
                           .first_flags = kChunkStart,
                           .last_flags = kChunkEnd | kRoot,
                           .prefetch = look_ahead(rows, target.width, 1)});
  for (std::size_t i = 0; i < rows.count; ++i) queue.push(row(rows, i), bytes_of(out[i]), 0);
  queue.flush();
}

// All chunks of all rows of the group, into nodes[row * chunks + chunk].
void group_leaves(const Mode& mode, const RowSpan& rows, Cv* nodes) noexcept {
  const Kernels& target = kernels();
  const std::size_t chunks = chunk_count(rows.bytes);
  const std::size_t whole = rows.bytes / kChunkBytes;
  Batch batch{.key = &mode.key,
              .length = kChunkBytes,
              .flags = mode.flags,
              .first_flags = kChunkStart,
              .last_flags = kChunkEnd,
              .prefetch = look_ahead(rows, target.width, whole)};
  LaneQueue first(target, batch);
  for (std::size_t i = 0; i < rows.count; ++i) {
    for (std::size_t c = 0; c < whole; ++c) {
      first.push(row(rows, i) + c * kChunkBytes, bytes_of(nodes[i * chunks + c]), c);
    }
  }
  first.flush();
  if (whole == chunks) return;
  batch.length = rows.bytes % kChunkBytes;
  batch.prefetch = look_ahead(rows, target.width, 1);
  LaneQueue last(target, batch);
  for (std::size_t i = 0; i < rows.count; ++i) {
    last.push(row(rows, i) + whole * kChunkBytes, bytes_of(nodes[i * chunks + whole]), whole);
  }
  last.flush();
}

// Joins the nodes of each row, level by level, across all rows of the group.
void group_roots(const Mode& mode, std::size_t chunks, Cv* nodes, std::span<Digest> out) noexcept {
  for (std::size_t count = chunks; count > 1; count = (count + 1) / 2) {
    const bool top = count == 2;
    LaneQueue queue(kernels(), {.key = &mode.key,
                                .length = kBlockBytes,
                                .flags = mode.flags | kParent,
                                .first_flags = 0,
                                .last_flags = top ? kRoot : 0U});
    for (std::size_t i = 0; i < out.size(); ++i) {
      Cv* const level = nodes + i * chunks;
      for (std::size_t n = 0; n + 1 < count; n += 2) {
        queue.push(bytes_of(level[n]), bytes_of(top ? out[i] : level[n / 2]), 0);
      }
    }
    queue.flush();
    if (count % 2 != 0) {
      for (std::size_t i = 0; i < out.size(); ++i) {
        nodes[i * chunks + count / 2] = nodes[i * chunks + count - 1];
      }
    }
  }
}

}  // namespace

void roots(const Mode& mode, const RowSpan& rows, std::span<Digest> out) noexcept {
  const std::size_t chunks = chunk_count(rows.bytes);
  if (chunks == 1) return short_rows(mode, rows, out);
  if (chunks >= kManyChunks) {
    for (std::size_t i = 0; i < rows.count; ++i) {
      out[i] = root(mode, {row(rows, i), rows.bytes}, kPrefetchBytes);
    }
    return;
  }
  Cv nodes[kGroupNodes];
  const std::size_t most = kGroupNodes / chunks;
  for (std::size_t at = 0; at < rows.count; at += most) {
    const std::size_t count = std::min(most, rows.count - at);
    const RowSpan group{
        .data = row(rows, at), .count = count, .bytes = rows.bytes, .stride = rows.stride};
    group_leaves(mode, group, nodes);
    group_roots(mode, chunks, nodes, out.subspan(at, count));
  }
}

}  // namespace tensorkey::internal
