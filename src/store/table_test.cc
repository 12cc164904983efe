#include "store/table.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "base/epoch.h"

namespace tensorkey::internal {
namespace {

Key key_of(std::uint64_t id) { return Key(blake3(std::as_bytes(std::span(&id, 1)))); }

std::vector<EntryPtr> entries_of(std::size_t count) {
  std::vector<EntryPtr> entries;
  for (std::size_t id = 0; id < count; ++id) entries.push_back(make_entry({.key = key_of(id)}));
  return entries;
}

Block& block(const EntryPtr& entry) { return const_cast<Block&>(block_of(*entry)); }

TEST(EntryTable, AgreesWithASetUnderInsertionsAndRemovals) {
  const std::vector<EntryPtr> entries = entries_of(400);
  EntryTable table;
  std::vector<bool> there(entries.size(), false);
  std::size_t size = 0;
  std::mt19937 random(2);
  for (int step = 0; step < 20'000; ++step) {
    const std::size_t id = random() % entries.size();
    if (there[id]) {
      table.remove(block(entries[id]));
      --size;
    } else {
      if (table.growth(1) > 0) table.grow(1).reset();
      table.insert(block(entries[id]));
      ++size;
    }
    there[id] = !there[id];
    const std::size_t other = random() % entries.size();
    ASSERT_EQ(table.find(key_of(other)) == &block(entries[other]), there[other]);
    ASSERT_EQ(table.size(), size);
  }
  std::size_t seen = 0;
  for (std::size_t i = 0; i < table.slot_count(); ++i) seen += table.at(i) != nullptr;
  EXPECT_EQ(seen, size);
  EXPECT_LE(table.slot_count(), 4 * entries.size());  // tombstones do not make it grow
}

TEST(EntryTable, ACopyTakesThePlace) {
  const EntryPtr one = make_entry({.key = key_of(1)});
  const EntryPtr copy = make_entry({.key = key_of(1)});
  EntryTable table;
  table.insert(block(one));
  table.replace(block(one), block(copy));
  EXPECT_EQ(table.find(key_of(1)), &block(copy));
  EXPECT_EQ(table.size(), 1U);
}

// Readers never miss what is there all the time, however the table changes around it.
TEST(EntryTableThreads, WhatStaysIsFoundWhileTheRestComesAndGoes) {
  const std::vector<EntryPtr> entries = entries_of(600);
  EntryTable table;
  std::vector<EntryTable::SlotsPtr> old;  // kept: readers may be in them
  const auto insert = [&](std::size_t id) {
    if (table.growth(1) > 0) old.push_back(table.grow(1));
    table.insert(block(entries[id]));
  };
  for (std::size_t id = 0; id < 50; ++id) insert(id);
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (unsigned seed = 0; seed < 3; ++seed) {
    readers.emplace_back([&, seed] {
      std::mt19937 random(seed);
      while (!stop) {
        const EpochGuard guard;
        const std::size_t id = random() % 50;
        ASSERT_EQ(table.find(entries[id]->key()), &block(entries[id]));
        (void)table.find(entries[50 + random() % 550]->key());
      }
    });
  }
  std::mt19937 random(9);
  std::vector<bool> there(entries.size(), false);
  for (int step = 0; step < 30'000; ++step) {
    const std::size_t id = 50 + random() % 550;
    if (there[id]) {
      table.remove(block(entries[id]));
    } else {
      insert(id);
    }
    there[id] = !there[id];
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
}

TEST(EpochThreads, ATagPassesOnlyWhenEarlierReadersHaveLeft) {
  std::uint64_t tag = 0;
  {
    const EpochGuard guard;
    const EpochGuard nested;
    std::thread([&] { tag = retire_epoch(); }).join();
    EXPECT_FALSE(epoch_passed(tag));
  }
  EXPECT_TRUE(epoch_passed(tag));
  const EpochGuard later;
  EXPECT_TRUE(epoch_passed(tag));
}

}  // namespace
}  // namespace tensorkey::internal
