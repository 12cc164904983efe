#include <tensorkey/store.h>

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include <tensorkey/error.h>

namespace tensorkey {
namespace {

Key key_of(std::uint32_t id) {
  Digest bytes{};
  for (std::size_t i = 0; i < 4; ++i) bytes[i] = static_cast<std::uint8_t>(id >> (8 * i));
  return Key(bytes);
}

EntryPtr entry_of(std::uint32_t id, std::size_t bytes = 100) {
  auto entry = std::make_shared<Entry>();
  entry->shape = {static_cast<std::int64_t>(bytes)};
  entry->data.assign(bytes, static_cast<std::byte>(id));
  return entry;
}

const std::size_t kOne = entry_of(0)->footprint();

TEST(MemoryStore, FindsWhatWasInsertedAndKeepsTheFirst) {
  MemoryStore store(10 * kOne);
  EXPECT_EQ(store.find(key_of(1)), nullptr);
  EXPECT_TRUE(store.insert(key_of(1), entry_of(1)));
  EXPECT_TRUE(store.insert(key_of(1), entry_of(2)));
  ASSERT_NE(store.find(key_of(1)), nullptr);
  EXPECT_EQ(store.find(key_of(1))->data[0], std::byte{1});
  EXPECT_EQ(store.stats().entries, 1U);
  EXPECT_EQ(store.stats().insertions, 1U);
  EXPECT_EQ(store.stats().bytes, kOne);
}

TEST(MemoryStore, BadArguments) {
  EXPECT_THROW(MemoryStore(0), Error);
  MemoryStore store(kOne);
  EXPECT_THROW(store.insert(key_of(1), nullptr), Error);
  std::vector<Key> keys(2);
  std::vector<EntryPtr> room(1);
  EXPECT_THROW(store.find(keys, room), Error);
}

TEST(MemoryStore, EntryLargerThanTheBoundIsRejectedAndEvictsNothing) {
  MemoryStore store(2 * kOne);
  store.insert(key_of(1), entry_of(1));
  EXPECT_FALSE(store.insert(key_of(2), entry_of(2, 10'000)));
  EXPECT_NE(store.find(key_of(1)), nullptr);
  EXPECT_EQ(store.stats().rejections, 1U);
  EXPECT_EQ(store.stats().evictions, 0U);
}

TEST(MemoryStore, EvictsTheUnvisitedFirst) {
  MemoryStore store(3 * kOne);
  for (std::uint32_t id : {1U, 2U, 3U}) store.insert(key_of(id), entry_of(id));
  (void)store.find(key_of(1));
  (void)store.find(key_of(3));
  store.insert(key_of(4), entry_of(4));
  EXPECT_NE(store.find(key_of(1)), nullptr);
  EXPECT_EQ(store.find(key_of(2)), nullptr);
  EXPECT_NE(store.find(key_of(3)), nullptr);
  EXPECT_NE(store.find(key_of(4)), nullptr);
}

TEST(MemoryStore, AnEvictedEntryStaysReadableForItsHolder) {
  MemoryStore store(kOne);
  store.insert(key_of(1), entry_of(7));
  const EntryPtr held = store.find(key_of(1));
  store.insert(key_of(2), entry_of(2));
  EXPECT_EQ(store.find(key_of(1)), nullptr);
  EXPECT_EQ(held->data[99], std::byte{7});
}

TEST(MemoryStore, ClearLeavesNothingAndGoesOn) {
  MemoryStore store(3 * kOne);
  for (std::uint32_t id = 0; id < 10; ++id) store.insert(key_of(id), entry_of(id));
  store.clear();
  EXPECT_EQ(store.stats().entries, 0U);
  EXPECT_EQ(store.stats().bytes, 0U);
  for (std::uint32_t id = 0; id < 10; ++id) store.insert(key_of(id), entry_of(id));
  EXPECT_EQ(store.stats().entries, 3U);
}

// Many threads on few keys: values are right, the accounts add up, the bound holds at every look.
TEST(MemoryStore, BoundHoldsUnderThreads) {
  const std::size_t bound = 50 * kOne;
  MemoryStore store(bound);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 3000; ++i) {
        const auto id = static_cast<std::uint32_t>(random() % 200);
        if (const EntryPtr entry = store.find(key_of(id))) {
          if (entry->data[0] != static_cast<std::byte>(id)) ++wrong;
        } else {
          store.insert(key_of(id), entry_of(id, 20 + id));
        }
        if (store.stats().bytes > bound) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  const StoreStats stats = store.stats();
  EXPECT_EQ(stats.insertions - stats.evictions, stats.entries);
}

}  // namespace
}  // namespace tensorkey
