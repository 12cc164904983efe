// Processes that share a directory and are killed at any instant: what was visible stays, nothing
// is wrong, and the bound holds all the time.
#include <sys/statvfs.h>

#include <sqlite3.h>

#include <bitset>
#include <memory>

#include "store/disk/disk_test_processes.h"

namespace tensorkey::test {
namespace {

constexpr std::uint64_t kIds = 3000;
constexpr int kProcesses = 4;

struct Seen {
  std::atomic<std::uint64_t> wrong{0};
  std::atomic<std::uint64_t> calls{0};
  std::atomic<std::uint64_t> most{0};  // bytes of disk
  std::atomic<bool> done{false};
  std::array<std::atomic<bool>, kIds> visible{};
};

// Reads and writes until it is killed.
int work(const CacheOptions& options, Seen& seen, std::uint64_t seed) {
  ActivationCache cache(options);
  std::mt19937_64 random(seed);
  std::vector<std::uint64_t> waiting;
  for (;;) {
    const std::uint64_t id = random() % kIds;
    const Answer answer = ask(cache, id);
    if (answer == Answer::kWrong) ++seen.wrong;
    if (answer == Answer::kMissing) {
      put_value(cache, id);
      waiting.push_back(id);
    }
    ++seen.calls;
    if (random() % 64 != 0) continue;
    cache.flush();
    for (const std::uint64_t each : waiting) {
      if (cache.contains(key_of(each))) seen.visible[each] = true;
    }
    waiting.clear();
  }
}

// Lets processes work for a moment, then kills them one after the other.
void work_and_die(const CacheOptions& options, Seen& seen, std::mt19937_64& random, int least,
                  int most) {
  std::vector<Child> children;
  for (int i = 0; i < kProcesses; ++i) {
    const std::uint64_t seed = random();
    children.emplace_back([&, seed] { return work(options, seen, seed); });
  }
  pause(least + static_cast<int>(random() % static_cast<std::uint64_t>(most - least)));
  for (Child& child : children) {
    child.kill();
    if (random() % 2 == 0) pause(static_cast<int>(random() % 2000));
  }
}

std::int64_t number(const std::string& path, const char* sql) {
  sqlite3* database = nullptr;
  sqlite3_stmt* statement = nullptr;
  std::int64_t value = -1;
  if (sqlite3_open(path.c_str(), &database) == SQLITE_OK &&
      sqlite3_prepare_v2(database, sql, -1, &statement, nullptr) == SQLITE_OK &&
      sqlite3_step(statement) == SQLITE_ROW) {
    value = sqlite3_column_int64(statement, 0);
  }
  sqlite3_finalize(statement);
  sqlite3_close(database);
  return value;
}

// The accounts of the index are those of its rows, and every row has its segment.
void expect_consistent(const std::string& folder) {
  const std::string index = folder + "/index.db";
  EXPECT_EQ(number(index,
                   "SELECT count(*) FROM pragma_integrity_check WHERE "
                   "integrity_check = 'ok'"),
            1);
  EXPECT_EQ(number(index,
                   "SELECT count(*) FROM entries WHERE segment NOT IN "
                   "(SELECT id FROM segments)"),
            0);
  EXPECT_EQ(number(index,
                   "SELECT count(*) FROM segments s WHERE entries != (SELECT count(*) FROM "
                   "entries e WHERE e.segment = s.id) OR bytes != (SELECT "
                   "ifnull(sum(length), 0) FROM entries e WHERE e.segment = s.id)"),
            0);
}

TEST(DiskKill, WhatWasVisibleIsFound) {
  const Folder folder;
  const CacheOptions options = on_disk(folder, std::uint64_t{64} << 20);  // nothing is evicted
  const Shared<Seen> seen;
  std::mt19937_64 random(1);
  for (int round = 0; round < times(25, 500); ++round) {
    SCOPED_TRACE(round);
    work_and_die(options, *seen, random, 2'000, 60'000);
    const Clock::time_point start = Clock::now();
    ActivationCache cache(options);
    static_cast<void>(cache.contains(key_of(0)));
    ASSERT_LT(seconds_since(start), within(1.0));
    for (std::uint64_t id = 0; id < kIds; ++id) {
      const Answer answer = ask(cache, id);
      ASSERT_NE(answer, Answer::kWrong) << id;
      ASSERT_TRUE(answer == Answer::kRight || !seen->visible[id]) << id;
    }
    const DiskStats stats = disk_stats(cache);
    ASSERT_EQ(stats.state, "");
    ASSERT_EQ(stats.errors, 0);
    ASSERT_EQ(stats.corrupt, 0);
    ASSERT_EQ(stats.rebuilds, 0);
    ASSERT_EQ(seen->wrong, 0);
    if (stats.entries > kIds * 9 / 10) {  // and once more from the beginning
      cache.clear();
      for (std::atomic<bool>& each : seen->visible) each = false;
    }
  }
  EXPECT_GT(seen->calls, 1000);
  expect_consistent(folder.cache());
}

// What is allocated on a file system of its own, its blocks that no name leads to included; else
// what the files have while nobody can add one.
class Sampler {
 public:
  Sampler(std::string path, bool mounted) : path_(std::move(path)), mounted_(mounted) {}
  ~Sampler() { sqlite3_close(database_); }
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  std::uint64_t bytes() {
    if (mounted_) {
      struct statvfs about {};
      ::statvfs(path_.c_str(), &about);
      return (about.f_blocks - about.f_bfree) * about.f_frsize;
    }
    if (database_ == nullptr) {
      sqlite3_open_v2((path_ + "/index.db").c_str(), &database_, SQLITE_OPEN_READWRITE, nullptr);
    }
    if (sqlite3_exec(database_, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr) != SQLITE_OK)
      return 0;
    const std::uint64_t bytes = disk_bytes(path_);
    sqlite3_exec(database_, "ROLLBACK", nullptr, nullptr, nullptr);
    return bytes;
  }

 private:
  const std::string path_;
  const bool mounted_;
  sqlite3* database_ = nullptr;
};

void keep_the_bound(std::uint64_t limit) {
  const Folder folder;
  const Mount mount(folder.path() / "mount", "size=64m");
  CacheOptions options = on_disk(folder, limit);
  if (mount) options.disk = mount.path() + "/cache";
  const Shared<Seen> seen;
  { const ActivationCache made(options); }
  const std::string sampled = mount ? mount.path() : options.disk;
  const Child sampler([&] {
    Sampler it(sampled, static_cast<bool>(mount));
    while (!seen->done) {
      const std::uint64_t bytes = it.bytes();
      if (bytes > seen->most) seen->most = bytes;
      pause(100);
    }
    return 0;
  });
  std::mt19937_64 random(limit);
  for (int round = 0; round < times(12, 500); ++round) {
    SCOPED_TRACE(round);
    work_and_die(options, *seen, random, 10'000, 120'000);
    const Clock::time_point start = Clock::now();
    ActivationCache cache(options);
    static_cast<void>(cache.contains(key_of(0)));
    ASSERT_LT(seconds_since(start), within(1.0));
    for (std::uint64_t id = 0; id < kIds; ++id) ASSERT_NE(ask(cache, id), Answer::kWrong) << id;
    ASSERT_EQ(disk_stats(cache).state, "");
    ASSERT_EQ(disk_stats(cache).corrupt, 0);
    ASSERT_LE(disk_bytes(options.disk), limit);
    ASSERT_LE(seen->most, limit);
    ASSERT_EQ(seen->wrong, 0);
  }
  seen->done = true;
  EXPECT_GT(seen->most, limit / 2);
  expect_consistent(options.disk);
}

TEST(DiskKill, TheSmallestBoundHolds) { keep_the_bound(kSmallest); }

TEST(DiskKill, ABoundHolds) { keep_the_bound(2 * kSmallest); }

// A process that is gone leaves its segment to the next one, which goes on behind its last record.
TEST(DiskKill, SegmentsAreTakenOver) {
  const Folder folder;
  const CacheOptions options = on_disk(folder);
  const Shared<std::atomic<bool>> flushed;
  for (std::uint64_t id = 0; id < 20; ++id) {
    *flushed = false;
    Child child([&] {
      ActivationCache cache(options);
      put_value(cache, id);
      cache.flush();
      *flushed = true;
      for (;;) ::pause();
      return 0;
    });
    await([&] { return flushed->load(); });
    child.kill();
  }
  std::size_t segments = 0;
  for (const auto& file : std::filesystem::directory_iterator(folder.cache())) {
    segments += file.path().extension() == ".seg" ? 1U : 0U;
  }
  EXPECT_EQ(segments, 1U);
  ActivationCache cache(options);
  for (std::uint64_t id = 0; id < 20; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
}

}  // namespace
}  // namespace tensorkey::test
