// Single flight, threads and forks.
#include <tensorkey/cache.h>

#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <tensorkey/error.h>

#include "store/cache_test_entries.h"

namespace tensorkey {
namespace {

using namespace test;

// --- Single flight

TEST(ActivationCache, AComputationMayAskForAnotherKeyButNotForItsOwn) {
  ActivationCache cache({.memory = kMiB});
  const EntryPtr outer = cache.get_or_compute(key_of(1), [&] {
    expect_entry(cache.get_or_compute(key_of(2), [] { return entry_of(2); }), 2);
    return entry_of(1);
  });
  expect_entry(outer, 1);
  const auto ask_itself = [&] {
    return cache.get_or_compute(
        key_of(3), [&] { return cache.get_or_compute(key_of(3), [] { return entry_of(3); }); });
  };
  EXPECT_THROW((void)ask_itself(), Error);
  EXPECT_THROW((void)cache.get_or_compute(key_of(4), [] { return entry_of(5); }), Error);
  EXPECT_THROW((void)cache.get_or_compute(key_of(4), [] { return EntryPtr(); }), Error);
  expect_entry(cache.get_or_compute(key_of(4), [] { return entry_of(4); }), 4);
  EXPECT_EQ(cache.stats().entries, 3U);
}

TEST(ActivationCache, WhatIsRejectedIsStillReturned) {
  ActivationCache cache({.memory = kMiB});
  expect_entry(cache.get_or_compute(key_of(1), [] { return entry_of(1, 2 * kMiB); }), 1);
  EXPECT_EQ(cache.stats().rejections, 1U);
}

TEST(CacheThreads, OneComputationForManyThreads) {
  ActivationCache cache({.memory = kMiB});
  std::atomic<int> computations{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 64; ++i) {
    threads.emplace_back([&] {
      expect_entry(cache.get_or_compute(key_of(1),
                                        [&] {
                                          ++computations;
                                          // Until somebody waits, as far as one can see.
                                          for (int spin = 0; spin < 1000; ++spin) {
                                            std::this_thread::yield();
                                          }
                                          return entry_of(1);
                                        }),
                   1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(computations, 1);
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.lookups(), 64U);
}

TEST(CacheThreads, AFailureReachesAllWhoWaitAndTheNextTriesAgain) {
  ActivationCache cache({.memory = kMiB});
  std::atomic<int> computations{0};
  std::atomic<int> failures{0};
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&] {
      try {
        ++ready;
        (void)cache.get_or_compute(key_of(1), [&]() -> EntryPtr {
          ++computations;
          while (ready < 16) std::this_thread::yield();
          for (int spin = 0; spin < 1000; ++spin) std::this_thread::yield();
          throw std::runtime_error("no luck");
        });
      } catch (const std::runtime_error& error) {
        failures += std::string(error.what()) == "no luck";
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 16);
  EXPECT_EQ(cache.stats().entries, 0U);
  expect_entry(cache.get_or_compute(key_of(1), [] { return entry_of(1); }), 1);
}

// Two computations that need each other's key, in two threads: an endless recursion, told as one.
TEST(CacheThreads, ACircleOfTwoThreadsIsAnErrorAndNoDeadlock) {
  ActivationCache cache({.memory = kMiB});
  std::atomic<int> errors{0};
  std::function<EntryPtr(std::uint64_t, std::uint64_t)> ask = [&](std::uint64_t id,
                                                                  std::uint64_t other) {
    return cache.get_or_compute(key_of(id), [&ask, id, other] {
      (void)ask(other, id);
      return entry_of(id);
    });
  };
  const auto run = [&](std::uint64_t id, std::uint64_t other) {
    try {
      (void)ask(id, other);
    } catch (const Error&) {
      ++errors;
    }
  };
  std::thread second([&] { run(2, 1); });
  run(1, 2);
  second.join();
  EXPECT_EQ(errors, 2);
  EXPECT_EQ(cache.stats().entries, 0U);
}

// --- Threads

TEST(CacheThreads, TheBoundHoldsAndValuesAreRight) {
  constexpr std::size_t kBound = 2 * kMiB;
  ActivationCache cache({.memory = kBound});
  std::atomic<bool> stop{false};
  std::thread watcher([&] {
    while (!stop) {
      ASSERT_LE(cache.stats().bytes, kBound);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> writers;
  for (unsigned seed = 0; seed < 16; ++seed) {
    writers.emplace_back([&cache, seed] {
      std::mt19937 random(seed);
      for (int step = 0; step < 1500; ++step) {
        const std::uint64_t id = random() % 300;
        const std::size_t bytes = 100 + id * 150;
        switch (random() % 16) {
          case 0: cache.remove(key_of(id)); break;
          case 1: cache.pin(key_of(id % 5)); break;
          case 2: cache.unpin(key_of(id % 5)); break;
          case 3: (void)cache.snapshot(); break;
          case 4: {
            std::vector<std::byte> values(bytes);
            if (cache.read(key_of(id), values)) {
              EXPECT_EQ(values.back(), static_cast<std::byte>(id));
            }
            break;
          }
          default:
            if (const EntryPtr entry = cache.find(key_of(id))) {
              expect_entry(entry, id);
            } else {
              put(cache, id, bytes);
            }
        }
      }
    });
  }
  for (std::thread& thread : writers) thread.join();
  stop = true;
  watcher.join();
  for (std::uint64_t id = 0; id < 300; ++id) put(cache, id, 100 + id * 150);  // no room was lost
  const CacheStats stats = cache.stats();
  EXPECT_GT(stats.evictions, 0U);
  std::size_t bytes = 0;
  for (const EntryInfo& info : cache.snapshot()) bytes += info.bytes;
  EXPECT_GE(stats.bytes, stats.metadata + bytes);
  EXPECT_GT(stats.metadata + bytes, kBound / 3);  // many sizes in few slabs
}

TEST(CacheThreads, ResizingWhileOthersReadAndWrite) {
  ActivationCache cache({.memory = kMiB});
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&cache, seed] {
      std::mt19937 random(seed);
      for (int step = 0; step < 3000; ++step) {
        const std::uint64_t id = random() % 200;
        if (const EntryPtr entry = cache.find(key_of(id))) {
          expect_entry(entry, id);
        } else {
          put(cache, id, 5'000);
        }
        if (step % 100 == 0) cache.resize(step % 200 == 0 ? kMiB / 4 : kMiB);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  cache.resize(kMiB / 4);
  EXPECT_LE(cache.stats().bytes, kMiB / 4);
}

// A child forked in the midst of it all goes on with what it inherited.
TEST(CacheFork, AChildUsesWhatItInheritedWhileOthersWereWriting) {
  ActivationCache cache({.memory = kMiB});
  for (std::uint64_t id = 0; id < 50; ++id) put(cache, id);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 3; ++seed) {
    threads.emplace_back([&cache, &stop, seed] {
      std::mt19937 random(seed);
      while (!stop) {
        const std::uint64_t id = 1000 + random() % 3000;
        (void)cache.get_or_compute(key_of(id), [id] { return entry_of(id, 300); });
      }
    });
  }
  for (int round = 0; round < 20; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      bool good = true;
      for (std::uint64_t id = 1000; id < 1200; ++id) {
        const EntryPtr entry = cache.get_or_compute(key_of(id), [id] { return entry_of(id, 300); });
        good = good && entry && entry->key() == key_of(id);
      }
      good = good && cache.stats().bytes <= kMiB;
      cache.clear();
      ::_exit(good ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace tensorkey
