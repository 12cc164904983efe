#include "store/arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace tensorkey::internal {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

TEST(Arena, SizesAreRoundedByASixteenthAtMostOrToPages) {
  for (const std::size_t bound : {kMiB / 16, 64 * kMiB, 4096 * kMiB}) {
    const Arena arena(bound);
    std::size_t before = 0;
    for (std::size_t bytes = 1; bytes < 4 * kMiB; bytes += 1 + bytes / 50) {
      const std::size_t size = arena.rounded(bytes);
      ASSERT_GE(size, bytes);
      ASSERT_GE(size, before);
      ASSERT_EQ(size % 16, 0U);
      ASSERT_EQ(arena.rounded(size), size);
      ASSERT_TRUE(bytes <= 256 || size <= bytes + bytes / 16 + 16 || size - bytes < 4096) << bytes;
      before = size;
    }
  }
}

TEST(Arena, PlacesDoNotOverlapAndEverythingGoesBack) {
  std::mt19937 random(5);
  Arena arena(8 * kMiB);
  struct Held {
    std::byte* memory;
    std::size_t size;
    std::byte mark;
  };
  std::vector<Held> held;
  std::size_t live = 0;
  for (int step = 0; step < 20'000; ++step) {
    if (held.size() < 300 && random() % 3 != 0) {
      const std::size_t size = arena.rounded(1 + random() % (random() % 8 == 0 ? 60'000 : 3'000));
      const std::size_t before = arena.held();
      const std::size_t cost = arena.cost(size);
      auto* const memory = static_cast<std::byte*>(arena.allocate(size));
      ASSERT_LE(arena.held(), before + cost);
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 16, 0U);
      const auto mark = static_cast<std::byte>(random());
      std::memset(memory, static_cast<int>(mark), size);
      held.push_back({memory, size, mark});
      live += size;
    } else if (!held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      const Held gone = held.back();
      held.pop_back();
      ASSERT_TRUE(std::all_of(gone.memory, gone.memory + gone.size,
                              [&](std::byte value) { return value == gone.mark; }));
      arena.give_back(gone.memory, gone.size);
      live -= gone.size;
      if (random() % 4 == 0) arena.reclaim();
    }
  }
  arena.reclaim();
  EXPECT_EQ(arena.live(), live);
  EXPECT_GE(arena.held(), live);
  for (const Held& each : held) arena.give_back(each.memory, each.size);
  arena.reclaim();
  arena.trim();
  EXPECT_EQ(arena.live(), 0U);
  EXPECT_EQ(arena.held(), 0U);
}

TEST(Arena, ASparseSlabIsOneWhoseBlocksFitElsewhere) {
  Arena arena(kMiB);
  const std::size_t size = arena.rounded(500);
  std::vector<void*> all;
  for (int i = 0; i < 200; ++i) all.push_back(arena.allocate(size));
  EXPECT_EQ(arena.close_sparse(), nullptr);
  std::mt19937 random(1);
  std::ranges::shuffle(all, random);
  for (int i = 0; i < 150; ++i) {
    arena.give_back(all.back(), size);
    all.pop_back();
  }
  arena.reclaim();
  const std::size_t before = arena.held();
  Arena::Slab* const slab = arena.close_sparse();
  ASSERT_NE(slab, nullptr);
  std::vector<void*> places;
  Arena::places(*slab, places);
  for (void* const place : places) {
    EXPECT_EQ(arena.cost(size), 0U);
    void* const moved = arena.allocate(size);
    EXPECT_EQ(std::ranges::count(places, moved), 0);
    std::ranges::replace(all, place, moved);
    arena.give_back(place, size);
  }
  arena.reclaim();
  EXPECT_LT(arena.held(), before);
  for (void* const place : all) arena.give_back(place, size);
}

TEST(ArenaThreads, AnyThreadGivesBack) {
  Arena arena(kMiB);
  const std::size_t size = arena.rounded(300);
  for (int round = 0; round < 20; ++round) {
    std::vector<void*> places;
    for (int i = 0; i < 400; ++i) places.push_back(arena.allocate(size));
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (std::size_t i = t; i < places.size(); i += 4) arena.give_back(places[i], size);
      });
    }
    arena.reclaim();
    for (std::thread& thread : threads) thread.join();
    arena.reclaim();
    ASSERT_EQ(arena.live(), 0U);
  }
}

}  // namespace
}  // namespace tensorkey::internal
