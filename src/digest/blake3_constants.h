// The numbers of BLAKE3 (section 2 of its paper), shared by every implementation of the
// compression function.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace tensorkey::internal {

inline constexpr std::size_t kBlockBytes = 64;
inline constexpr std::size_t kChunkBytes = 1024;
inline constexpr std::size_t kCvBytes = 32;  // a chaining value: what a node of the tree passes up

using Words8 = std::array<std::uint32_t, 8>;

// The initial value: also the key of the plain mode.
inline constexpr Words8 kIv = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                               0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

// Domain flags of a compression.
enum Flag : std::uint32_t {
  kChunkStart = 1,
  kChunkEnd = 2,
  kParent = 4,
  kRoot = 8,
  kKeyedHash = 16,
  kDeriveContext = 32,
  kDeriveMaterial = 64,
};

// kSchedule[r][i]: the message word that step i of round r uses: the permutation applied r times.
inline constexpr auto kSchedule = [] {
  constexpr std::array<std::size_t, 16> kPermutation = {2, 6,  3,  10, 7, 0,  4,  13,
                                                        1, 11, 12, 5,  9, 14, 15, 8};
  std::array<std::array<std::size_t, 16>, 7> schedule{};
  for (std::size_t i = 0; i < 16; ++i) schedule[0][i] = i;
  for (std::size_t round = 1; round < 7; ++round) {
    for (std::size_t i = 0; i < 16; ++i) {
      schedule[round][i] = schedule[round - 1][kPermutation[i]];
    }
  }
  return schedule;
}();

}  // namespace tensorkey::internal
