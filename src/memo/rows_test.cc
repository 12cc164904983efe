#include "memo/rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

namespace tensorkey::internal {
namespace {

Key key_of(std::uint64_t id) { return Key(blake3(std::as_bytes(std::span(&id, 1)))); }

// Keys that agree in their first eight bytes: what a table without secret seeds would look for.
Key twin_of(std::uint64_t id) {
  Digest bytes{};
  std::memcpy(bytes.data() + 8, &id, sizeof id);
  return Key(bytes);
}

// Against a map, for batches with and without repeats, around the size of the small table.
TEST(DistinctRows, AreThoseOfAMap) {
  std::mt19937 random(5);
  for (const std::size_t count : {0U, 1U, 2U, 3U, 63U, 64U, 255U, 256U, 257U, 1000U}) {
    for (const std::uint64_t different :
         {std::uint64_t{1}, std::uint64_t{count / 2 + 1}, std::uint64_t{1} << 40}) {
      std::vector<Key> keys;
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t id =
            std::uniform_int_distribution<std::uint64_t>(0, different - 1)(random);
        keys.push_back(id % 2 == 0 ? key_of(id) : twin_of(id));
      }
      const DistinctRows distinct(keys);
      ASSERT_EQ(distinct.rows(), count);
      std::map<Key, std::size_t> slots;
      std::vector<std::uint64_t> uses;
      for (std::size_t row = 0; row < count; ++row) {
        const auto [place, is_new] = slots.try_emplace(keys[row], slots.size());
        if (is_new) {
          uses.push_back(0);
          ASSERT_EQ(distinct.first(place->second), static_cast<std::int64_t>(row));
        }
        ++uses[place->second];
        ASSERT_EQ(distinct.slot_of(row), place->second);
      }
      ASSERT_EQ(distinct.slots(), slots.size());
      ASSERT_EQ(distinct.keys().size(), slots.size());
      for (const auto& [key, slot] : slots) {
        ASSERT_EQ(distinct.keys()[slot], key);
        ASSERT_EQ(distinct.uses(slot), uses[slot]);
      }
    }
  }
}

}  // namespace
}  // namespace tensorkey::internal
