// A disk that is full, or cannot be written, an index that does not fit into memory, and files that
// somebody replaces: nothing is thrown after construction, what fails is counted, and it goes on
// when the fault is over.
#include <tensorkey/error.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "store/disk/disk_test_processes.h"
#include "store/disk/index.h"

namespace tensorkey::test {
namespace {

namespace fs = std::filesystem;

void fill(const fs::path& path, std::size_t bytes) {
  std::ofstream stream(path, std::ios::binary);
  const std::vector<char> block(4096, 'x');
  for (std::size_t i = 0; i < bytes && stream; i += block.size()) {
    stream.write(block.data(), static_cast<std::streamsize>(block.size()));
  }
}

// What is put is found some time later: a store that failed is left alone for a while.
void expect_to_go_on(ActivationCache& cache, std::uint64_t id) {
  await([&] {
    put_value(cache, ++id);
    EXPECT_TRUE(cache.flush(20));
    return ask(cache, id) == Answer::kRight && ask(cache, 0) != Answer::kWrong &&
           disk_stats(cache).state.empty();
  });
}

class DiskFault : public ::testing::Test {
 protected:
  const Folder folder_;
};

// Puts entries until well after the disk is full; `missing`: whether some were not written.
void put_many(ActivationCache& cache, std::uint64_t first, std::uint64_t count, bool missing) {
  for (std::uint64_t id = first; id < first + count; ++id) {
    put_value(cache, id);
    if (id % 100 == 0) {
      ASSERT_TRUE(cache.flush(20));
    }
    ASSERT_NE(ask(cache, id), Answer::kWrong);
  }
  ASSERT_TRUE(cache.flush(20));
  std::uint64_t found = 0;
  for (std::uint64_t id = first; id < first + count; ++id) {
    const Answer answer = ask(cache, id);
    ASSERT_NE(answer, Answer::kWrong);
    found += answer == Answer::kRight ? 1U : 0U;
  }
  const DiskStats stats = disk_stats(cache);
  EXPECT_EQ(found == count, !missing);
  EXPECT_EQ(stats.dropped > 0, missing);
  EXPECT_EQ(stats.corrupt, 0);
}

TEST_F(DiskFault, AFullDisk) {
  for (const char* const size : {"size=1m", "size=8m"}) {
    SCOPED_TRACE(size);
    const Mount mount(folder_.path() / "mount", size);
    if (!mount) GTEST_SKIP() << "needs to mount";
    CacheOptions options = on_disk(folder_);
    options.disk = mount.path() + "/cache";
    ActivationCache cache(options);
    fill(mount.path() + "/filler", 1 << 19);
    put_many(cache, 0, 6000, true);
    EXPECT_GT(disk_stats(cache).errors, 0);
    fs::remove(mount.path() + "/filler");
    expect_to_go_on(cache, 10'000);
  }
}

TEST_F(DiskFault, OpenedOnAFullDisk) {
  const Mount mount(folder_.path() / "mount", "size=2m");
  if (!mount) GTEST_SKIP() << "needs to mount";
  CacheOptions options = on_disk(folder_);
  options.disk = mount.path() + "/cache";
  {
    ActivationCache cache(options);
    for (std::uint64_t id = 0; id < 50; ++id) put_value(cache, id);
  }
  fill(mount.path() + "/filler", 1 << 22);
  {
    ActivationCache cache(options);
    for (std::uint64_t id = 0; id < 50; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
    for (std::uint64_t id = 50; id < 1000; ++id) put_value(cache, id);
    EXPECT_TRUE(cache.flush(20));
    for (std::uint64_t id = 0; id < 50; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
    EXPECT_GT(disk_stats(cache).dropped, 0);
    fs::remove(mount.path() + "/filler");
    expect_to_go_on(cache, 2000);
  }
  // Where there is no room for a new directory either, it is refused.
  fill(mount.path() + "/filler", 1 << 22);
  options.disk = mount.path() + "/other";
  EXPECT_THROW(ActivationCache{options}, std::exception);
  fs::remove(mount.path() + "/filler");
  ActivationCache cache(options);
  expect_to_go_on(cache, 0);
}

TEST_F(DiskFault, AReadOnlyMount) {
  const Mount mount(folder_.path() / "mount", "size=16m");
  if (!mount) GTEST_SKIP() << "needs to mount";
  CacheOptions options = on_disk(folder_);
  options.disk = mount.path() + "/cache";
  {
    ActivationCache cache(options);
    for (std::uint64_t id = 0; id < 50; ++id) put_value(cache, id);
  }
  ASSERT_TRUE(mount.remount(MS_RDONLY));
  {
    ActivationCache cache(options);
    for (std::uint64_t id = 0; id < 50; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
    put_value(cache, 50);
    EXPECT_TRUE(cache.flush());
    EXPECT_EQ(ask(cache, 50), Answer::kMissing);
    EXPECT_FALSE(cache.remove(key_of(1)));
    EXPECT_EQ(cache.purge(0), 0U);
    EXPECT_EQ(ask(cache, 1), Answer::kRight);
    const EntryPtr entry =
        cache.get_or_compute(key_of(60), [] { return make_value(60, usual_size(60)); });
    EXPECT_TRUE(is_value(*entry, 60));
    const DiskStats stats = disk_stats(cache);
    EXPECT_EQ(stats.state, "read-only");
    EXPECT_EQ(stats.errors, 0);
  }
  ASSERT_TRUE(mount.remount(0));
  ActivationCache cache(options);
  EXPECT_EQ(disk_stats(cache).state, "");
  expect_to_go_on(cache, 100);
}

// A directory that others write, seen through a mount that cannot: what they add is found.
TEST_F(DiskFault, AReadOnlyMountOfWhatOthersWrite) {
  const CacheOptions options = on_disk(folder_);
  ActivationCache writer(options);
  for (std::uint64_t id = 0; id < 50; ++id) put_value(writer, id);
  writer.flush();
  const std::string view = (folder_.path() / "view").string();
  fs::create_directory(view);
  if (::mount(options.disk.c_str(), view.c_str(), nullptr, MS_BIND, nullptr) != 0) {
    GTEST_SKIP() << "needs to mount";
  }
  struct Unmount {
    const std::string& path;
    ~Unmount() { ::umount2(path.c_str(), MNT_DETACH); }
  } const unmount{view};
  ASSERT_EQ(::mount(nullptr, view.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr), 0);
  CacheOptions reading = options;
  reading.disk = view;
  ActivationCache cache(reading);
  EXPECT_EQ(disk_stats(cache).state, "read-only");
  for (std::uint64_t id = 0; id < 50; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
  for (std::uint64_t id = 50; id < 90; ++id) put_value(writer, id);
  writer.flush();
  cache.refresh();
  for (std::uint64_t id = 0; id < 90; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
  EXPECT_EQ(disk_stats(cache).errors, 0);
  EXPECT_EQ(disk_stats(writer).errors, 0);
}

constexpr uid_t kNobody = 65534;

// In a process whose user may be refused something. Root may do all.
template <typename Work>
int as_nobody(const Folder& folder, const Work& work) {
  fs::permissions(folder.path(), fs::perms{0777});
  Child child([&] {
    if (::geteuid() == 0 && (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0)) return 77;
    work();
    return ::testing::Test::HasFailure() ? 2 : 0;
  });
  return child.wait();
}

TEST_F(DiskFault, PermissionsThatAreTakenWhileItIsInUse) {
  const CacheOptions options = on_disk(folder_);
  const int result = as_nobody(folder_, [&] {
    ActivationCache cache(options);
    for (std::uint64_t id = 0; id < 50; ++id) put_value(cache, id);
    cache.flush();
    fs::permissions(options.disk, fs::perms{0});
    for (std::uint64_t id = 0; id < 200; ++id) {
      put_value(cache, id);
      EXPECT_NE(ask(cache, id), Answer::kWrong);
    }
    EXPECT_TRUE(cache.flush(20));
    cache.refresh();
    EXPECT_NE(ask(cache, 300), Answer::kWrong);
    const DiskStats stats = disk_stats(cache);
    EXPECT_GT(stats.dropped, 0);
    EXPECT_NE(stats.state, "");
    EXPECT_THROW(ActivationCache{options}, Error);
    fs::permissions(options.disk, fs::perms{0700});
    expect_to_go_on(cache, 1000);
    await([&] { return ask(cache, 7) == Answer::kRight; });
    for (std::uint64_t id = 0; id < 50; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
  });
  EXPECT_EQ(result, 0);
}

TEST_F(DiskFault, ADirectoryThatMayOnlyBeRead) {
  const CacheOptions options = on_disk(folder_);
  const int result = as_nobody(folder_, [&] {
    {
      ActivationCache cache(options);
      for (std::uint64_t id = 0; id < 50; ++id) put_value(cache, id);
    }
    for (const auto& file : fs::directory_iterator(options.disk)) {
      fs::permissions(file.path(), fs::perms{0400});
    }
    fs::permissions(options.disk, fs::perms{0500});
    {
      ActivationCache cache(options);
      EXPECT_EQ(disk_stats(cache).state, "read-only");
      for (std::uint64_t id = 0; id < 50; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
      put_value(cache, 100);
      EXPECT_EQ(ask(cache, 100), Answer::kMissing);
    }
    fs::permissions(options.disk, fs::perms{0700});
  });
  EXPECT_EQ(result, 0);
}

TEST_F(DiskFault, AnIndexThatCannotBeRead) {
  const CacheOptions options = on_disk(folder_);
  const int result = as_nobody(folder_, [&] {
    { const ActivationCache made(options); }
    fs::permissions(options.disk + "/index.db", fs::perms{0});
    try {
      const ActivationCache cache(options);
      ADD_FAILURE() << "it was opened";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnavailable) << error.what();
    }
  });
  EXPECT_EQ(result, 0);
}

TEST_F(DiskFault, MoreEntriesThanTheMirrorTakes) {
  constexpr std::uint64_t kEntries = 3000;
  CacheOptions options = on_disk(folder_);
  {
    ActivationCache cache(options);
    for (std::uint64_t id = 0; id < kEntries; ++id) put_value(cache, id, 32);
  }
  for (const std::size_t limit : {std::size_t{0}, std::size_t{24} << 10, std::size_t{64} << 10}) {
    SCOPED_TRACE(limit);
    options.index_limit = limit;
    ActivationCache cache(options);
    for (std::uint64_t id = 0; id < kEntries; ++id) {
      ASSERT_EQ(ask(cache, id), Answer::kRight) << id;
    }
    EXPECT_EQ(ask(cache, kEntries + 1), Answer::kMissing);
    const DiskStats stats = disk_stats(cache);
    EXPECT_EQ(stats.errors, 0);
    EXPECT_EQ(stats.index_bound, limit);
    EXPECT_TRUE(limit == 0 || stats.index_bytes <= limit) << stats.index_bytes;
    const std::uint64_t id = kEntries + 10 + limit;
    put_value(cache, id);
    cache.flush();
    EXPECT_EQ(ask(cache, id), Answer::kRight);
  }
}

// Removed and made anew by somebody else, as cleaners of temporary directories do.
TEST_F(DiskFault, TheDirectoryIsRemovedAndMadeAgain) {
  const CacheOptions options = on_disk(folder_);
  ActivationCache cache(options);
  for (std::uint64_t id = 0; id < 50; ++id) put_value(cache, id);
  cache.flush();
  fs::remove_all(options.disk);
  ActivationCache other(options);
  for (std::uint64_t id = 0; id < 200; ++id) {
    put_value(cache, id);
    put_value(other, id + 1000);
    ASSERT_NE(ask(cache, id), Answer::kWrong);
  }
  EXPECT_TRUE(cache.flush(20));
  EXPECT_TRUE(other.flush(20));
  for (std::uint64_t id = 0; id < 200; ++id) {
    EXPECT_EQ(ask(other, id + 1000), Answer::kRight) << id;
    EXPECT_NE(ask(cache, id), Answer::kWrong);
  }
  EXPECT_EQ(disk_stats(other).errors, 0);
  EXPECT_NE(disk_stats(cache).state, "");
}

TEST(DiskReplaced, MakingAnIndexAnewKeepsTheBound) {
  const Folder folder;
  {
    ActivationCache cache(on_disk(folder, kSmallest));
    for (std::uint64_t id = 0; id < 20'000; ++id) put(cache, id, 16);
  }
  const fs::path index = fs::path(folder.cache()) / "index.db";
  fs::remove(fs::path(folder.cache()) / "index.db-wal");
  const std::string nothing(4096, 'x');
  std::fstream(index, std::ios::in | std::ios::out).write(nothing.data(), std::ssize(nothing));
  std::atomic<bool> done{false};
  std::uint64_t most = 0;
  std::thread watch([&] {
    while (!done) most = std::max(most, disk_bytes(folder.cache()));
  });
  {
    ActivationCache cache(on_disk(folder, kSmallest));
    EXPECT_EQ(disk_stats(cache).rebuilds, 1);
    EXPECT_GT(disk_stats(cache).entries, 2000);
    for (std::uint64_t id = 30'000; id < 31'000; ++id) put(cache, id, 16);
  }
  done = true;
  watch.join();
  EXPECT_LE(most, kSmallest);
}

// Numbers of segments and ids of rows begin anew then; nothing of before may be taken for them.
TEST(DiskReplaced, AnIndexThatOthersMadeAnewIsReadFromItsBeginning) {
  for (const bool forked : {false, true}) {
    const Folder folder;
    ActivationCache cache(on_disk(folder));
    for (std::uint64_t id = 0; id < 100; ++id) put(cache, id);
    EXPECT_TRUE(cache.flush());
    for (std::uint64_t id = 0; id < 100; ++id) EXPECT_TRUE(cache.contains(key_of(id)));
    if (forked) {  // which closes the connections
      EXPECT_EQ(Child([] { return 0; }).wait(), 0);
    }
    for (const auto& file : fs::directory_iterator(folder.cache())) {
      if (file.path().filename() != "tensorkey.lock") fs::remove(file.path());
    }
    ActivationCache other(on_disk(folder));
    for (std::uint64_t id = 200; id < 210; ++id) put(other, id);
    EXPECT_TRUE(other.flush());
    for (int round = 0; round < 2; ++round) {
      cache.refresh();
      for (std::uint64_t id = 200; id < 210; ++id) expect_entry(cache.find(key_of(id)), id);
      EXPECT_TRUE(cache.flush());  // which would remove the rows of bad records
    }
    EXPECT_EQ(disk_stats(cache).corrupt, 0);
    EXPECT_EQ(disk_stats(other).entries, 10);
  }
}

TEST(DiskLimit, IsSetAlsoWhereTheIndexWasLockedAtFirst) {
  const Folder folder;
  {
    ActivationCache cache(on_disk(folder));
    put_value(cache, 1);
  }
  std::unique_ptr<ActivationCache> cache;
  {
    internal::Index index({.path = folder.cache() + "/index.db"});
    const internal::Index::Write write(index);
    cache = std::make_unique<ActivationCache>(on_disk(folder, 2 * kSmallest));
  }
  expect_to_go_on(*cache, 1);
  EXPECT_EQ(disk_stats(*cache).bound, 2 * kSmallest);
}

TEST(DiskReplaced, AnotherDirectoryInItsPlaceIsLeftAlone) {
  const Folder folder;
  ActivationCache cache(on_disk(folder));
  for (std::uint64_t id = 0; id < 10; ++id) put(cache, id);
  EXPECT_TRUE(cache.flush());
  fs::rename(folder.cache(), folder.path() / "old");
  ActivationCache other(on_disk(folder));
  for (std::uint64_t id = 0; id < 10; ++id) put(other, id);
  EXPECT_TRUE(other.flush());
  for (std::uint64_t id = 0; id < 20; ++id) {
    put(cache, 100 + id);
    static_cast<void>(cache.find(key_of(id)));
    cache.flush();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // its index is left alone a while
  }
  other.refresh();
  for (std::uint64_t id = 0; id < 10; ++id) expect_entry(other.find(key_of(id)), id);
  EXPECT_EQ(disk_stats(other).entries, 10);
  for (const auto& file : fs::directory_iterator(folder.cache())) {
    EXPECT_FALSE(file.path().filename().string().starts_with("index.db.new")) << file.path();
  }
  EXPECT_NE(disk_stats(cache).state, "");
}

}  // namespace
}  // namespace tensorkey::test
