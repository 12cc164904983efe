// BLAKE3's compression in plain C++: for CPUs without SIMD, and what the SIMD targets are tested
// against.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "digest/blake3_kernels.h"

namespace tensorkey::internal {
namespace {

using Words16 = std::array<std::uint32_t, 16>;

constexpr std::uint32_t from_little(std::uint32_t word) noexcept {
  return std::endian::native == std::endian::little ? word : __builtin_bswap32(word);
}

void mix(Words16& v, std::size_t a, std::size_t b, std::size_t c, std::size_t d, std::uint32_t x,
         std::uint32_t y) noexcept {
  v[a] += v[b] + x;
  v[d] = std::rotr(v[d] ^ v[a], 16);
  v[c] += v[d];
  v[b] = std::rotr(v[b] ^ v[c], 12);
  v[a] += v[b] + y;
  v[d] = std::rotr(v[d] ^ v[a], 8);
  v[c] += v[d];
  v[b] = std::rotr(v[b] ^ v[c], 7);
}

void compress_block(Words8& cv, const Words16& m, std::uint64_t counter, std::uint32_t length,
                    std::uint32_t flags) noexcept {
  Words16 v = {cv[0],
               cv[1],
               cv[2],
               cv[3],
               cv[4],
               cv[5],
               cv[6],
               cv[7],
               kIv[0],
               kIv[1],
               kIv[2],
               kIv[3],
               static_cast<std::uint32_t>(counter),
               static_cast<std::uint32_t>(counter >> 32),
               length,
               flags};
  for (const auto& s : kSchedule) {
    mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
    mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
    mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
    mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
    mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
    mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
    mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
    mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
  }
  for (std::size_t i = 0; i < 8; ++i) cv[i] = v[i] ^ v[i + 8];
}

void compress(const Batch& batch, Lanes& lanes, std::size_t /*count is 1*/) noexcept {
  const std::uint64_t counter = std::uint64_t{lanes.counter_high[0]} << 32 | lanes.counter_low[0];
  Words8 cv = *batch.key;
  std::uint32_t flags = batch.flags | batch.first_flags;
  std::size_t at = 0;
  while (true) {
    const std::size_t length = std::min(batch.length - at, kBlockBytes);
    const bool last = at + length == batch.length;
    Words16 m{};
    if (length != 0) std::memcpy(m.data(), lanes.in[0] + at, length);
    for (std::uint32_t& word : m) word = from_little(word);
    compress_block(cv, m, counter, static_cast<std::uint32_t>(length),
                   last ? flags | batch.last_flags : flags);
    if (last) break;
    at += length;
    flags = batch.flags;
  }
  for (std::uint32_t& word : cv) word = from_little(word);
  std::memcpy(lanes.out[0], cv.data(), kCvBytes);
}

}  // namespace

const Kernels& portable_kernels() noexcept {
  static constexpr Kernels kKernels = {.width = 1, .compress = compress};
  return kKernels;
}

}  // namespace tensorkey::internal
