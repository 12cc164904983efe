// One computation for each missing key over the processes of a directory, whatever becomes of the
// one who computes.
#include <tensorkey/memo.h>

#include <algorithm>
#include <numeric>

#include "store/disk/disk_test_processes.h"

namespace tensorkey::test {
namespace {

constexpr int kProcesses = 4;
constexpr std::uint64_t kKeys = 200;

struct Counts {
  std::atomic<int> ready{0};
  std::atomic<std::uint64_t> dropped{0};
  std::array<std::atomic<int>, kKeys> computed{};
};

CacheOptions patient(const Folder& folder) {
  CacheOptions options = on_disk(folder);
  options.lease_timeout = 1000;  // the watchdog is shorter
  return options;
}

void meet(Counts& counts) {
  ++counts.ready;
  await([&] { return counts.ready == kProcesses; });
}

// A store that another process held locked for too long drops what it was given.
void expect_once(const Counts& counts) {
  std::uint64_t more = 0;
  for (const std::atomic<int>& each : counts.computed) {
    EXPECT_GE(each, 1);
    more += static_cast<std::uint64_t>(std::max(each.load() - 1, 0));
  }
  EXPECT_LE(more, counts.dropped);
}

TEST(DiskLease, EachKeyIsComputedOnce) {
  for (int round = 0; round < times(3, 100); ++round) {
    const Folder folder;
    const Shared<Counts> counts;
    std::vector<Child> children;
    for (int i = 0; i < kProcesses; ++i) {
      children.emplace_back([&, i] {
        ActivationCache cache(patient(folder));
        meet(*counts);
        std::vector<std::uint64_t> ids(kKeys);
        std::iota(ids.begin(), ids.end(), std::uint64_t{0});
        std::ranges::shuffle(ids, std::mt19937_64(static_cast<std::uint64_t>(i / 2)));
        for (const std::uint64_t id : ids) {
          const EntryPtr entry = cache.get_or_compute(key_of(id), [&] {
            ++counts->computed[id];
            pause(300);
            return make_value(id, usual_size(id));
          });
          if (!is_value(*entry, id)) return 2;
        }
        cache.flush();
        counts->dropped += disk_stats(cache).dropped + disk_stats(cache).errors;
        return disk_stats(cache).lease_timeouts == 0 ? 0 : 3;
      });
    }
    for (Child& child : children) EXPECT_EQ(child.wait(), 0);
    expect_once(*counts);
  }
}

struct Signals {
  std::atomic<bool> computing{false};
  std::atomic<bool> go_on{false};
};

// A process that begins to compute an entry, and ends when it is told to.
Child holder(const Folder& folder, Signals& signals, std::uint64_t id) {
  return Child([&folder, &signals, id] {
    const ActivationCache other(on_disk(folder));  // with somebody else there are leases
    ActivationCache cache(on_disk(folder));
    const EntryPtr entry = cache.get_or_compute(key_of(id), [&] {
      signals.computing = true;
      await([&] { return signals.go_on.load(); });
      return make_value(id, usual_size(id));
    });
    return is_value(*entry, id) ? 0 : 2;
  });
}

TEST(DiskLease, AHolderThatIsKilledIsFollowedAtOnce) {
  struct Asking {
    std::atomic<bool> begun{false};
    std::atomic<bool> computed{false};
  };
  for (std::uint64_t id = 0; id < static_cast<std::uint64_t>(times(5, 200)); ++id) {
    const Folder folder;
    const Shared<Signals> signals;
    const Shared<Asking> asking;
    Child first = holder(folder, *signals, id);
    await([&] { return signals->computing.load(); });
    Child second([&] {
      ActivationCache cache(patient(folder));
      asking->begun = true;
      const EntryPtr entry = cache.get_or_compute(key_of(id), [&] {
        asking->computed = true;
        return make_value(id, usual_size(id));
      });
      return is_value(*entry, id) && disk_stats(cache).lease_timeouts == 0 ? 0 : 2;
    });
    await([&] { return asking->begun.load(); });
    pause(20'000);
    EXPECT_FALSE(asking->computed);
    const Clock::time_point start = Clock::now();
    first.kill();
    EXPECT_EQ(second.wait(), 0);
    EXPECT_LT(seconds_since(start), within(0.5));
    EXPECT_TRUE(asking->computed);
  }
}

TEST(DiskLease, AHolderThatIsStoppedIsWaitedForOnce) {
  const Folder folder;
  const Shared<Signals> signals;
  Child child = holder(folder, *signals, 7);
  await([&] { return signals->computing.load(); });
  child.stop();
  CacheOptions options = on_disk(folder);
  options.lease_timeout = 0.2;
  ActivationCache cache(options);
  const auto compute = [&] {
    const Clock::time_point start = Clock::now();
    bool computed = false;
    const EntryPtr entry = cache.get_or_compute(key_of(7), [&] {
      computed = true;
      return make_value(7, usual_size(7));
    });
    EXPECT_TRUE(is_value(*entry, 7));
    EXPECT_TRUE(computed);
    return seconds_since(start);
  };
  const double waited = compute();
  EXPECT_GE(waited, 0.2);
  EXPECT_LT(waited, within(0.5));
  for (int i = 0; i < 5; ++i) {
    cache.flush();
    EXPECT_TRUE(cache.remove(key_of(7)));
    EXPECT_LT(compute(), within(0.1));
  }
  EXPECT_EQ(disk_stats(cache).lease_timeouts, 1);
  // He comes late: what he stores is what is there.
  signals->go_on = true;
  child.resume();
  EXPECT_EQ(child.wait(), 0);
  cache.flush();
  EXPECT_EQ(ask(cache, 7), Answer::kRight);
}

// --- Batches of rows

constexpr std::int64_t kWidth = 4;

float answer(float x) { return 2 * x + 1; }

// Looks up a batch of rows, computes what is missing, and checks the answers.
bool run(Memo& memo, const std::vector<std::uint64_t>& ids, Counts& counts) {
  std::vector<float> input;
  for (const std::uint64_t id : ids) {
    for (std::int64_t i = 0; i < kWidth; ++i) {
      input.push_back(static_cast<float>(id) + 0.125F * static_cast<float>(i));
    }
  }
  const std::array<std::int64_t, 2> shape{static_cast<std::int64_t>(ids.size()), kWidth};
  const TupleMember member{"x", view(input.data(), shape)};
  MemoBatch batch = memo.lookup({&member, 1}, {});
  do {
    const auto missing = batch.missing();
    std::vector<float> output;
    for (const std::int64_t row : missing) {
      ++counts.computed[ids[static_cast<std::size_t>(row)]];
      pause(100);
      for (std::int64_t i = 0; i < kWidth; ++i) {
        output.push_back(answer(input[static_cast<std::size_t>(row * kWidth + i)]));
      }
    }
    const std::array<std::int64_t, 2> out{static_cast<std::int64_t>(missing.size()), kWidth};
    const TensorView rows = view(output.data(), out);
    if (!missing.empty()) batch.insert(0, missing.size(), {&rows, 1}, 0.001);
  } while (batch.wait() != MemoBatch::Wait::kDone);
  std::vector<float> result(input.size());
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(result));
  batch.assemble({&bytes, 1});
  return std::ranges::equal(result, input, {}, {}, answer);
}

TEST(DiskLease, BatchesThatShareRows) {
  for (int round = 0; round < times(3, 100); ++round) {
    const Folder folder;
    const Shared<Counts> counts;
    std::vector<Child> children;
    for (int i = 0; i < kProcesses; ++i) {
      children.emplace_back([&, i] {
        CacheOptions options = patient(folder);
        options.memory = kMiB;
        auto cache = std::make_shared<ActivationCache>(options);
        Memo memo(cache);
        meet(*counts);
        std::mt19937_64 random(static_cast<std::uint64_t>(round * kProcesses + i));
        for (int call = 0; call < 30; ++call) {
          std::vector<std::uint64_t> ids(24);
          for (std::uint64_t& id : ids) id = random() % kKeys;
          if (!run(memo, ids, *counts)) return 2;
        }
        std::vector<std::uint64_t> all(kKeys);
        std::iota(all.begin(), all.end(), std::uint64_t{0});
        if (!run(memo, all, *counts)) return 3;
        cache->flush();
        counts->dropped += disk_stats(*cache).dropped + disk_stats(*cache).errors;
        return 0;
      });
    }
    for (Child& child : children) EXPECT_EQ(child.wait(), 0);
    expect_once(*counts);
  }
}

}  // namespace
}  // namespace tensorkey::test
