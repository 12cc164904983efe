#include "store/disk/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <thread>

#include "store/cache_test_entries.h"
#include "store/entry_golden.h"

namespace tensorkey::internal {
namespace {

using test::entry_of;
using test::key_of;

constexpr std::uint64_t kSize = 65536;
constexpr std::array<std::uint8_t, 32> kSecret{7};

SegmentMark mark_of(std::uint8_t value) {
  SegmentMark mark;
  mark.fill(std::byte{value});
  return mark;
}

Bytes record_of(std::uint64_t id, std::uint64_t offset, const SegmentMark& mark,
                std::size_t bytes = 100, const Secret& secret = std::nullopt) {
  const Bytes entry = encode_entry(*entry_of(id, bytes, 0.5), secret);
  Bytes record(kRecordHead + entry.size());
  write_record_head({.key = key_of(id),
                     .scope = 3,
                     .stored = 1'700'000'000,
                     .length = entry.size(),
                     .offset = offset,
                     .mark = mark},
                    std::span(record).first<kRecordHead>());
  std::ranges::copy(entry, record.begin() + kRecordHead);
  return record;
}

// Appends the record of an id; returns its place.
Place append(SegmentWriter& writer, std::uint64_t id, std::size_t bytes = 100,
             const Secret& secret = std::nullopt) {
  const Bytes record = record_of(id, writer.end(), writer.mark(), bytes, secret);
  const Place place{.segment = writer.id(), .offset = writer.end(), .length = record.size()};
  writer.append(record);
  return place;
}

class SegmentTest : public testing::Test {
 protected:
  SegmentTest() : root_(make_root()), directory_({.path = root_ + "/d"}) {}
  ~SegmentTest() override {
    ::umount2(small_.c_str(), MNT_DETACH);  // if it was mounted
    std::filesystem::remove_all(root_);
  }

  static std::string make_root() {
    std::string path = testing::TempDir() + "/segment_XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) throw std::bad_alloc();
    return path;
  }

  SegmentWriter create(std::uint32_t id = 1, std::uint64_t size = kSize) {
    return SegmentWriter::create(directory_, id, mark_of(static_cast<std::uint8_t>(id)), size);
  }

  static SegmentRow row_of(const SegmentWriter& writer) {
    return {.id = writer.id(), .mark = writer.mark(), .size = kSize, .end = writer.end()};
  }

  // Whether a process of its own can take the segment over.
  bool adopted_elsewhere(const SegmentRow& row) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(SegmentWriter::adopt(directory_, row) ? 0 : 1);
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

  std::string file(std::uint32_t id = 1) const { return directory_.path_of(segment_name(id)); }

  void overwrite(std::uint64_t offset, std::span<const std::byte> bytes, std::uint32_t id = 1) {
    const Descriptor file = directory_.open(segment_name(id), O_RDWR);
    ASSERT_TRUE(write_at(file.get(), offset, bytes));
  }

  // Ids of the records that are found; what is found must be right.
  std::vector<std::uint64_t> scan(std::uint32_t id = 1) {
    std::vector<std::uint64_t> found;
    std::uint64_t before = 0;
    SegmentFiles files(directory_);
    const SegmentFiles::FilePtr file = files.open(id);
    if (!file) return found;
    const int refused = scan_records(*file, [&](const RecordHead& head, double cost) {
      std::uint64_t which = 0;
      while (which < 2000 && key_of(which) != head.key) ++which;
      EXPECT_LT(which, 2000U);
      EXPECT_EQ(cost, 0.5);
      EXPECT_EQ(head.scope, 3U);
      EXPECT_EQ(head.stored, 1'700'000'000);
      EXPECT_GT(head.offset, before);
      before = head.offset;
      Bytes record(kRecordHead + head.length);
      EXPECT_TRUE(read_at(file->descriptor.get(), head.offset, record));
      EXPECT_TRUE(check_record(record, head.key,
                               {.segment = id, .offset = head.offset, .length = record.size()},
                               file->mark));
      found.push_back(which);
    });
    EXPECT_EQ(refused, 0);
    return found;
  }

  const std::string root_;
  const std::string small_ = root_ + "/small";
  Directory directory_;
};

using Ids = std::vector<std::uint64_t>;

ErrorCode code_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.what()[0], '[');
    return error.code();
  }
  ADD_FAILURE() << "no Error was thrown";
  return ErrorCode::kInternal;
}

TEST(SegmentHead, ComesBackAndEveryFlipIsRefused) {
  std::array<std::byte, kSegmentHead> head;
  write_segment_head(77, mark_of(9), head);
  EXPECT_EQ(read_segment_head(head, 77), mark_of(9));
  EXPECT_FALSE(read_segment_head(head, 78));
  for (std::size_t bit = 0; bit < 8 * head.size(); ++bit) {
    auto flipped = head;
    flipped[bit / 8] ^= std::byte{1} << bit % 8;
    EXPECT_FALSE(read_segment_head(flipped, 77)) << bit;
  }
  // A right checksum makes neither another version nor padding that is not zero valid.
  for (const std::size_t at : {4U, 5U, 7U, 12U, 32U, 55U}) {
    auto other = head;
    other[at] = std::byte{2};
    const std::uint64_t checksum = head_checksum(std::span(other).first(56));
    std::memcpy(other.data() + 56, &checksum, sizeof checksum);
    EXPECT_FALSE(read_segment_head(other, 77)) << at;
  }
}

TEST(RecordHead, ComesBackAndEveryFlipIsRefused) {
  const RecordHead wanted{.key = key_of(5),
                          .scope = std::numeric_limits<std::uint64_t>::max(),
                          .stored = -5,
                          .length = 160,
                          .offset = 64,
                          .mark = mark_of(8)};
  std::array<std::byte, kRecordHead> bytes;
  write_record_head(wanted, bytes);
  const std::optional<RecordHead> head = read_record_head(bytes);
  ASSERT_TRUE(head);
  EXPECT_EQ(head->key, wanted.key);
  EXPECT_EQ(head->scope, wanted.scope);
  EXPECT_EQ(head->stored, wanted.stored);
  EXPECT_EQ(head->length, wanted.length);
  EXPECT_EQ(head->offset, wanted.offset);
  EXPECT_EQ(head->mark, wanted.mark);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    auto flipped = bytes;
    flipped[bit / 8] ^= std::byte{1} << bit % 8;
    EXPECT_FALSE(read_record_head(flipped)) << bit;
  }
  EXPECT_FALSE(read_record_head(std::array<std::byte, kRecordHead>{}));
}

TEST(CheckRecord, WantsTheKeyThePlaceAndTheSegment) {
  const SegmentMark mark = mark_of(1);
  const Bytes record = record_of(5, 640, mark);
  const Place place{.segment = 1, .offset = 640, .length = record.size()};
  EXPECT_TRUE(check_record(record, key_of(5), place, mark));
  EXPECT_FALSE(check_record(record, key_of(6), place, mark));
  EXPECT_FALSE(check_record(record, key_of(5), place, mark_of(2)));
  Place other = place;
  other.offset += 16;
  EXPECT_FALSE(check_record(record, key_of(5), other, mark));
  other = place;
  other.length += 16;
  EXPECT_FALSE(check_record(record, key_of(5), other, mark));
  const auto all = std::span(record);
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{95}, std::size_t{96}, all.size() - 1}) {
    const Place shorter{.segment = 1, .offset = 640, .length = bytes};
    EXPECT_FALSE(check_record(all.first(bytes), key_of(5), shorter, mark));
    EXPECT_FALSE(check_record(all.first(bytes), key_of(5), place, mark));
  }
}

TEST_F(SegmentTest, WhatIsAppendedIsRead) {
  std::vector<Place> places;
  SegmentWriter writer = create();
  EXPECT_EQ(writer.end(), kSegmentHead);
  EXPECT_EQ(writer.left(), kSize - kSegmentHead);
  for (std::uint64_t id = 0; id < 20; ++id) places.push_back(append(writer, id, 1 + 50 * id));
  SegmentFiles files(directory_);
  const auto read_all = [&] {
    const SegmentFiles::FilePtr file = files.open(1);
    ASSERT_TRUE(file);
    EXPECT_EQ(file->id, 1U);
    for (std::uint64_t id = 0; id < 20; ++id) {
      Bytes record(places[id].length);
      ASSERT_TRUE(read_at(file->descriptor.get(), places[id].offset, record));
      const auto head = check_record(record, key_of(id), places[id], file->mark);
      ASSERT_TRUE(head);
      EXPECT_EQ(head->scope, 3U);
      test::expect_entry(decode_entry(std::span(record).subspan(kRecordHead)), id);
    }
  };
  read_all();
  EXPECT_EQ(std::filesystem::file_size(file()), kSize);
  const std::uint64_t end = writer.end();
  EXPECT_EQ(writer.seal(), end);
  EXPECT_EQ(writer.left(), 0U);
  EXPECT_EQ(std::filesystem::file_size(file()), end);
  read_all();
  EXPECT_EQ(scan().size(), 20U);
}

TEST_F(SegmentTest, IsPreallocatedAndItsZerosAreNoRecords) {
  const SegmentWriter writer = create(1, 1 << 20);
  struct stat status {};
  ASSERT_EQ(::stat(file().c_str(), &status), 0);
  EXPECT_EQ(status.st_size, 1 << 20);
  EXPECT_GE(status.st_blocks * 512, 1 << 20);
  EXPECT_EQ(status.st_mode & 0777U, directory_.file_mode());
  EXPECT_EQ(scan(), Ids{});
  Bytes zeros(256);
  const Place place{.segment = 1, .offset = kSegmentHead, .length = zeros.size()};
  EXPECT_FALSE(check_record(zeros, Key{}, place, SegmentMark{}));
}

TEST_F(SegmentTest, RecordsThatWereMovedOrCopiedAreRefused) {
  SegmentWriter first = create(1);
  SegmentWriter second = create(2);
  const Place place = append(first, 1);
  append(first, 2);
  append(second, 3);
  SegmentFiles files(directory_);
  Bytes record(place.length);
  ASSERT_TRUE(read_at(files.open(1)->descriptor.get(), place.offset, record));

  overwrite(place.offset, record, 2);  // to the same place of another segment
  Bytes found(place.length);
  ASSERT_TRUE(read_at(files.open(2)->descriptor.get(), place.offset, found));
  EXPECT_EQ(found, record);
  Place wanted = place;
  wanted.segment = 2;
  EXPECT_FALSE(check_record(found, key_of(1), wanted, files.open(2)->mark));
  EXPECT_EQ(scan(2), Ids{});

  const std::uint64_t offset = first.end() + 160;  // to another place of its own
  overwrite(offset, record);
  ASSERT_TRUE(read_at(files.open(1)->descriptor.get(), offset, found));
  wanted = {.segment = 1, .offset = offset, .length = place.length};
  EXPECT_FALSE(check_record(found, key_of(1), wanted, files.open(1)->mark));
  EXPECT_EQ(scan(1), (Ids{1, 2}));

  // A whole file under another number.
  ASSERT_TRUE(directory_.rename(segment_name(1), segment_name(7)));
  files.close(1);
  EXPECT_FALSE(files.open(1));
  EXPECT_FALSE(files.open(7));
}

TEST_F(SegmentTest, HasOneWriter) {
  std::optional<SegmentWriter> writer = create();
  append(*writer, 1);
  SegmentRow row = row_of(*writer);
  EXPECT_FALSE(unlocked(directory_, 1));
  EXPECT_TRUE(unlocked(directory_, 2));
  EXPECT_FALSE(SegmentWriter::adopt(directory_, row));
  EXPECT_FALSE(adopted_elsewhere(row));
  EXPECT_EQ(code_of([&] { create(); }), ErrorCode::kIo);
  EXPECT_EQ(scan(), Ids{1});

  append(*writer, 2);  // was never committed
  writer.reset();
  EXPECT_TRUE(unlocked(directory_, 1));
  EXPECT_TRUE(adopted_elsewhere(row));
  std::optional<SegmentWriter> heir = SegmentWriter::adopt(directory_, row);
  ASSERT_TRUE(heir);
  EXPECT_FALSE(unlocked(directory_, 1));
  EXPECT_FALSE(adopted_elsewhere(row));
  EXPECT_EQ(heir->end(), row.end);
  EXPECT_EQ(heir->left(), kSize - row.end);
  append(*heir, 3, 300);
  heir->rewind(row.end);
  append(*heir, 4);
  EXPECT_EQ(scan(), (Ids{1, 4}));

  SegmentWriter moved = std::move(*heir);
  heir.reset();
  EXPECT_FALSE(unlocked(directory_, 1));
  append(moved, 5);
  EXPECT_EQ(scan(), (Ids{1, 4, 5}));
}

TEST_F(SegmentTest, IsAdoptedAfterItsWriterWasKilled) {
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe(pipe.data()), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    SegmentWriter writer = create();
    append(writer, 1);
    const std::uint64_t end = writer.end();
    append(writer, 2);
    if (::write(pipe[1], &end, sizeof end) != sizeof end) ::_exit(1);
    for (;;) ::pause();
  }
  SegmentRow row{.id = 1, .mark = mark_of(1), .size = kSize};
  ASSERT_EQ(::read(pipe[0], &row.end, sizeof row.end), static_cast<ssize_t>(sizeof row.end));
  EXPECT_FALSE(unlocked(directory_, 1));
  EXPECT_FALSE(SegmentWriter::adopt(directory_, row));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(unlocked(directory_, 1));
  std::optional<SegmentWriter> heir = SegmentWriter::adopt(directory_, row);
  ASSERT_TRUE(heir);
  append(*heir, 3, 10);
  EXPECT_EQ(scan().front(), 1U);
  EXPECT_EQ(scan()[1], 3U);
  ::close(pipe[0]);
  ::close(pipe[1]);
}

TEST_F(SegmentTest, AChildThatDestroysItsWriterDoesNotKeepTheLock) {
  for (const bool forgets : {true, false}) {
    std::optional<SegmentWriter> writer = create();
    std::array<int, 2> pipe{};
    ASSERT_EQ(::pipe(pipe.data()), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      if (forgets) writer.reset();
      if (::write(pipe[1], "x", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char byte = 0;
    ASSERT_EQ(::read(pipe[0], &byte, 1), 1);
    EXPECT_FALSE(unlocked(directory_, 1));
    writer.reset();
    EXPECT_EQ(unlocked(directory_, 1), forgets);
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    EXPECT_TRUE(unlocked(directory_, 1));
    erase_segment(directory_, 1);
    ::close(pipe[0]);
    ::close(pipe[1]);
  }
}

TEST_F(SegmentTest, AdoptsNothingElse) {
  SegmentRow row;
  {
    SegmentWriter writer = create();
    append(writer, 1);
    row = row_of(writer);
  }
  const auto refused = [&](const auto& change) {
    SegmentRow other = row;
    change(other);
    return !SegmentWriter::adopt(directory_, other);
  };
  EXPECT_TRUE(refused([](SegmentRow& r) { r.id = 2; }));
  EXPECT_TRUE(refused([](SegmentRow& r) { r.mark = mark_of(2); }));
  EXPECT_TRUE(refused([](SegmentRow& r) { r.sealed = true; }));
  EXPECT_TRUE(refused([](SegmentRow& r) { r.end = kSize + 16; }));
  EXPECT_TRUE(refused([](SegmentRow& r) { r.end = 0xffff'ffff'ffff'fff0; }));
  EXPECT_TRUE(refused([](SegmentRow& r) { r.end = 0; }));
  EXPECT_TRUE(refused([](SegmentRow& r) { r.end += 8; }));
  EXPECT_TRUE(SegmentWriter::adopt(directory_, row));
  ASSERT_EQ(::truncate(file().c_str(), static_cast<off_t>(row.end - 16)), 0);
  EXPECT_FALSE(SegmentWriter::adopt(directory_, row));
  ASSERT_EQ(::truncate(file().c_str(), kSize), 0);
  overwrite(20, std::array{std::byte{0}});
  EXPECT_FALSE(SegmentWriter::adopt(directory_, row));
  ASSERT_TRUE(directory_.remove(segment_name(1)));
  EXPECT_FALSE(SegmentWriter::adopt(directory_, row));
  ASSERT_EQ(::symlink("/dev/zero", file().c_str()), 0);
  EXPECT_FALSE(SegmentWriter::adopt(directory_, row));
  EXPECT_EQ(scan(), Ids{});
  ASSERT_TRUE(directory_.remove(segment_name(1)));
  ASSERT_EQ(::mkfifo(file().c_str(), 0600), 0);  // nobody waits for its other end
  EXPECT_FALSE(SegmentWriter::adopt(directory_, row));
  EXPECT_TRUE(unlocked(directory_, 1));
  EXPECT_EQ(scan(), Ids{});
  erase_segment(directory_, 1);
  EXPECT_FALSE(directory_.exists(segment_name(1)));
}

TEST_F(SegmentTest, ReplacesTheFileOfADeadWriter) {
  append(*std::make_unique<SegmentWriter>(create()), 1);
  SegmentWriter writer = create();
  EXPECT_EQ(scan(), Ids{});
  append(writer, 2);
  EXPECT_EQ(scan(), Ids{2});
}

TEST_F(SegmentTest, AFullDiskIsKnownBeforeAByteIsWritten) {
  ASSERT_EQ(::mkdir(small_.c_str(), 0700), 0);
  if (::mount("none", small_.c_str(), "tmpfs", 0, "size=256k") != 0) {
    GTEST_SKIP() << "a tmpfs cannot be mounted";
  }
  const Directory directory({.path = small_ + "/d"});
  EXPECT_EQ(
      code_of([&] { SegmentWriter::create(directory, 1, mark_of(1), std::uint64_t{1} << 20); }),
      ErrorCode::kExhausted);
  EXPECT_TRUE(directory.segments().empty());
  SegmentWriter writer = SegmentWriter::create(directory, 2, mark_of(2), 196608);
  EXPECT_EQ(code_of([&] { SegmentWriter::create(directory, 3, mark_of(3), 196608); }),
            ErrorCode::kExhausted);
  EXPECT_EQ(directory.segments(), Ids{2});
  while (writer.left() > 16384) append(writer, 1, 10000);  // its blocks are there already
  erase_segment(directory, 2);  // also who holds it open has no blocks of it any more
  EXPECT_NO_THROW(SegmentWriter::create(directory, 3, mark_of(3), 196608));
}

TEST_F(SegmentTest, AFailedWriteChangesNothing) {
  SegmentWriter writer = create();
  append(writer, 1);
  const std::uint64_t end = writer.end();
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit low = before;
  low.rlim_cur = end + 32;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &low), 0);
  const ErrorCode of_append = code_of([&] { append(writer, 2); });
  const ErrorCode of_create = code_of([&] { create(2); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  static_cast<void>(std::signal(SIGXFSZ, old));
  EXPECT_EQ(of_append, ErrorCode::kExhausted);
  EXPECT_EQ(of_create, ErrorCode::kExhausted);
  EXPECT_FALSE(directory_.exists(segment_name(2)));
  EXPECT_EQ(writer.end(), end);
  EXPECT_EQ(scan(), Ids{1});
  append(writer, 3);
  EXPECT_EQ(scan(), (Ids{1, 3}));
  EXPECT_EQ(code_of([&] { create(4, 63); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { create(4, std::numeric_limits<std::uint64_t>::max()); }),
            ErrorCode::kInvalidArgument);
  std::filesystem::remove_all(directory_.path());
  EXPECT_EQ(code_of([&] { create(4); }), ErrorCode::kIo);
}

std::size_t open_files() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(files), end(files)));
}

TEST_F(SegmentTest, FilesStayBelowTheirBound) {
  for (std::uint32_t id = 1; id <= 300; ++id) {
    SegmentWriter writer = create(id, 4096);
    append(writer, id);
  }
  const std::size_t before = open_files();
  SegmentFiles files(directory_);
  const SegmentFiles::FilePtr held = files.open(1);
  for (std::uint32_t id = 1; id <= 300; ++id) ASSERT_TRUE(files.open(id));
  EXPECT_EQ(open_files(), before + SegmentFiles::kMostOpen + 1);
  Bytes head(kSegmentHead);
  EXPECT_TRUE(read_at(held->descriptor.get(), 0, head));
  const SegmentFiles::FilePtr oldest = files.open(173);
  ASSERT_TRUE(files.open(1));  // in place of 174: 173 was used since
  EXPECT_EQ(files.open(173), oldest);
  EXPECT_NE(files.open(1), held);

  files.retain([](std::uint32_t id) { return id > 290; });
  EXPECT_EQ(open_files(), before + 12);  // 291 to 300, the two that are held
  files.close(295);
  files.close(295);
  files.close(5);
  EXPECT_EQ(open_files(), before + 11);
}

TEST_F(SegmentTest, ReadersSurviveWhatIsErased) {
  std::optional<SegmentWriter> writer = create();
  const Place place = append(*writer, 1);
  writer.reset();
  SegmentFiles files(directory_);
  const SegmentFiles::FilePtr file = files.open(1);
  erase_segment(directory_, 1);
  erase_segment(directory_, 1);
  EXPECT_FALSE(directory_.exists(segment_name(1)));
  struct stat status {};
  ASSERT_EQ(::fstat(file->descriptor.get(), &status), 0);
  EXPECT_EQ(status.st_blocks, 0);
  Bytes record(place.length);
  errno = EIO;
  EXPECT_FALSE(read_at(file->descriptor.get(), place.offset, record));
  EXPECT_EQ(errno, 0);
  EXPECT_FALSE(read_at(file->descriptor.get(), std::numeric_limits<std::uint64_t>::max(), record));
  EXPECT_EQ(errno, 0);
  EXPECT_FALSE(read_at(-1, 0, record));
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(scan_records(*file, [](const RecordHead&, double) { ADD_FAILURE(); }), 0);
  files.close(1);
  EXPECT_FALSE(files.open(1));
  writer = create();
  EXPECT_TRUE(files.open(1));
}

TEST_F(SegmentTest, FilesAreForAllThreads) {
  for (std::uint32_t id = 1; id <= 200; ++id) {
    SegmentWriter writer = create(id, 4096);
    append(writer, id);
  }
  SegmentFiles files(directory_);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::minstd_rand random(seed + 1);
      for (int n = 0; n < 3000; ++n) {
        const auto id = static_cast<std::uint32_t>(1 + random() % 200);
        const SegmentFiles::FilePtr file = files.open(id);
        const Bytes wanted = record_of(id, kSegmentHead, mark_of(static_cast<std::uint8_t>(id)));
        Bytes record(wanted.size());
        if (!file || !read_at(file->descriptor.get(), kSegmentHead, record) || record != wanted) {
          ++wrong;
        }
        if (n % 64 == 0) files.close(id);
        if (n % 512 == 0) files.retain([](std::uint32_t each) { return each % 2 == 0; });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(SegmentTest, WhatIsVoidedIsNotFound) {
  SegmentWriter writer = create();
  append(writer, 1);
  const Place place = append(writer, 2);
  append(writer, 3);
  EXPECT_TRUE(void_record(directory_, place));
  EXPECT_EQ(scan(), (Ids{1, 3}));
  EXPECT_TRUE(void_record(directory_, place));
  EXPECT_EQ(scan(), (Ids{1, 3}));
  // Places where no record is change nothing.
  for (const std::uint64_t offset : {std::uint64_t{0}, place.offset + 16, kSize - 8, kSize + 160,
                                     std::uint64_t{0xffff'ffff'ffff'fff0}}) {
    EXPECT_TRUE(void_record(directory_, {.segment = 1, .offset = offset, .length = 256}));
  }
  EXPECT_TRUE(void_record(directory_, {.segment = 9, .offset = 64, .length = 256}));
  EXPECT_EQ(std::filesystem::file_size(file()), kSize);
  EXPECT_EQ(scan(), (Ids{1, 3}));
}

TEST_F(SegmentTest, ScanFindsWhatIsBehindDamage) {
  std::vector<Place> places;
  SegmentWriter writer = create(1, std::uint64_t{4} << 20);
  // The last one is larger than the blocks in which the file is read.
  for (std::uint64_t id = 0; id < 300; ++id) places.push_back(append(writer, id, 1 + 37 * id));
  places.push_back(append(writer, 300, 1'500'000));
  Ids all(301);
  for (std::uint64_t id = 0; id <= 300; ++id) all[id] = id;
  EXPECT_EQ(scan(), all);
  const auto without = [&](std::initializer_list<std::uint64_t> ids) {
    Ids left = all;
    for (const std::uint64_t id : ids) std::erase(left, id);
    return left;
  };
  const Bytes zeros(kRecordHead);
  overwrite(places[7].offset, zeros);
  overwrite(places[0].offset + 70, std::array{std::byte{0x55}});
  overwrite(places[299].offset, zeros);
  EXPECT_EQ(scan(), without({0, 7, 299}));
  overwrite(places[20].offset + kRecordHead + 80, std::array{std::byte{0x55}});  // in an entry
  overwrite(places[300].offset + 1'000'000, std::array{std::byte{0x55}});
  EXPECT_EQ(scan(), without({0, 7, 20, 299, 300}));
  // Half a record, as a write that was cut off leaves it, with zeros behind it.
  const std::uint64_t end = places[200].offset + places[200].length / 2;
  ASSERT_EQ(::truncate(file().c_str(), static_cast<off_t>(end)), 0);
  ASSERT_EQ(::truncate(file().c_str(), 4 << 20), 0);
  Ids left = without({0, 7, 20});
  left.resize(200 - 3);
  EXPECT_EQ(scan(), left);
  ASSERT_EQ(::truncate(file().c_str(), static_cast<off_t>(places[100].offset + 3)), 0);
  left.resize(100 - 3);
  EXPECT_EQ(scan(), left);
  ASSERT_EQ(::truncate(file().c_str(), 64), 0);
  EXPECT_EQ(scan(), Ids{});
  ASSERT_EQ(::truncate(file().c_str(), 63), 0);
  EXPECT_EQ(scan(), Ids{});
}

TEST_F(SegmentTest, ScanTakesWhatWasWrittenWithASecretAsFarAsCanBeTold) {
  SegmentWriter writer = create();
  append(writer, 1, 100, Secret(kSecret));
  const Place torn = append(writer, 2, 100, Secret(kSecret));
  const Place other = append(writer, 3, 100, Secret(kSecret));
  append(writer, 4);
  EXPECT_EQ(scan(), (Ids{1, 2, 3, 4}));
  overwrite(torn.offset + torn.length - 48, Bytes(48));
  overwrite(other.offset + kRecordHead + 16, Bytes(8, std::byte{0xff}));  // its cost
  EXPECT_EQ(scan(), (Ids{1, 4}));
}

TEST_F(SegmentTest, ScanIsNotMisledByHeadsThatLie) {
  SegmentWriter writer = create(1, 1 << 20);
  append(writer, 1);
  const std::uint64_t first = writer.end();
  // Heads that are right but for their length, one within the other, to the end of the file.
  while (writer.left() > 4096) {
    Bytes record = record_of(9, writer.end(), writer.mark());
    record.resize(kRecordHead + 80);
    const std::uint64_t length = (writer.left() - kRecordHead) / 16 * 16;
    write_record_head(
        {.key = key_of(9), .length = length, .offset = writer.end(), .mark = writer.mark()},
        std::span(record).first<kRecordHead>());
    std::memcpy(record.data() + kRecordHead + 8, &length, sizeof length);
    writer.append(record);
  }
  EXPECT_EQ(scan(), Ids{1});
  // Lengths that overflow, are too small, or are not the entry's.
  for (const std::uint64_t length :
       {std::uint64_t{0}, std::uint64_t{16}, std::uint64_t{88}, std::uint64_t{1} << 40,
        std::uint64_t{0xffff'ffff'ffff'fff0}, std::uint64_t{0xffff'ffff'ffff'ffff}}) {
    Bytes record = record_of(9, first, writer.mark());
    write_record_head({.key = key_of(9), .length = length, .offset = first, .mark = writer.mark()},
                      std::span(record).first<kRecordHead>());
    overwrite(first, record);
    EXPECT_EQ(scan(), Ids{1});
  }
}

TEST_F(SegmentTest, ScanOfRandomDamageFindsOnlyWhatIsWhole) {
  std::mt19937_64 random(20261123);
  {
    SegmentWriter writer = create(1, 16384);
    for (std::uint64_t id = 0; writer.left() > 2048; ++id) append(writer, id, random() % 1000);
  }
  Bytes good(16384);
  {
    SegmentFiles files(directory_);
    ASSERT_TRUE(read_at(files.open(1)->descriptor.get(), 0, good));
  }
  const std::size_t count = scan().size();
  for (int round = 0; round < 300; ++round) {
    Bytes bad = good;
    for (std::uint64_t n = 1 + random() % 6; n > 0; --n) {
      const std::size_t at = kSegmentHead + random() % (bad.size() - kSegmentHead);
      const std::size_t length = std::min<std::size_t>(random() % 200, bad.size() - at);
      switch (random() % 4) {
        case 0: bad[at] ^= std::byte{1} << random() % 8; break;
        case 1:
          std::fill_n(bad.begin() + static_cast<std::ptrdiff_t>(at), length, std::byte{});
          break;
        case 2: std::memmove(&bad[at], &bad[random() % (bad.size() - length)], length); break;
        default:
          std::generate_n(&bad[at], length, [&] { return static_cast<std::byte>(random()); });
      }
    }
    overwrite(0, bad);
    ASSERT_EQ(::truncate(file().c_str(), static_cast<off_t>(bad.size() - random() % 4096)), 0);
    ASSERT_LE(scan().size(), count);
  }
}

}  // namespace
}  // namespace tensorkey::internal
