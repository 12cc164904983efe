// fork() while a cache is in use: the child has an empty queue, a segment of its own and no locks
// of its parent, and both go on.
#include <algorithm>
#include <memory>
#include <set>

#include "store/disk/disk_test_processes.h"
#include "store/disk/index.h"

namespace tensorkey::test {
namespace {

std::uint32_t segment_of_entry(const CacheOptions& options, std::uint64_t id) {
  internal::Index index({.path = options.disk + "/index.db", .read_only = true});
  const auto entry = index.find(key_of(id));
  return entry ? entry->place.segment : 0;
}

TEST(DiskFork, AChildWritesToASegmentOfItsOwn) {
  const Folder folder;
  const CacheOptions options = on_disk(folder);
  const Shared<std::atomic<bool>> written;
  const Shared<std::atomic<bool>> seen;
  ActivationCache cache(options);
  for (std::uint64_t id = 0; id < 50; ++id) put_value(cache, id);
  cache.flush();
  for (std::uint64_t id = 50; id < 500; ++id) put_value(cache, id);  // on their way
  Child child([&] {
    for (std::uint64_t id = 0; id < 50; ++id) {
      if (ask(cache, id) != Answer::kRight) return 2;
    }
    for (std::uint64_t id = 50; id < 500; ++id) {
      if (ask(cache, id) == Answer::kWrong) return 3;
    }
    for (std::uint64_t id = 1000; id < 1100; ++id) put_value(cache, id);
    if (!cache.flush(20)) return 4;
    for (std::uint64_t id = 1000; id < 1100; ++id) {
      if (ask(cache, id) != Answer::kRight) return 5;
    }
    *written = true;
    await([&] { return seen->load(); });  // its segment is not to be taken over
    return disk_stats(cache).state.empty() ? 0 : 6;
  });
  for (std::uint64_t id = 500; id < 600; ++id) put_value(cache, id);
  await([&] { return written->load(); });
  EXPECT_TRUE(cache.flush(20));
  cache.refresh();
  for (std::uint64_t id = 0; id < 600; ++id) ASSERT_EQ(ask(cache, id), Answer::kRight) << id;
  std::set<std::uint32_t> ours;
  std::set<std::uint32_t> theirs;
  for (std::uint64_t id = 0; id < 600; ++id) ours.insert(segment_of_entry(options, id));
  for (std::uint64_t id = 1000; id < 1100; ++id) {
    ASSERT_EQ(ask(cache, id), Answer::kRight) << id;
    theirs.insert(segment_of_entry(options, id));
  }
  for (const std::uint32_t segment : theirs) EXPECT_FALSE(ours.contains(segment)) << segment;
  *seen = true;
  EXPECT_EQ(child.wait(), 0);
  const DiskStats stats = disk_stats(cache);
  EXPECT_EQ(stats.state, "");
  EXPECT_EQ(stats.corrupt + stats.errors + stats.dropped, 0);
}

TEST(DiskFork, AChildMayDestroyItsCopy) {
  const Folder folder;
  const CacheOptions options = on_disk(folder);
  auto cache = std::make_unique<ActivationCache>(options);
  for (std::uint64_t id = 0; id < 300; ++id) put_value(*cache, id);
  for (std::uint64_t round = 0; round < 10; ++round) {
    Child child([&] {
      put_value(*cache, 1000 + round);
      cache.reset();  // writes it
      ActivationCache other(options);
      return ask(other, 1000 + round) == Answer::kRight ? 0 : 2;
    });
    put_value(*cache, 2000 + round);
    EXPECT_EQ(child.wait(), 0);
  }
  EXPECT_TRUE(cache->flush(20));
  cache->refresh();
  for (std::uint64_t id = 0; id < 300; ++id) ASSERT_EQ(ask(*cache, id), Answer::kRight) << id;
  for (std::uint64_t round = 0; round < 10; ++round) {
    EXPECT_EQ(ask(*cache, 1000 + round), Answer::kRight);
    EXPECT_EQ(ask(*cache, 2000 + round), Answer::kRight);
  }
  EXPECT_EQ(disk_stats(*cache).corrupt, 0);
}

TEST(DiskFork, WhileAnotherThreadOpensAndCloses) {
  const Folder folder;
  const CacheOptions options = on_disk(folder);
  const ActivationCache stays(options);
  std::atomic<bool> done{false};
  std::thread thread([&] {
    for (std::uint64_t id = 0; !done; ++id) {
      ActivationCache cache(options);
      put_value(cache, id % 100);
    }
  });
  for (int round = 0; round < times(100, 3000); ++round) {
    Child child([&] { return stays.contains(key_of(1000)) ? 2 : 0; });
    ASSERT_EQ(child.wait(), 0) << round;
  }
  done = true;
  thread.join();
}

TEST(DiskFork, ManyTimesInTheMidstOfWork) {
  const Folder folder;
  const CacheOptions options = on_disk(folder);
  ActivationCache cache(options);
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937_64 random(i);
      while (!done) {
        const std::uint64_t id = random() % 2000;
        const Answer answer = ask(cache, id);
        if (answer == Answer::kWrong) ++wrong;
        if (answer == Answer::kMissing) put_value(cache, id);
        if (random() % 256 == 0) cache.flush(1);
        if (random() % 256 == 1) cache.remove(key_of(random() % 2000));
      }
    });
  }
  const int rounds = times(40, 1000);
  // On a busy machine a child may wait too long for the others, and says that it has dropped rows.
  constexpr int kDropped = 5;
  std::vector<bool> dropped;  // by round
  std::vector<Child> children;
  const auto wait = [&] {
    for (Child& child : children) {
      const int status = child.wait();
      dropped.push_back(status == kDropped);
      EXPECT_TRUE(status == 0 || status == kDropped) << status;
    }
    children.clear();
  };
  for (int round = 0; round < rounds; ++round) {
    const auto first = static_cast<std::uint64_t>(10'000 + round * 10);
    children.emplace_back([&, first] {
      const std::uint64_t before = disk_stats(cache).dropped;
      for (std::uint64_t id = 0; id < 50; ++id) {
        if (ask(cache, id) == Answer::kWrong) return 2;
      }
      for (std::uint64_t id = first; id < first + 10; ++id) put_value(cache, id);
      if (!cache.flush(20)) return 4;
      return disk_stats(cache).dropped == before ? 0 : kDropped;
    });
    pause(1000);
    if (children.size() < 4) continue;
    wait();
  }
  wait();
  done = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(cache.flush(20));
  cache.refresh();
  std::uint64_t missing = 0;
  for (int i = 0; i < rounds * 10; ++i) {
    const Answer answer = ask(cache, static_cast<std::uint64_t>(10'000 + i));
    ASSERT_NE(answer, Answer::kWrong);
    missing += answer == Answer::kMissing && !dropped[static_cast<std::size_t>(i) / 10] ? 1U : 0U;
  }
  EXPECT_EQ(missing, 0);  // 64 MiB are far from full
  const DiskStats stats = disk_stats(cache);
  EXPECT_EQ(stats.state, "");
  EXPECT_EQ(stats.corrupt, 0);
}

// A child that inherits everything and sleeps must keep nothing of a parent that was killed.
TEST(DiskFork, ASleepingChildKeepsNothingOfAKilledWriter) {
  struct State {
    std::atomic<bool> computing{false};
    std::atomic<pid_t> sleeper{0};
  };
  const Folder folder;
  const CacheOptions options = on_disk(folder);
  for (int round = 0; round < times(3, 50); ++round) {
    const Shared<State> state;
    Child writer([&] {
      ActivationCache cache(options);
      put_value(cache, 1);
      put_value(cache, static_cast<std::uint64_t>(100 + round));
      cache.flush();
      const ActivationCache other(options);  // so that nobody is alone, and there are leases
      static_cast<void>(cache.get_or_compute(key_of(static_cast<std::uint64_t>(500 + round)), [&] {
        if (::fork() == 0) {
          ::alarm(60);  // whatever becomes of the test
          state->sleeper = ::getpid();
          for (;;) ::pause();
        }
        await([&] { return state->sleeper != 0; });
        state->computing = true;
        for (;;) ::pause();
        return EntryPtr();
      }));
      return 0;
    });
    await([&] { return state->computing.load(); });
    writer.kill();
    const Clock::time_point start = Clock::now();
    CacheOptions patient = options;
    patient.lease_timeout = 1000;
    ActivationCache cache(patient);
    bool computed = false;
    static_cast<void>(cache.get_or_compute(key_of(static_cast<std::uint64_t>(500 + round)), [&] {
      computed = true;
      return make_value(static_cast<std::uint64_t>(500 + round), 100);
    }));
    EXPECT_TRUE(computed);
    put_value(cache, static_cast<std::uint64_t>(1000 + round));
    EXPECT_TRUE(cache.flush(20));
    EXPECT_LT(seconds_since(start), within(1.0));
    EXPECT_EQ(segment_of_entry(options, static_cast<std::uint64_t>(1000 + round)),
              segment_of_entry(options, 1));
    EXPECT_EQ(disk_stats(cache).lease_timeouts, 0);
    ::kill(state->sleeper, SIGKILL);
  }
}

}  // namespace
}  // namespace tensorkey::test
