#include "store/disk/index.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <fstream>
#include <optional>
#include <span>

#include "store/disk/index_test_files.h"

namespace tensorkey::internal {
namespace {

using namespace test;

TEST(Index, IsCreatedAsOneCompleteFile) {
  const Folder folder;
  const mode_t before = ::umask(0077);
  Index::create(folder.index(), 0660, 12345, 40);
  ::umask(before);
  EXPECT_EQ(folder.files(), 1U);
  struct stat status;
  ASSERT_EQ(::stat(folder.index().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0660U);

  std::array<char, 100> head{};
  std::ifstream(folder.index(), std::ios::binary).read(head.data(), head.size());
  EXPECT_EQ(std::string_view(head.data()), "SQLite format 3");
  EXPECT_EQ(std::string_view(head.data() + 18, 2), "\x02\x02");  // WAL
  EXPECT_EQ(std::string_view(head.data() + 68, 4), "TKDX");
  EXPECT_EQ(head[63], 1);

  std::filesystem::rename(folder.index(), folder / "moved.db");
  Index index({.path = folder / "moved.db"});
  EXPECT_EQ(index.settings().limit, 12345U);
  EXPECT_EQ(index.settings().period, 0);
  EXPECT_EQ(index.entries(), 0U);
  EXPECT_EQ(index.last_id(), 0);
  EXPECT_TRUE(index.segments().empty());
  Index::Write write(index);
  EXPECT_EQ(index.add_segment(mark_of(1), 4096, 64), 40U);
}

TEST(Index, IsNotCreatedOverAnything) {
  const Folder folder;
  std::ofstream(folder.index()) << "mine";
  expect_error(ErrorCode::kIo, [&] { Index::create(folder.index(), 0600, 1); });
  EXPECT_EQ(std::filesystem::file_size(folder.index()), 4U);
  expect_error(ErrorCode::kUnavailable, [&] { Index::create(folder / "no/index.db", 0600, 1); });
}

TEST(Index, FindsWhatWasAdded) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 100);
  Index index({.path = folder.index()});
  EXPECT_EQ(segment, 1U);
  EXPECT_EQ(index.entries(), 100U);
  EXPECT_EQ(index.last_id(), 100);
  const std::optional<IndexEntry> found = index.find(key_of(42));
  ASSERT_TRUE(found);
  EXPECT_EQ(found->key, key_of(42));
  EXPECT_EQ(found->id, 43);
  EXPECT_EQ(found->scope, 7U);
  EXPECT_EQ(found->place, entry_of(42, segment).place);
  EXPECT_EQ(found->cost, 0.5);
  EXPECT_EQ(found->hits, 1);
  EXPECT_EQ(found->used, 1'700'000'000);
  EXPECT_FALSE(index.find(key_of(100)));

  Index::Write write(index);
  EXPECT_FALSE(index.add(entry_of(42, segment)));
  IndexEntry odd = entry_of(200, segment);
  odd.scope = UINT64_MAX - 1;
  odd.cost = std::nan("");
  odd.place = {.segment = segment, .offset = (std::uint64_t{1} << 36) - 16, .length = 16};
  EXPECT_TRUE(index.add(odd));
  EXPECT_EQ(index.find(odd.key)->scope, UINT64_MAX - 1);
  EXPECT_EQ(index.find(odd.key)->cost, 0);
  EXPECT_EQ(index.find(odd.key)->place, odd.place);
  odd.place.offset += 8;
  expect_error(ErrorCode::kInvalidArgument, [&] { index.add(odd); });
}

TEST(Index, KeepsTheAccountsOfSegments) {
  const Folder folder;
  const std::uint32_t first = make(folder.index(), 10);
  Index index({.path = folder.index()});
  Index::Write write(index);
  const std::uint32_t second = index.add_segment(mark_of(2), 1 << 20, 64);
  EXPECT_EQ(second, first + 1);
  index.set_end(second, 6464);
  index.add(entry_of(10, second));
  EXPECT_TRUE(index.remove(key_of(3)));
  EXPECT_TRUE(index.add(entry_of(3, second)));
  EXPECT_EQ(index.remove(key_of(4)), entry_of(4, first).place);
  EXPECT_EQ(index.remove(key_of(4)), std::nullopt);
  EXPECT_EQ(index.remove(key_of(5), entry_of(5, second).place), std::nullopt);
  EXPECT_EQ(index.remove(key_of(6), entry_of(6, first).place), entry_of(6, first).place);
  index.seal(first, 16064);
  write.commit();

  const SegmentRow a = row_of(index, first);
  EXPECT_EQ(a.mark, mark_of(1));
  EXPECT_EQ(a.entries, 7U);
  EXPECT_EQ(a.bytes, 7U * 1600);
  EXPECT_DOUBLE_EQ(a.worth, 3.5);
  EXPECT_EQ(a.first_id, 1);
  EXPECT_EQ(a.last_id, 10);
  EXPECT_EQ(a.size, 16064U);
  EXPECT_TRUE(a.sealed);
  const SegmentRow b = row_of(index, second);
  EXPECT_EQ(b.entries, 2U);
  EXPECT_EQ(b.bytes, 3200U);
  EXPECT_EQ(b.end, 6464U);
  EXPECT_EQ(b.size, 1U << 20);
  EXPECT_FALSE(b.sealed);
  EXPECT_EQ(b.first_id, 11);
  EXPECT_EQ(b.last_id, 12);
  EXPECT_EQ(index.find(key_of(3))->id, 12);
  EXPECT_EQ(index.entries(), 9U);
  EXPECT_EQ(index.entries_of(a).size(), 7U);
  const std::vector<IndexEntry> entries = index.entries_of(b);
  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(entries[1].key, key_of(3));
  EXPECT_EQ(entries[1].cost, 0.5);
}

TEST(Index, RemovesASegmentWithAllThatIsInIt) {
  const Folder folder;
  const std::uint32_t first = make(folder.index(), 10);
  Index index({.path = folder.index()});
  const SegmentRow old = row_of(index, first);
  Index::Write write(index);
  const std::uint32_t second = index.add_segment(mark_of(2), 1 << 20, 64);
  index.add(entry_of(10, second));
  index.add(entry_of(11, first));  // later than what `old` knows
  EXPECT_EQ(index.remove_segment(old), 11U);
  expect_error(ErrorCode::kIo, [&] { index.add(entry_of(12, first)); });
  expect_error(ErrorCode::kIo, [&] { index.set_end(first, 64); });
  write.commit();
  EXPECT_EQ(index.segments().size(), 1U);
  ASSERT_EQ(all_of(index).size(), 1U);
  EXPECT_EQ(all_of(index)[0].key, key_of(10));
  Index::Write again(index);
  EXPECT_EQ(index.remove_segment(row_of(index, second)), 1U);
  EXPECT_EQ(index.add_segment(mark_of(3), 4096, 64), second + 1);  // never used before
  again.commit();
  EXPECT_EQ(index.last_id(), 12);  // nor are ids
  EXPECT_EQ(index.segment_bytes(), 4096U);
}

TEST(Index, ASegmentMayKeepItsNumber) {
  const Folder folder;
  Index::create(folder.index(), 0600, 1);
  Index index({.path = folder.index()});
  Index::Write write(index);
  EXPECT_EQ(index.add_segment(mark_of(1), 4096, 64, 17), 17U);
  EXPECT_EQ(index.add_segment(mark_of(2), 4096, 64, 5), 5U);
  expect_error(ErrorCode::kIo, [&] { index.set_end(6, 128); });
  EXPECT_EQ(index.add_segment(mark_of(2), 4096, 64, 6), 6U);
  index.set_end(6, 128);
  EXPECT_EQ(index.add_segment(mark_of(3), 4096, 64), 18U);
  write.commit();
  EXPECT_EQ(index.segments().size(), 4U);
  EXPECT_EQ(row_of(index, 6).end, 128U);
}

TEST(Index, RemovesAScope) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 10);
  Index index({.path = folder.index()});
  Index::Write write(index);
  IndexEntry other = entry_of(10, segment);
  other.scope = UINT64_MAX;
  index.add(other);
  EXPECT_EQ(index.remove_scope(7, 0, index.last_id()).size(), 10U);
  EXPECT_EQ(index.remove_scope(7, 0, index.last_id()).size(), 0U);
  EXPECT_EQ(row_of(index, segment).entries, 1U);
  const std::vector<IndexEntry> removed = index.remove_scope(UINT64_MAX, 0, index.last_id());
  ASSERT_EQ(removed.size(), 1U);
  EXPECT_EQ(removed[0].key, other.key);
  EXPECT_EQ(removed[0].place, other.place);
  write.commit();
  EXPECT_EQ(row_of(index, segment).entries, 0U);
  EXPECT_EQ(row_of(index, segment).bytes, 0U);
  EXPECT_EQ(row_of(index, segment).worth, 0);
}

TEST(Index, RollsBackWhatIsNotCommitted) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 5);
  Index index({.path = folder.index()});
  {
    Index::Write write(index);
    index.add(entry_of(5, segment));
    index.remove(key_of(1));
    index.set_limit(5);
    index.add_segment(mark_of(9), 4096, 64);
    EXPECT_EQ(index.segments().size(), 2U);
    EXPECT_EQ(index.entries(), 5U);
    expect_error(ErrorCode::kUnavailable, [&] { const Index::Write second(index); });
  }
  EXPECT_FALSE(index.find(key_of(5)));
  EXPECT_TRUE(index.find(key_of(1)));
  EXPECT_EQ(index.entries(), 5U);
  EXPECT_EQ(index.segments().size(), 1U);
  EXPECT_EQ(index.settings().limit, std::uint64_t{1} << 30);
  expect_error(ErrorCode::kIo, [&] { index.add(entry_of(6, segment)); });  // outside of a Write
  Index::Write write(index);
  index.set_limit(UINT64_MAX);
  write.commit();
  EXPECT_EQ(index.settings().limit, std::uint64_t{INT64_MAX});
}

TEST(Index, ScansInOrderOfIds) {
  const Folder folder;
  make(folder.index(), 3000);
  Index index({.path = folder.index()});
  std::int64_t last = 0;
  std::size_t seen = 0;
  const auto take = [&](const IndexEntry& entry) {
    EXPECT_EQ(entry.id, ++last);
    EXPECT_EQ(entry.key, key_of(static_cast<std::uint64_t>(entry.id - 1)));
    EXPECT_EQ(entry.place, entry_of(static_cast<std::uint64_t>(entry.id - 1), 1).place);
    ++seen;
  };
  EXPECT_EQ(index.scan(0, 0, take), 0);
  EXPECT_EQ(index.scan(0, 10, take), 10);
  EXPECT_EQ(index.scan(10, 2048, take), 2058);
  EXPECT_EQ(index.scan(2058, SIZE_MAX, take), 3000);
  EXPECT_EQ(index.scan(3000, 10, take), 3000);
  EXPECT_EQ(seen, 3000U);
}

// Whoever takes entries may wait, throw or write: no transaction of the scan is open then.
TEST(Index, ScanHoldsNothingWhileEntriesAreTaken) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 10);
  Index reader({.path = folder.index()});
  Index writer({.path = folder.index()});
  std::uint64_t next = 10;
  reader.scan(0, 10, [&](const IndexEntry&) {
    Index::Write write(writer);
    writer.add(entry_of(next++, segment));
    write.commit();
    EXPECT_TRUE(writer.checkpoint());
  });
  EXPECT_THROW(reader.scan(0, 10, [](const IndexEntry&) { throw std::runtime_error("no"); }),
               std::runtime_error);
  EXPECT_TRUE(writer.checkpoint());
  EXPECT_EQ(all_of(reader).size(), 20U);
}

TEST(Index, HitsAgeByPeriods) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 3);
  Index index({.path = folder.index()});
  const auto hit = [&](std::uint64_t number, double accesses, double period_length) {
    const std::array hits{HitCount{key_of(number), 3}, HitCount{key_of(77), 1}};
    const std::array worth{SegmentWorth{segment, 3 * 0.5}};
    Index::Write write(index);
    index.add_hits(hits, worth, 1'800'000'000, accesses, period_length);
    write.commit();
  };
  hit(0, 4, 10);
  EXPECT_EQ(index.find(key_of(0))->hits, 4);
  EXPECT_EQ(index.find(key_of(0))->used, 1'800'000'000);
  EXPECT_EQ(index.find(key_of(1))->used, 1'700'000'000);
  EXPECT_DOUBLE_EQ(row_of(index, segment).worth, 3);
  EXPECT_EQ(index.settings().accesses, 4);
  hit(1, 7, 10);  // the period ends
  EXPECT_EQ(index.settings().accesses, 0);
  EXPECT_EQ(index.settings().period, 1);
  EXPECT_EQ(index.find(key_of(1))->hits, 4);
  hit(1, 0, 10);
  EXPECT_EQ(index.find(key_of(1))->hits, 10);  // 3 hits of now are 6
  {
    Index::Write write(index);
    index.add(entry_of(3, segment));
    index.add_hits({}, {}, 0, 0, 10);
    write.commit();
  }
  EXPECT_EQ(index.find(key_of(3))->hits, 2);
  EXPECT_DOUBLE_EQ(row_of(index, segment).worth, (4 + 10 + 1 + 2) / 2.0);
}

TEST(Index, HitsAreScaledBackAfterManyPeriods) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 1);
  Index index({.path = folder.index()});
  const std::array hits{HitCount{key_of(0), 8}};
  const std::array worth{SegmentWorth{segment, 8 * 0.5}};
  for (int i = 0; i < 501; ++i) {
    Index::Write write(index);
    if (i >= 499) {
      index.add_hits(hits, worth, 0, 1, 1);
    } else {
      index.add_hits({}, {}, 0, 1, 1);
    }
    write.commit();
    EXPECT_EQ(index.settings().period, i == 500 ? 0 : i + 1);
  }
  // Eight hits one period ago and eight two periods ago.
  EXPECT_NEAR(index.find(key_of(0))->hits, 8 / 2.0 + 8 / 4.0, 1e-9);
  EXPECT_NEAR(row_of(index, segment).worth, 3, 1e-9);
}

TEST(Index, AnotherConnectionSeesACommit) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 1);
  Index reader({.path = folder.index()});
  Index writer({.path = folder.index()});
  const std::int64_t before = reader.data_version();
  EXPECT_EQ(reader.data_version(), before);
  const std::int64_t own = writer.data_version();
  Index::Write write(writer);
  writer.add(entry_of(1, segment));
  EXPECT_EQ(reader.data_version(), before);
  EXPECT_FALSE(reader.find(key_of(1)));
  write.commit();
  EXPECT_NE(reader.data_version(), before);
  EXPECT_EQ(writer.data_version(), own);
  EXPECT_TRUE(reader.find(key_of(1)));
}

TEST(Index, ABusyWriterIsUnavailable) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 1);
  Index first({.path = folder.index()});
  Index second({.path = folder.index(), .busy = std::chrono::milliseconds(20)});
  std::optional<Index::Write> write(std::in_place, first);
  first.add(entry_of(1, segment));
  expect_error(ErrorCode::kUnavailable, [&] { const Index::Write refused(second); });
  EXPECT_TRUE(second.find(key_of(0)));
  EXPECT_FALSE(second.find(key_of(1)));
  write->commit();
  write.reset();
  Index::Write later(second);
  second.add(entry_of(2, segment));
  later.commit();
  EXPECT_EQ(first.entries(), 3U);
}

// A process that is stopped inside a transaction holds up writers for the busy time, readers not at
// all; killed, it leaves no trace.
TEST(Index, AStoppedWriterInAnotherProcess) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 1);
  std::array<int, 2> pipe;
  ASSERT_EQ(::pipe(pipe.data()), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    try {
      Index index({.path = folder.index()});
      const Index::Write write(index);
      index.add(entry_of(1, segment));
      static_cast<void>(::write(pipe[1], "x", 1) == 1);
      static_cast<void>(::raise(SIGSTOP));
    } catch (const std::exception&) {
    }
    ::_exit(1);
  }
  ::close(pipe[1]);
  char letter = 0;
  EXPECT_EQ(::read(pipe[0], &letter, 1), 1);
  ::close(pipe[0]);
  Index index({.path = folder.index(), .busy = std::chrono::milliseconds(50)});
  EXPECT_TRUE(index.find(key_of(0)));
  EXPECT_FALSE(index.find(key_of(1)));
  expect_error(ErrorCode::kUnavailable, [&] { const Index::Write refused(index); });
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  Index::Write write(index);
  EXPECT_TRUE(index.add(entry_of(1, segment)));
  EXPECT_TRUE(index.add(entry_of(2, segment)));
  write.commit();
  EXPECT_EQ(index.entries(), 3U);
}

TEST(Index, ClosingLeavesTheLogAndLosesNothing) {
  const Folder folder;
  make(folder.index(), 2000);
  EXPECT_GT(std::filesystem::file_size(folder.index() + "-wal"), 100'000U);
  const Index index({.path = folder.index()});
  const Folder copy;  // as after a crash: the files, without anybody's locks
  for (const char* suffix : {"", "-wal"}) {
    std::filesystem::copy_file(folder.index() + suffix, copy.index() + suffix);
  }
  Index crashed({.path = copy.index()});
  EXPECT_EQ(all_of(crashed).size(), 2000U);
}

TEST(Index, KnowsWhenItsFileWasReplaced) {
  const Folder folder;
  make(folder.index(), 1);
  const Index index({.path = folder.index()});
  EXPECT_FALSE(index.moved());
  std::filesystem::rename(folder.index(), folder / "old.db");
  EXPECT_TRUE(index.moved());
  Index::create(folder / "new.db", 0600, 1);
  std::filesystem::rename(folder / "new.db", folder.index());
  EXPECT_TRUE(index.moved());
  std::filesystem::rename(folder / "old.db", folder.index());
  EXPECT_FALSE(index.moved());
}

TEST(Index, FollowsLinksToItsFolderAlone) {
  const Folder folder;
  std::filesystem::create_directory(folder / "real");
  make(folder / "real/index.db", 1);
  std::filesystem::create_directory_symlink("real", folder / "link");
  Index index({.path = folder / "link/index.db"});
  EXPECT_TRUE(index.find(key_of(0)));
  EXPECT_FALSE(index.moved());
  std::filesystem::create_symlink("real/index.db", folder / "linked.db");
  expect_error(ErrorCode::kUnavailable,
               [&] { const Index refused({.path = folder / "linked.db"}); });
  expect_error(ErrorCode::kUnavailable, [&] { const Index refused({.path = folder / "none.db"}); });
}

}  // namespace
}  // namespace tensorkey::internal
