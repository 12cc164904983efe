// What the tests of the cache share: entries whose values tell which they are.
#pragma once

#include <tensorkey/cache.h>

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace tensorkey::test {

constexpr std::size_t kMiB = std::size_t{1} << 20;

inline Key key_of(std::uint64_t id) { return Key(blake3(std::as_bytes(std::span(&id, 1)))); }

inline EntryPtr entry_of(std::uint64_t id, std::size_t bytes = 100, double seconds = 0.001) {
  std::vector<std::byte> data(bytes, static_cast<std::byte>(id));
  const std::array<std::int64_t, 1> shape{static_cast<std::int64_t>(bytes)};
  const TensorParts tensor{.shape = shape, .data = data};
  return make_entry({.key = key_of(id), .seconds = seconds, .tensors = {&tensor, 1}});
}

inline EntryPtr put(ActivationCache& cache, std::uint64_t id, std::size_t bytes = 100,
                    std::uint64_t scope = 0) {
  std::vector<std::byte> data(bytes, static_cast<std::byte>(id));
  const std::array<std::int64_t, 1> shape{static_cast<std::int64_t>(bytes)};
  const TensorParts tensor{.shape = shape, .data = data};
  return cache.insert({.key = key_of(id), .seconds = 0.001, .tensors = {&tensor, 1}}, scope);
}

inline void expect_entry(const EntryPtr& entry, std::uint64_t id) {
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->key(), key_of(id));
  for (const std::byte value : entry->tensor(0).data) {
    ASSERT_EQ(value, static_cast<std::byte>(id));
  }
}

}  // namespace tensorkey::test
