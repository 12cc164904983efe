// Where keys land in a table of this process. Keys are digests, but a caller may make up his own:
// with secret seeds nobody knows which of them meet. NH (Black et al., "UMAC", CRYPTO 1999) over
// words of 8 bytes, one seed for each.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>

namespace tensorkey::internal {

template <std::size_t kWords>
using HashSeeds = std::array<std::uint64_t, kWords>;

template <std::size_t kWords>
[[nodiscard]] HashSeeds<kWords> random_seeds() {
  std::random_device random;
  HashSeeds<kWords> seeds;
  for (std::uint64_t& seed : seeds) seed = (std::uint64_t{random()} << 32) | random();
  return seeds;
}

// Reads 8 * kWords bytes. The upper and the lower half of the result are mixed, apart from each
// other.
template <std::size_t kWords>
[[nodiscard]] inline std::uint64_t seeded_hash(const void* bytes,
                                               const HashSeeds<kWords>& seeds) noexcept {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < kWords; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, static_cast<const std::byte*>(bytes) + i * sizeof word, sizeof word);
    word += seeds[i];
    sum += (word >> 32) * (word & 0xffffffff);
  }
  sum *= 0x9e3779b97f4a7c15;
  return sum ^ (sum >> 32);
}

}  // namespace tensorkey::internal
