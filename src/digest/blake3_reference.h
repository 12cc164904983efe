// For tests: BLAKE3 as its paper tells it, one block after the other and the tree by recursion,
// sharing nothing with the library, not even the constants.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <tensorkey/digest.h>

namespace tensorkey::reference {

using Words = std::vector<std::uint32_t>;

inline const Words kInitial = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                               0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

inline Words words_of(std::span<const std::byte> bytes, std::size_t count) {
  Words words(count);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    words[i / 4] |= std::to_integer<std::uint32_t>(bytes[i]) << (8 * (i % 4));
  }
  return words;
}

inline Words compress(const Words& cv, Words m, std::uint64_t t, std::size_t length,
                      std::uint32_t flags) {
  Words v = cv;
  v.insert(v.end(), kInitial.begin(), kInitial.begin() + 4);
  v.push_back(static_cast<std::uint32_t>(t));
  v.push_back(static_cast<std::uint32_t>(t >> 32));
  v.push_back(static_cast<std::uint32_t>(length));
  v.push_back(flags);
  const auto g = [&](std::size_t a, std::size_t b, std::size_t c, std::size_t d, std::size_t i) {
    v[a] = v[a] + v[b] + m[i];
    v[d] = std::rotr(v[d] ^ v[a], 16);
    v[c] = v[c] + v[d];
    v[b] = std::rotr(v[b] ^ v[c], 12);
    v[a] = v[a] + v[b] + m[i + 1];
    v[d] = std::rotr(v[d] ^ v[a], 8);
    v[c] = v[c] + v[d];
    v[b] = std::rotr(v[b] ^ v[c], 7);
  };
  for (int round = 0; round < 7; ++round) {
    for (std::size_t i = 0; i < 4; ++i) g(i, 4 + i, 8 + i, 12 + i, 2 * i);
    for (std::size_t i = 0; i < 4; ++i) {
      g(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, 8 + 2 * i);
    }
    m = {m[2], m[6],  m[3],  m[10], m[7], m[0],  m[4],  m[13],
         m[1], m[11], m[12], m[5],  m[9], m[14], m[15], m[8]};
  }
  for (std::size_t i = 0; i < 8; ++i) v[i] ^= v[i + 8];
  v.resize(8);
  return v;
}

// flags: 16 keyed, 32 context, 64 material; 8 is added for the root.
inline Words node(const Words& key, std::uint32_t flags, std::span<const std::byte> data,
                  std::uint64_t chunk, bool is_root) {
  const std::uint32_t root = is_root ? 8 : 0;
  if (data.size() <= 1024) {
    Words cv = key;
    std::size_t at = 0;
    do {
      const std::size_t length = std::min<std::size_t>(64, data.size() - at);
      const bool last = at + length == data.size();
      cv = compress(cv, words_of(data.subspan(at, length), 16), chunk, length,
                    flags | (at == 0 ? 1U : 0U) | (last ? 2U | root : 0U));
      at += length;
    } while (at < data.size());
    return cv;
  }
  std::size_t left = 1024;
  while (2 * left < data.size()) left *= 2;
  Words children = node(key, flags, data.first(left), chunk, false);
  const Words right = node(key, flags, data.subspan(left), chunk + left / 1024, false);
  children.insert(children.end(), right.begin(), right.end());
  return compress(key, children, 0, 64, flags | 4 | root);
}

inline Digest digest_of(const Words& words) {
  Digest digest;
  for (std::size_t i = 0; i < 32; ++i) {
    digest[i] = static_cast<std::uint8_t>(words[i / 4] >> (8 * (i % 4)));
  }
  return digest;
}

inline Digest blake3(std::span<const std::byte> data, const Digest* key = nullptr) {
  if (key == nullptr) return digest_of(node(kInitial, 0, data, 0, true));
  return digest_of(node(words_of(std::as_bytes(std::span(*key)), 8), 16, data, 0, true));
}

inline Digest derive_key(std::span<const std::byte> context, std::span<const std::byte> material) {
  return digest_of(node(node(kInitial, 32, context, 0, true), 64, material, 0, true));
}

}  // namespace tensorkey::reference
