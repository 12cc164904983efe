// Tensors built to collide in XXH3-128 are kept apart. Whoever writes down such a pair needs only
// the public secret of the unseeded hash: a lane whose high half equals the secret's multiplies by
// zero, so what is added to its low half in one stripe can be taken away in another of the block.
#include <gtest/gtest.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include <tensorkey/map.h>

namespace tensorkey {
namespace {

using Bytes = std::vector<unsigned char>;

void put64(Bytes& bytes, std::size_t at, std::uint64_t value) {
  std::memcpy(&bytes[at], &value, sizeof value);
}

// REQUIRES: more than 240 bytes, and stripes p < q of the first block that end 64 bytes before the
// last byte.
std::pair<Bytes, Bytes> colliding(std::size_t size, std::size_t p, std::size_t q, std::size_t lane,
                                  std::mt19937& random) {
  Bytes a(size);
  for (auto& byte : a) byte = static_cast<unsigned char>(random());
  Bytes b = a;
  const auto lane_of = [&](std::size_t stripe, std::uint32_t low) {
    std::uint64_t secret;
    std::memcpy(&secret, XXH3_kSecret + 8 * stripe + 8 * lane, sizeof secret);
    return (secret & 0xFFFFFFFF00000000u) | low;
  };
  const auto draw = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
  const std::uint32_t c = 1 + draw(1000), low_p = draw(1000000), low_q = 1000 + draw(1000000);
  put64(a, p * 64 + lane * 8, lane_of(p, low_p));
  put64(a, q * 64 + lane * 8, lane_of(q, low_q));
  put64(b, p * 64 + lane * 8, lane_of(p, low_p + c));
  put64(b, q * 64 + lane * 8, lane_of(q, low_q - c));
  return {a, b};
}

TEST(MapCollision, ConstructedPairsOfUnseededXxh3AreKeptApart) {
  std::mt19937 random(5);
  int pairs = 0;
  for (const std::size_t size : {512u, 513u, 1536u, 4096u, 4099u, 1u << 20}) {
    for (int trial = 0; trial < 20; ++trial) {
      const std::size_t stripes = std::min<std::size_t>(16, (size - 64) / 64);
      const std::size_t p = random() % (stripes - 1);
      const std::size_t q = p + 1 + random() % (stripes - 1 - p);
      const auto [a, b] = colliding(size, p, q, random() % 8, random);
      ASSERT_NE(a, b);
      const XXH128_hash_t hash_a = XXH3_128bits(a.data(), size);
      const XXH128_hash_t hash_b = XXH3_128bits(b.data(), size);
      ASSERT_TRUE(XXH128_isEqual(hash_a, hash_b)) << "no collision: the test proves nothing";
      ASSERT_EQ(XXH3_64bits(a.data(), size), XXH3_64bits(b.data(), size));

      const std::int64_t shape[] = {static_cast<std::int64_t>(size)};
      for (const std::uint64_t mask : {~std::uint64_t{0}, std::uint64_t{0}}) {
        TensorKeyMap<char> map(internal::TableOptions{.hash_mask = mask});
        map[view(a.data(), shape)] = 'a';
        EXPECT_FALSE(map.contains(view(b.data(), shape)));
        map[view(b.data(), shape)] = 'b';
        EXPECT_EQ(map.at(view(a.data(), shape)), 'a');
        EXPECT_EQ(map.at(view(b.data(), shape)), 'b');
      }
      Bytes rows = a;
      rows.insert(rows.end(), b.begin(), b.end());
      const std::int64_t two[] = {2, static_cast<std::int64_t>(size)};
      EXPECT_EQ(unique_rows(view(rows.data(), two)).first.size(), 2u);
      ++pairs;
    }
  }
  EXPECT_EQ(pairs, 120);
}

TEST(MapCollision, OneBucketIsStillAMap) {
  TensorKeyMap<int> map(internal::TableOptions{.hash_mask = 0});
  const std::int64_t scalar[] = {1};
  for (int i = 0; i < 300; ++i) map[view(&i, scalar)] = i;
  for (int i = 0; i < 300; i += 2) EXPECT_EQ(map.erase(view(&i, scalar)), 1u);
  for (int i = 0; i < 300; ++i) EXPECT_EQ(map.contains(view(&i, scalar)), i % 2 == 1);
  EXPECT_EQ(map.size(), 150u);
}

}  // namespace
}  // namespace tensorkey
