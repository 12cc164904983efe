// A device that refuses to read or write now and then: misses and drops that are counted, nothing
// wrong, nothing lost but what was refused.
#include <tensorkey/error.h>

#include <sys/syscall.h>
#include <sys/uio.h>

#include <fstream>
#include <memory>

#include "store/disk/context.h"
#include "store/disk/disk_test_processes.h"

namespace {

// Which calls fail, for files below a folder, and how many of 1024.
struct Device {
  std::atomic<unsigned> reads{0};
  std::atomic<unsigned> writes{0};
  std::string folder{};
  std::atomic<off_t> behind{0};  // reads that begin before are never refused
};

Device& device() {
  static Device instance;
  return instance;
}

bool refuses(const std::atomic<unsigned>& share, int file) {
  const unsigned wanted = share;
  if (wanted == 0) return false;
  static std::atomic<std::uint64_t> calls{0};
  if (tensorkey::test::mixed(++calls) % 1024 >= wanted) return false;
  std::array<char, 512> name{};
  const std::string link = "/proc/self/fd/" + std::to_string(file);
  const ssize_t length = ::readlink(link.c_str(), name.data(), name.size());
  if (length < 0 || std::string_view(name.data(), static_cast<std::size_t>(length))
                            .substr(0, device().folder.size()) != device().folder) {
    return false;
  }
  errno = EIO;
  return true;
}

}  // namespace

// In front of the C library's, for SQLite too.
extern "C" {

ssize_t pread(int file, void* out, std::size_t bytes, off_t at) {
  return at >= device().behind && refuses(device().reads, file)
             ? -1
             : ::syscall(SYS_pread64, file, out, bytes, at);
}
ssize_t pread64(int file, void* out, std::size_t bytes, off_t at) {
  return pread(file, out, bytes, at);
}
ssize_t preadv(int file, const struct iovec* parts, int count, off_t at) {
  return refuses(device().reads, file) ? -1 : ::syscall(SYS_preadv, file, parts, count, at, 0L);
}
ssize_t pwrite(int file, const void* from, std::size_t bytes, off_t at) {
  return refuses(device().writes, file) ? -1 : ::syscall(SYS_pwrite64, file, from, bytes, at);
}
ssize_t pwrite64(int file, const void* from, std::size_t bytes, off_t at) {
  return pwrite(file, from, bytes, at);
}
int fallocate(int file, int mode, off_t at, off_t bytes) {
  return refuses(device().writes, file)
             ? -1
             : static_cast<int>(::syscall(SYS_fallocate, file, mode, at, bytes));
}
int ftruncate(int file, off_t bytes) noexcept {
  return refuses(device().writes, file) ? -1
                                        : static_cast<int>(::syscall(SYS_ftruncate, file, bytes));
}
int ftruncate64(int file, off_t bytes) noexcept { return ftruncate(file, bytes); }
int fsync(int file) {
  return refuses(device().writes, file) ? -1 : static_cast<int>(::syscall(SYS_fsync, file));
}

}  // extern "C"

namespace tensorkey::test {
namespace {

constexpr std::uint64_t kIds = 300;

class DiskEio : public ::testing::Test {
 protected:
  DiskEio() : options_(on_disk(folder_)) {
    device().folder = options_.disk;
    ActivationCache cache(options_);
    for (std::uint64_t id = 0; id < kIds; ++id) put_value(cache, id);
  }
  ~DiskEio() override {
    refuse(0, 0);
    device().behind = 0;
  }
  DiskEio(const DiskEio&) = delete;
  DiskEio& operator=(const DiskEio&) = delete;

  static void refuse(unsigned reads, unsigned writes) {
    device().reads = reads;
    device().writes = writes;
  }

  // What was there is there still, once the device works. Where the index has been left alone for a
  // while it is asked again.
  static void expect_all(ActivationCache& cache) {
    for (std::uint64_t id = 0; id < kIds; ++id) {
      Answer answer = Answer::kMissing;
      await([&] {
        answer = ask(cache, id);
        if (answer != Answer::kMissing) return true;
        cache.refresh();
        const bool works = disk_stats(cache).state.empty();
        answer = ask(cache, id);
        return answer != Answer::kMissing || (works && disk_stats(cache).state.empty());
      });
      ASSERT_EQ(answer, Answer::kRight) << id << " is lost";
    }
  }
  [[nodiscard]] bool has_index() const {
    return std::filesystem::exists(options_.disk + "/index.db");
  }
  void remove_index() const {
    for (const char* const suffix : {"", "-wal", "-shm"}) {
      std::filesystem::remove(options_.disk + "/index.db" + suffix);
    }
  }

  const Folder folder_;
  const CacheOptions options_;
};

TEST_F(DiskEio, NothingCanBeRead) {
  ActivationCache cache(options_);
  expect_all(cache);
  refuse(1024, 0);
  for (std::uint64_t id = 0; id < kIds; ++id) EXPECT_EQ(ask(cache, id), Answer::kMissing) << id;
  std::vector<std::byte> out(usual_size(1));
  EXPECT_FALSE(cache.read(key_of(1), out));
  EXPECT_EQ(ask(cache, kIds + 1), Answer::kMissing);
  const DiskStats stats = disk_stats(cache);
  EXPECT_GE(stats.errors, kIds);
  EXPECT_EQ(stats.corrupt, 0);
  refuse(0, 0);
  expect_all(cache);
  EXPECT_EQ(disk_stats(cache).rebuilds, 0);
}

TEST_F(DiskEio, NothingCanBeWritten) {
  ActivationCache cache(options_);
  refuse(0, 1024);
  for (std::uint64_t id = 1000; id < 1300; ++id) {
    put_value(cache, id);
    ASSERT_EQ(ask(cache, id % kIds), Answer::kRight);
  }
  EXPECT_TRUE(cache.flush(20));
  EXPECT_EQ(disk_stats(cache).dropped, 300);
  EXPECT_GT(disk_stats(cache).errors, 0);
  EXPECT_NE(disk_stats(cache).state, "");
  refuse(0, 0);
  expect_all(cache);
  std::uint64_t id = 2000;
  await([&] {
    put_value(cache, ++id);
    cache.flush(20);
    return ask(cache, id) == Answer::kRight;
  });
  EXPECT_EQ(disk_stats(cache).state, "");
}

TEST_F(DiskEio, OpenedWhileNothingCanBeRead) {
  refuse(1024, 0);
  try {
    const ActivationCache refused(options_);
    ADD_FAILURE() << "it was opened";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable) << error.what();
    EXPECT_NE(std::string(error.what()).find("expected"), std::string::npos) << error.what();
  }
  refuse(0, 0);
  ActivationCache cache(options_);
  expect_all(cache);
  EXPECT_EQ(disk_stats(cache).rebuilds, 0);
}

// An index that is made without what cannot be read for a moment would lose it for good.
TEST_F(DiskEio, AnIndexIsMadeOfAllSegmentsOrNone) {
  for (const auto& [damaged, behind] :
       std::vector<std::pair<bool, off_t>>{{false, 0},
                                           {true, 0},
                                           {false, internal::kSegmentHead},
                                           {true, internal::kSegmentHead}}) {
    SCOPED_TRACE(damaged);
    SCOPED_TRACE(behind);
    device().behind = behind;
    remove_index();
    if (damaged) std::ofstream(options_.disk + "/index.db") << "no index";
    device().folder = options_.disk + "/000000000002.seg";
    refuse(1024, 0);
    ActivationCache cache(options_);
    for (std::uint64_t id = 0; id < kIds; ++id) ASSERT_EQ(ask(cache, id), Answer::kMissing) << id;
    put_value(cache, kIds);
    EXPECT_TRUE(cache.flush(20));
    const DiskStats stats = disk_stats(cache);
    EXPECT_EQ(stats.dropped, 1);
    EXPECT_EQ(stats.rebuilds, 0);
    EXPECT_NE(stats.state, "");
    EXPECT_FALSE(has_index());
    refuse(0, 0);
    expect_all(cache);
    put_value(cache, kIds);
    EXPECT_TRUE(cache.flush(20));
    EXPECT_EQ(ask(cache, kIds), Answer::kRight);
    EXPECT_TRUE(cache.remove(key_of(kIds)));
    EXPECT_EQ(disk_stats(cache).corrupt, 0);
  }
}

// What a device goes on refusing does not keep the rest out for ever.
TEST_F(DiskEio, AnIndexIsMadeWithoutASegmentThatIsRefusedForLong) {
  remove_index();
  device().folder = options_.disk + "/000000000002.seg";
  refuse(1024, 0);
  {
    internal::DiskContext context(options_);
    try {
      static_cast<void>(internal::open_index(context));
      ADD_FAILURE() << "it was made";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kIo) << error.what();
      EXPECT_NE(std::string(error.what()).find("000000000002.seg"), std::string::npos)
          << error.what();
    }
    EXPECT_FALSE(has_index());
    context.refusal_patience = milliseconds(0);
    const std::uint64_t entries = internal::open_index(context)->entries();
    EXPECT_GT(entries, 0U);
    EXPECT_LT(entries, kIds);
  }
  ActivationCache cache(options_);
  EXPECT_EQ(ask(cache, 0), Answer::kRight);
  EXPECT_EQ(disk_stats(cache).state, "");
}

TEST_F(DiskEio, NowAndThen) {
  std::mt19937_64 random(5);
  for (int round = 0; round < times(15, 400); ++round) {
    SCOPED_TRACE(round);
    std::unique_ptr<ActivationCache> cache;
    refuse(random() % 2 == 0 ? 0 : 1U << random() % 10,
           random() % 2 == 0 ? 0 : 1U << random() % 10);
    try {
      cache = std::make_unique<ActivationCache>(options_);
    } catch (const Error&) {
      refuse(0, 0);
      continue;
    }
    for (int i = 0; i < 300; ++i) {
      const std::uint64_t id = random() % (2 * kIds);
      const Answer answer = ask(*cache, id);
      ASSERT_NE(answer, Answer::kWrong) << id;
      if (answer == Answer::kMissing) put_value(*cache, id);
      if (random() % 32 == 0) cache->flush(20);
      if (random() % 64 == 0) cache->remove(key_of(kIds + random() % kIds));
      if (random() % 64 == 0) cache->refresh();
    }
    ASSERT_TRUE(cache->flush(20));
    cache.reset();
    refuse(0, 0);
    ActivationCache after(options_);
    expect_all(after);
    ASSERT_FALSE(HasFatalFailure());
    const DiskStats stats = disk_stats(after);
    ASSERT_EQ(stats.state, "");
    ASSERT_EQ(stats.corrupt + stats.errors + stats.rebuilds, 0);
  }
}

}  // namespace
}  // namespace tensorkey::test
