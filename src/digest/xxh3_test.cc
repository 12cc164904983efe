#include <gtest/gtest.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "digest/cpu.h"
#include "digest/xxh3.h"

namespace tensorkey::internal {
namespace {

std::vector<std::byte> random_bytes(std::size_t size) {
  std::mt19937 random;  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same bytes in every run
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// xxhash.h itself, with the instructions that this test was compiled for.
Hash128 expected(std::span<const std::byte> data) {
  const auto secret = xxh3_secret();
  const XXH128_hash_t h =
      XXH3_128bits_withSecret(data.data(), data.size(), secret.data(), secret.size());
  return {h.low64, h.high64};
}

Hash128 expected_checksum(std::span<const std::byte> data) {
  const XXH128_hash_t h = XXH3_128bits(data.data(), data.size());
  return {h.low64, h.high64};
}

class Xxh3 : public testing::TestWithParam<Target> {
 protected:
  void SetUp() override { force_target(GetParam()); }
  void TearDown() override { force_target(std::nullopt); }
};

INSTANTIATE_TEST_SUITE_P(Targets, Xxh3, testing::ValuesIn(available_targets()),
                         [](const auto& param) { return std::string(target_name(param.param)); });

TEST_P(Xxh3, EqualsXxhash) {
  const auto input = random_bytes(200'000);
  for (std::size_t length = 0; length <= 3000; ++length) {
    const auto data = std::span(input).subspan(length % 9, length);
    ASSERT_EQ(xxh3(data), expected(data)) << length;
    ASSERT_EQ(xxh3_checksum(data), expected_checksum(data)) << length;
  }
  for (const std::size_t length : {65'536UL, 99'999UL, 200'000UL}) {
    const auto data = std::span(input).first(length);
    ASSERT_EQ(xxh3(data), expected(data)) << length;
    ASSERT_EQ(xxh3_checksum(data), expected_checksum(data)) << length;
  }
}

TEST_P(Xxh3, PiecesEqualTheWhole) {
  const auto input = random_bytes(100'000);
  std::mt19937 random;  // NOLINT(cert-msc32-c,cert-msc51-cpp)
  for (const std::size_t most : {1UL, 64UL, 300UL, 5000UL, 100'000UL}) {
    for (int trial = 0; trial < 60; ++trial) {
      const std::size_t length = trial < 40 ? random() % 1500 : random() % input.size();
      Xxh3Stream stream;
      for (std::size_t at = 0; at < length;) {
        const std::size_t size = std::min(1 + random() % most, length - at);
        stream.update(std::span(input).subspan(at, size));
        stream.update({});
        at += size;
      }
      ASSERT_EQ(stream.finalize(), xxh3(std::span(input).first(length))) << length;
      ASSERT_EQ(stream.finalize(), xxh3(std::span(input).first(length)));  // changes nothing
    }
  }
  for (std::size_t length = 0; length <= 1100; ++length) {
    Xxh3Stream stream;
    stream.update(std::span(input).first(length / 3));
    stream.update(std::span(input).subspan(length / 3, length - length / 3));
    ASSERT_EQ(stream.finalize(), xxh3(std::span(input).first(length))) << length;
  }
}

TEST(Xxh3Secret, IsDrawnOnceAndNotTheDefault) {
  const auto input = random_bytes(1000);
  std::vector<Hash128> seen(4);
  {
    std::vector<std::jthread> threads;
    threads.reserve(seen.size());
    for (Hash128& hash : seen) threads.emplace_back([&] { hash = xxh3(input); });
  }
  for (const Hash128& hash : seen) EXPECT_EQ(hash, seen[0]);
  const XXH128_hash_t plain = XXH3_128bits(input.data(), input.size());
  EXPECT_NE(seen[0], (Hash128{plain.low64, plain.high64}));
}

}  // namespace
}  // namespace tensorkey::internal
