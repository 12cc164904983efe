// Threads that use one cache, and another of the same directory, in every way at once.
#include <algorithm>

#include "store/disk/disk_test_processes.h"

namespace tensorkey::test {
namespace {

constexpr std::uint64_t kIds = 400;

// What a thread may do, at random; counts answers that are wrong.
void work(ActivationCache& cache, std::uint64_t seed, int calls,
          std::atomic<std::uint64_t>& wrong) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out;
  for (int i = 0; i < calls; ++i) {
    const std::uint64_t id = random() % kIds;
    switch (random() % 64) {
      case 0: cache.flush(1); break;
      case 1: cache.refresh(); break;
      case 2: static_cast<void>(cache.stats()); break;
      case 3: cache.remove(key_of(id)); break;
      case 4: cache.purge(0); break;
      case 5: cache.clear(); break;
      case 6: static_cast<void>(cache.contains(key_of(id))); break;
      case 7: {
        const EntryPtr entry =
            cache.get_or_compute(key_of(id), [&] { return make_value(id, usual_size(id)); });
        wrong += is_value(*entry, id) ? 0U : 1U;
        break;
      }
      case 8:
        out.resize(usual_size(id));
        if (cache.read(key_of(id), out)) {
          wrong += std::ranges::equal(out, value_of(id, out.size())) ? 0U : 1U;
        }
        break;
      default: {
        const Answer answer = ask(cache, id);
        wrong += answer == Answer::kWrong ? 1U : 0U;
        if (answer == Answer::kMissing) put_value(cache, id);
      }
    }
  }
}

void run(std::size_t memory, std::uint64_t limit) {
  const Folder folder;
  CacheOptions options = on_disk(folder, limit);
  options.memory = memory;
  ActivationCache one(options);
  ActivationCache two(options);
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] { work(i % 2 == 0 ? one : two, i, times(1500, 100'000), wrong); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(one.flush(20));
  EXPECT_TRUE(two.flush(20));
  for (ActivationCache* cache : {&one, &two}) {
    const DiskStats stats = disk_stats(*cache);
    EXPECT_LE(stats.bytes, limit);
    EXPECT_EQ(stats.corrupt, 0);
    EXPECT_EQ(stats.rebuilds, 0);
  }
}

TEST(DiskThreads, UseEveryCall) { run(0, kSmallest); }

TEST(DiskThreads, WithMemoryAbove) { run(std::size_t{128} << 10, 8 * kSmallest); }

// A lookup that has just read an entry from disk must not bring it back into memory.
TEST(DiskThreads, WhatWasRemovedIsNotFoundAgain) {
  const Folder folder;
  CacheOptions options = on_disk(folder);
  options.memory = kMiB;
  ActivationCache cache(options);
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      while (!done) EXPECT_NE(ask(cache, 1), Answer::kWrong);
    });
  }
  int found = 0;
  for (int i = 0; i < times(600, 30'000); ++i) {
    put_value(cache, 1);
    if (i % 2 == 0) cache.flush();
    switch (i % 3) {
      case 0: cache.remove(key_of(1)); break;
      case 1: cache.purge(0); break;
      default: cache.clear();
    }
    found += ask(cache, 1) == Answer::kMissing ? 0 : 1;
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(found, 0);
}

}  // namespace
}  // namespace tensorkey::test
