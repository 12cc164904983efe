// The index and the disk below it: a directory that cannot be written, what the files take, a full
// disk.
#include <gtest/gtest.h>

#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "store/disk/index_test_files.h"

namespace tensorkey::internal {
namespace {

using namespace test;

// Root may write anywhere; for a while it is somebody who may not.
class IndexReadOnly : public ::testing::Test {
 protected:
  void protect(const Folder& folder) {
    if (::geteuid() == 0) {
      for (const auto& file : std::filesystem::recursive_directory_iterator(folder.path())) {
        ::chmod(file.path().c_str(), file.is_directory() ? 0555 : 0444);
      }
    }
    ::chmod(folder.path().c_str(), 0555);
    if (::geteuid() == 0) demoted_ = ::seteuid(65534) == 0;
    if (::access(folder.path().c_str(), W_OK) == 0 && !demoted_)
      GTEST_SKIP() << "no permissions here";
  }
  void TearDown() override { unprotect(); }
  void unprotect() {
    EXPECT_TRUE(!demoted_ || ::seteuid(0) == 0);
    demoted_ = false;
  }

 private:
  bool demoted_ = false;
};

TEST_F(IndexReadOnly, WithoutALogTheFileAloneIsRead) {
  const Folder folder;
  const std::string odd = folder / "100% odd?#&=\xC3\xA9";
  std::filesystem::create_directory(odd);
  const std::string path = odd + "/index.db";
  make(path, 100);
  ASSERT_TRUE(Index({.path = path}).checkpoint());
  std::filesystem::remove(path + "-wal");
  std::filesystem::remove(path + "-shm");
  ::chmod(odd.c_str(), 0555);
  protect(folder);
  if (IsSkipped()) return;
  {
    Index index({.path = path, .read_only = true});
    EXPECT_EQ(all_of(index).size(), 100U);
    EXPECT_TRUE(index.find(key_of(3)));
    EXPECT_FALSE(index.vacuum(10));
    EXPECT_FALSE(index.checkpoint());
    EXPECT_EQ(index.data_version(), index.data_version());
    expect_error(ErrorCode::kUnavailable, [&] { const Index::Write refused(index); });
    expect_error(ErrorCode::kUnavailable, [&] { const Index refused({.path = path}); });
  }
  unprotect();
  ::chmod(odd.c_str(), 0700);
  EXPECT_FALSE(std::filesystem::exists(path + "-wal"));
}

TEST_F(IndexReadOnly, TheLogIsReadWhereThereIsOne) {
  const Folder folder;
  make(folder.index(), 100);
  protect(folder);
  if (IsSkipped()) return;
  {
    Index index({.path = folder.index(), .read_only = true});
    EXPECT_EQ(all_of(index).size(), 100U);
    EXPECT_EQ(index.entries(), 100U);
  }
  unprotect();
}

TEST_F(IndexReadOnly, AReaderAmongWriters) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 1);
  Index writer({.path = folder.index()});
  Index reader({.path = folder.index(), .read_only = true});
  const std::int64_t before = reader.data_version();
  Index::Write write(writer);
  writer.add(entry_of(1, segment));
  write.commit();
  EXPECT_NE(reader.data_version(), before);
  EXPECT_EQ(all_of(reader).size(), 2U);
}

TEST(IndexDisk, CheckpointCutsTheLog) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 2000);
  Index index({.path = folder.index(), .wal_bytes = 64 << 10});
  EXPECT_TRUE(index.checkpoint());
  EXPECT_EQ(std::filesystem::file_size(folder.index() + "-wal"), 0U);
  for (std::uint64_t i = 0; i < 200; ++i) {  // kept near its size by commits alone
    Index::Write write(index);
    for (std::uint64_t k = 0; k < 10; ++k) index.add(entry_of(2000 + 10 * i + k, segment));
    write.commit();
  }
  EXPECT_LT(std::filesystem::file_size(folder.index() + "-wal"), 256U << 10);
  EXPECT_EQ(all_of(index).size(), 4000U);
}

TEST(IndexDisk, CheckpointWaitsForNobody) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 2000);
  sqlite3* reader = nullptr;
  ASSERT_EQ(sqlite3_open(folder.index().c_str(), &reader), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(reader, "BEGIN; SELECT count(*) FROM entries", nullptr, nullptr, nullptr),
            SQLITE_OK);
  Index index({.path = folder.index(), .busy = std::chrono::hours(1), .wal_bytes = 4096});
  Index::Write write(index);
  index.add(entry_of(2000, segment));
  write.commit();
  EXPECT_FALSE(index.checkpoint());
  EXPECT_EQ(sqlite3_exec(reader, "END", nullptr, nullptr, nullptr), SQLITE_OK);
  EXPECT_TRUE(index.checkpoint());
  EXPECT_EQ(sqlite3_close(reader), SQLITE_OK);
}

TEST(IndexDisk, StaysSmallWhenItsContentIsReplaced) {
  constexpr std::uint64_t kEntries = 50'000;
  constexpr std::uint64_t kInSegment = 5'000;
  const Folder folder;
  Index::create(folder.index(), 0600, 1 << 30);
  Index index({.path = folder.index()});
  std::uint64_t next = 0;
  for (std::uint64_t i = 0; i < 11 * kEntries / kInSegment; ++i) {
    if (i >= kEntries / kInSegment) {
      Index::Write write(index);
      EXPECT_EQ(index.remove_segment(index.segments().front()), kInSegment);
      write.commit();
    }
    std::uint32_t segment = 0;
    for (std::uint64_t k = 0; k < kInSegment; k += 1000) {
      Index::Write write(index);
      if (k == 0) segment = index.add_segment(mark_of(1), 1 << 26, 64);
      for (int n = 0; n < 1000; ++n) ASSERT_TRUE(index.add(entry_of(next++, segment)));
      write.commit();
    }
  }
  while (index.vacuum(500)) {
  }
  EXPECT_TRUE(index.checkpoint());
  EXPECT_EQ(index.entries(), kEntries);
  EXPECT_LE(allocated(folder.index()), 300 * kEntries);

  // And when little is left of it, most of the file goes.
  {
    Index::Write write(index);
    const std::vector<SegmentRow> rows = index.segments();
    for (std::size_t i = 0; i + 1 < rows.size(); ++i) index.remove_segment(rows[i]);
    write.commit();
  }
  while (index.vacuum(500)) {
  }
  EXPECT_FALSE(index.vacuum(500));
  EXPECT_TRUE(index.checkpoint());
  EXPECT_LE(allocated(folder.index()), 600 * kInSegment);
  EXPECT_EQ(all_of(index).size(), kInSegment);
}

TEST(IndexDisk, GrowthIsBounded) {
  const Folder folder;
  std::uint64_t next = 0;
  Index::create(folder.index(), 0600, 1 << 30);
  Index index({.path = folder.index()});
  std::uint32_t segment = 0;
  const auto expect_bounded = [&](std::size_t entries, const auto& change) {
    const std::uint64_t before = index.file_bytes();
    Index::Write write(index);
    change();
    write.commit();
    EXPECT_LE(index.file_bytes(), before + Index::growth(entries)) << entries;
    EXPECT_LE(allocated(folder.index()), index.file_bytes());
  };
  const auto add = [&](std::size_t entries) {
    segment = index.add_segment(mark_of(1), 1 << 26, 64);
    for (std::size_t i = 0; i < entries; ++i) ASSERT_TRUE(index.add(entry_of(next++, segment)));
  };
  for (int i = 0; i < 100; ++i) expect_bounded(1000, [&] { add(1000); });
  for (const std::size_t batch : {1U, 10U, 100U, 1000U}) {
    for (int i = 0; i < 30; ++i) {
      expect_bounded(batch, [&] { add(batch); });
      EXPECT_TRUE(i % 4 != 3 || index.checkpoint());
    }
    for (int i = 0; i < 10; ++i) {
      expect_bounded(batch, [&] { index.remove_segment(index.segments().back()); });
      EXPECT_TRUE(i % 4 != 3 || index.checkpoint());
    }
    for (int i = 0; i < 10; ++i) {
      expect_bounded(2 * batch, [&] {
        for (std::size_t k = 0; k < batch; ++k) index.remove(key_of((next += 7919) % 100'000));
      });
    }
  }
}

TEST(IndexDisk, AFullDiskIsExhaustedAndHeals) {
  const Folder folder;
  if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=512k") != 0) {
    GTEST_SKIP() << "needs the right to mount";
  }
  struct Unmount {
    explicit Unmount(const Folder& where) : folder(where) {}
    ~Unmount() { ::umount2(folder.path().c_str(), MNT_DETACH); }
    Unmount(const Unmount&) = delete;
    Unmount& operator=(const Unmount&) = delete;
    const Folder& folder;
  };
  const Unmount unmount(folder);
  const std::uint32_t segment = make(folder.index(), 100);
  Index index({.path = folder.index()});
  std::ofstream(folder / "filler") << std::string(1 << 20, 'x');
  expect_error(ErrorCode::kExhausted, [&] {
    Index::Write write(index);
    for (std::uint64_t i = 100; i < 1000; ++i) index.add(entry_of(i, segment));
    write.commit();
  });
  EXPECT_EQ(all_of(index).size(), 100U);
  expect_error(ErrorCode::kExhausted, [&] { Index::create(folder / "second.db", 0600, 1); });
  EXPECT_FALSE(std::filesystem::exists(folder / "second.db"));
  std::filesystem::remove(folder / "filler");
  EXPECT_TRUE(index.checkpoint());
  Index::Write write(index);
  EXPECT_TRUE(index.add(entry_of(100, segment)));
  write.commit();
}

}  // namespace
}  // namespace tensorkey::internal
