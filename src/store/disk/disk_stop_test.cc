// Processes that are stopped at any instant: the others go on, nobody waits for long, nothing is
// wrong, and the bound holds.
#include <sqlite3.h>

#include <algorithm>
#include <memory>

#include "store/disk/disk_test_processes.h"

namespace tensorkey::test {
namespace {

constexpr std::uint64_t kIds = 2000;
constexpr std::size_t kProcesses = 4;

struct Worker {
  std::atomic<std::uint64_t> calls{0};
  std::atomic<std::uint64_t> stops{0};       // how often it was stopped
  std::atomic<std::uint64_t> longest_us{0};  // of the calls while it was not
  std::atomic<std::uint64_t> wrong{0};
};

struct Workers {
  std::array<Worker, kProcesses> all;
  std::atomic<bool> done{false};
};

template <typename Call>
void measure(Worker& self, const Call& call) {
  const std::uint64_t stops = self.stops;
  const Clock::time_point start = Clock::now();
  call();
  const auto microseconds = static_cast<std::uint64_t>(seconds_since(start) * 1e6);
  if (self.stops == stops && microseconds > self.longest_us) self.longest_us = microseconds;
  ++self.calls;
}

int work(const CacheOptions& options, Workers& workers, std::size_t me) {
  Worker& self = workers.all[me];
  std::unique_ptr<ActivationCache> cache;
  std::mt19937_64 random(me);
  for (int round = 0; !workers.done; ++round) {
    // It comes and goes, too.
    if (round % 500 == 0) measure(self, [&] { cache.reset(); });
    if (!cache) measure(self, [&] { cache = std::make_unique<ActivationCache>(options); });
    const std::uint64_t id = random() % kIds;
    measure(self, [&] {
      const Answer answer = ask(*cache, id);
      if (answer == Answer::kWrong) ++self.wrong;
      if (answer != Answer::kMissing) return;
      const EntryPtr entry =
          cache->get_or_compute(key_of(id), [&] { return make_value(id, usual_size(id)); });
      if (!is_value(*entry, id)) ++self.wrong;
    });
    if (random() % 50 == 0) measure(self, [&] { cache->flush(0.9); });
    if (random() % 200 == 0) measure(self, [&] { cache->remove(key_of(random() % kIds)); });
  }
  return 0;
}

TEST(DiskStop, OthersGoOn) {
  const Folder folder;
  const CacheOptions options = on_disk(folder, kSmallest);
  const Shared<Workers> workers;
  std::vector<Child> children;
  for (std::size_t i = 0; i < kProcesses; ++i) {
    children.emplace_back([&, i] { return work(options, *workers, i); });
  }
  for (const Worker& each : workers->all) {
    await([&] { return each.calls > 20; });
  }
  std::mt19937_64 random(1);
  for (int round = 0; round < times(15, 500); ++round) {
    pause(static_cast<int>(random() % 10'000));
    std::array<bool, kProcesses> stopped{};
    const std::size_t first = random() % kProcesses;
    for (std::size_t i = 0; i <= static_cast<std::size_t>(round) % 3; ++i)
      stopped[(first + i) % kProcesses] = true;
    for (std::size_t i = 0; i < kProcesses; ++i) {
      if (!stopped[i]) continue;
      ++workers->all[i].stops;
      children[i].stop();
    }
    for (std::size_t i = 0; i < kProcesses; ++i) {
      const std::uint64_t calls = workers->all[i].calls;
      if (!stopped[i]) await([&] { return workers->all[i].calls > calls + 30; });
    }
    if (round % 4 == 0) {  // whoever comes now can begin
      Child fresh([&] {
        const Clock::time_point start = Clock::now();
        ActivationCache cache(options);
        const Answer answer = ask(cache, 1);
        const double seconds = seconds_since(start);
        if (seconds > within(1.0)) std::fprintf(stderr, "opened in %.3f s\n", seconds);
        return answer != Answer::kWrong && seconds <= within(1.0) ? 0 : 2;
      });
      ASSERT_EQ(fresh.wait(), 0);
    }
    ASSERT_LE(disk_bytes(options.disk), 2 * kSmallest);
    for (std::size_t i = 0; i < kProcesses; ++i) {
      if (!stopped[i]) continue;
      ++workers->all[i].stops;
      children[i].resume();
    }
  }
  workers->done = true;
  for (Child& child : children) EXPECT_EQ(child.wait(), 0);
  for (const Worker& each : workers->all) {
    EXPECT_EQ(each.wrong, 0);
    EXPECT_LT(static_cast<double>(each.longest_us) / 1e6, within(1.0));
  }
  ActivationCache cache(options);
  for (std::uint64_t id = 0; id < kIds; ++id) EXPECT_NE(ask(cache, id), Answer::kWrong);
  EXPECT_EQ(disk_stats(cache).state, "");
  EXPECT_LE(disk_bytes(options.disk), kSmallest);
}

// --- Stopped inside a transaction of SQLite

struct Signals {
  std::atomic<bool> begin{false};
  std::atomic<bool> inside{false};
  std::atomic<bool> come{false};
};

// Waits to be told, runs `sql` in a transaction, and stands in it until it is killed.
Child in_transaction(const Folder& folder, Signals& signals, const char* sql) {
  return Child([&folder, &signals, sql] {
    await([&] { return signals.begin.load(); });
    sqlite3* database = nullptr;
    const std::string path = folder.cache() + "/index.db";
    if (sqlite3_open(path.c_str(), &database) != SQLITE_OK) return 2;
    sqlite3_busy_timeout(database, 5000);
    if (sqlite3_exec(database, sql, nullptr, nullptr, nullptr) != SQLITE_OK) return 3;
    signals.inside = true;
    for (;;) ::pause();
  });
}

void enter(const Child& child, Signals& signals) {
  signals.begin = true;
  await([&] { return signals.inside.load(); });
  child.stop();
}

TEST(DiskStop, AWriterInsideATransaction) {
  const Folder folder;
  const CacheOptions options = on_disk(folder);
  const Shared<Signals> signals;
  Child writer = in_transaction(folder, *signals, "BEGIN IMMEDIATE; DELETE FROM entries");
  Child other([&] {
    await([&] { return signals->come.load(); });
    const Clock::time_point begun = Clock::now();
    ActivationCache second(options);
    for (std::uint64_t id = 0; id < 100; ++id) {
      if (ask(second, id) != Answer::kRight) return 2;
    }
    put_value(second, 300);
    second.flush(20);
    const double seconds = seconds_since(begun);
    if (seconds >= within(1.0)) std::fprintf(stderr, "a second process took %.3f s\n", seconds);
    return seconds < within(1.0) ? 0 : 3;
  });
  ActivationCache cache(options);
  for (std::uint64_t id = 0; id < 100; ++id) put_value(cache, id);
  cache.flush();
  cache.refresh();
  enter(writer, *signals);

  Clock::time_point start = Clock::now();
  for (std::uint64_t id = 100; id < 200; ++id) put_value(cache, id);
  EXPECT_LT(seconds_since(start), within(1.0));
  start = Clock::now();
  EXPECT_TRUE(cache.flush(20));
  EXPECT_LT(seconds_since(start), within(1.0));
  start = Clock::now();
  for (std::uint64_t id = 0; id < 100; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
  for (std::uint64_t id = 100; id < 200; ++id) EXPECT_EQ(ask(cache, id), Answer::kMissing) << id;
  cache.refresh();
  EXPECT_FALSE(cache.remove(key_of(1)));
  EXPECT_LT(seconds_since(start), within(1.0));
  const DiskStats stats = disk_stats(cache);
  EXPECT_EQ(stats.dropped, 100);
  EXPECT_GT(stats.errors, 0);
  EXPECT_NE(stats.state, "");

  signals->come = true;
  EXPECT_EQ(other.wait(), 0);

  writer.kill();
  std::uint64_t id = 400;
  await([&] {  // it is looked at again after a while
    put_value(cache, ++id);
    cache.flush(20);
    return ask(cache, id) == Answer::kRight;
  });
  EXPECT_EQ(disk_stats(cache).state, "");
  for (id = 0; id < 100; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
}

void a_reader_inside(std::uint64_t limit, std::size_t bytes, std::uint64_t entries) {
  const Folder folder;
  const Shared<Signals> signals;
  Child reader = in_transaction(folder, *signals, "BEGIN; SELECT count(*) FROM entries");
  ActivationCache cache(on_disk(folder, limit));
  for (std::uint64_t id = 0; id < 200; ++id) put_value(cache, id, bytes);
  cache.flush();
  enter(reader, *signals);
  double seconds = 0.001;
  for (std::uint64_t id = 200; id < entries; ++id) {
    put_value(cache, id, bytes, seconds);
    seconds *= 1.001;  // ever dearer, so that something must go for each
    if (id % 200 != 0) continue;
    const Clock::time_point start = Clock::now();
    ASSERT_TRUE(cache.flush(20));
    ASSERT_LT(seconds_since(start), within(1.0));
    ASSERT_LE(disk_bytes(folder.cache()), limit) << id;
    ASSERT_NE(ask(cache, id), Answer::kWrong);
  }
  EXPECT_TRUE(cache.flush(20));
  const DiskStats stats = disk_stats(cache);
  EXPECT_EQ(stats.insertions + stats.dropped + stats.rejections, entries);
  reader.kill();
  std::uint64_t id = entries;
  await([&] {
    put_value(cache, ++id, bytes, seconds);
    cache.flush(20);
    return ask(cache, id) == Answer::kRight;
  });
  EXPECT_LE(disk_bytes(folder.cache()), limit);
  EXPECT_LT(std::filesystem::file_size(folder.cache() + "/index.db-wal"), kMiB);
}

TEST(DiskStop, AReaderInsideATransaction) {
  for (const std::size_t bytes : {16U, 4000U, 100U, 500U, 30'000U}) {
    SCOPED_TRACE(bytes);
    a_reader_inside(kSmallest, bytes, 3000);
    if (!is_stress()) {
      if (bytes == 4000) break;
      continue;
    }
    a_reader_inside(3 * kSmallest, bytes, 3000);
  }
}

}  // namespace
}  // namespace tensorkey::test
