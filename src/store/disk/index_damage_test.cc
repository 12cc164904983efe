// Files that the library has not written so: hostile rows, damaged, truncated and foreign ones.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <array>
#include <cmath>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "store/disk/index_test_files.h"

namespace tensorkey::internal {
namespace {

using namespace test;

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// A complete index in one file: entries in two segments, nothing in the log.
std::string whole_index(const Folder& folder) {
  const std::uint32_t segment = make(folder.index(), 300);
  {
    Index index({.path = folder.index()});
    Index::Write write(index);
    const std::uint32_t second = index.add_segment(mark_of(2), 1 << 20, 64);
    for (std::uint64_t i = 300; i < 500; ++i) index.add(entry_of(i, second));
    for (std::uint64_t i = 0; i < 20; ++i) index.remove(key_of(i), entry_of(i, segment).place);
    write.commit();
    EXPECT_TRUE(index.checkpoint());
  }
  std::string bytes = read_file(folder.index());
  for (const char* suffix : {"", "-wal", "-shm"}) {
    std::filesystem::remove(folder.index() + suffix);
  }
  return bytes;
}

// Everything that can be asked for or done. True if nothing was thrown; whatever rows there are
// must be ones that the library could have written.
bool use(const std::string& path, int round = 0) {
  const bool read_only = round % 5 == 1;
  try {
    Index index({.path = path, .read_only = read_only});
    std::int64_t last = 0;
    index.scan(0, 100'000, [&](const IndexEntry& entry) {
      EXPECT_GT(entry.id, last);
      last = entry.id;
      EXPECT_EQ(entry.place.offset % 16, 0U);
      EXPECT_LT(entry.place.offset, std::uint64_t{1} << 36);
      EXPECT_NE(entry.place.segment, 0U);
    });
    for (std::uint64_t i = 0; i < 500; i += 50) {
      const std::optional<IndexEntry> entry = index.find(key_of(i));
      EXPECT_TRUE(!entry || (std::isfinite(entry->cost) && std::isfinite(entry->hits)));
    }
    const std::vector<SegmentRow> rows = index.segments();
    for (const SegmentRow& row : rows) {
      EXPECT_LE(row.end, row.size);
      EXPECT_TRUE(std::isfinite(row.worth));
      for (const IndexEntry& entry : index.entries_of(row)) EXPECT_EQ(entry.place.segment, row.id);
    }
    static_cast<void>(index.entries());
    static_cast<void>(index.settings());
    static_cast<void>(index.last_id());
    static_cast<void>(index.file_bytes());
    if (read_only) return true;
    {
      Index::Write write(index);
      const std::uint32_t segment = index.add_segment(mark_of(9), 1 << 20, 64);
      for (std::uint64_t i = 1000; i < 1050; ++i) index.add(entry_of(i, segment));
      const std::array hits{HitCount{key_of(100), 1}, HitCount{key_of(400), 1}};
      index.add_hits(hits, {}, 1, 1, 1e9);
      index.remove(key_of(201));
      if (!rows.empty()) index.remove_segment(rows.back());
      index.remove_scope(7, 0, index.last_id());
      write.commit();
    }
    index.vacuum(100);
    if (round % 16 == 0) index.checkpoint();  // which waits for the disk
    return true;
  } catch (const Error& error) {
    EXPECT_TRUE(error.code() == ErrorCode::kCorruption || error.code() == ErrorCode::kIo ||
                error.code() == ErrorCode::kUnavailable || error.code() == ErrorCode::kUnsupported)
        << error.what();
    return false;
  }
}

// Some of the bits of one byte.
void flip(std::string& bytes, std::size_t at, std::size_t random) {
  bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ (1 + random % 255));
}

void clear(const Folder& folder) {
  for (const char* suffix : {"-wal", "-shm", "-journal"}) {
    std::filesystem::remove(folder.index() + suffix);
  }
}

TEST(IndexDamage, FlippedBytesAreNeverFatal) {
  const Folder folder;
  const std::string whole = whole_index(folder);
  std::mt19937 random(1);
  int usable = 0;
  for (int i = 0; i < 1000; ++i) {
    std::string bytes = whole;
    // Half of them where the structure is: heads of the file and of its pages.
    const std::size_t page = random() % (bytes.size() / 4096) * 4096;
    const std::size_t at = i % 2 == 0 ? random() % bytes.size() : page + random() % 256;
    flip(bytes, at, random());
    write_file(folder.index(), bytes);
    usable += use(folder.index(), i) ? 1 : 0;
    clear(folder);
  }
  EXPECT_GT(usable, 100);
  EXPECT_LT(usable, 1000);
}

TEST(IndexDamage, AFlippedLogIsNeverFatal) {
  const Folder folder;
  const std::string whole = whole_index(folder);
  write_file(folder.index(), whole);
  {
    Index index({.path = folder.index()});
    Index::Write write(index);
    for (std::uint64_t i = 500; i < 700; ++i) index.add(entry_of(i, 2));
    write.commit();
  }
  const std::string log = read_file(folder.index() + "-wal");
  const std::string shared = read_file(folder.index() + "-shm");
  std::mt19937 random(2);
  for (int i = 0; i < 200; ++i) {
    std::string bad_log = log;
    std::string bad_shared = shared;
    flip(bad_log, random() % log.size(), random());
    flip(bad_shared, random() % 1024, random());
    if (i % 10 == 0) bad_log.resize(random() % log.size());
    clear(folder);
    write_file(folder.index(), whole);
    write_file(folder.index() + "-wal", bad_log);
    write_file(folder.index() + "-shm", bad_shared);
    EXPECT_TRUE(use(folder.index(), i)) << i;  // as if it had not been committed
  }
}

TEST(IndexDamage, TruncatedFiles) {
  const Folder folder;
  const std::string whole = whole_index(folder);
  std::vector<std::size_t> sizes{0, 1, 99, 100, 511, 4095, 4096, 4097};
  for (std::size_t size = 8192; size < whole.size(); size += 4096) sizes.push_back(size - 1000);
  for (const std::size_t size : sizes) {
    write_file(folder.index(), whole.substr(0, size));
    EXPECT_FALSE(use(folder.index())) << size;
    clear(folder);
  }
  write_file(folder.index(), "");
  expect_error(ErrorCode::kCorruption, [&] { const Index index({.path = folder.index()}); });
  EXPECT_EQ(folder.files(), 1U);
  EXPECT_EQ(read_file(folder.index()), "");
}

TEST(IndexDamage, ForeignAndNewerFilesAreRefusedUntouched) {
  const Folder folder;
  const auto refused = [&](ErrorCode code) {
    const std::string before = read_file(folder.index());
    for (const bool read_only : {false, true}) {
      expect_error(code,
                   [&] { const Index index({.path = folder.index(), .read_only = read_only}); });
    }
    EXPECT_EQ(read_file(folder.index()), before);
    EXPECT_EQ(folder.files(), 1U);
    std::filesystem::remove(folder.index());
  };
  meddle(folder.index(), "CREATE TABLE entries(id, key)");
  refused(ErrorCode::kCorruption);
  meddle(folder.index(), "PRAGMA journal_mode = WAL; CREATE TABLE entries(id, key)");
  refused(ErrorCode::kCorruption);
  write_file(folder.index(), std::string(8192, 'x'));
  refused(ErrorCode::kCorruption);
  Index::create(folder.index(), 0600, 1);
  meddle(folder.index(), "PRAGMA user_version = 0");
  refused(ErrorCode::kCorruption);
  Index::create(folder.index(), 0600, 1);
  meddle(folder.index(), "PRAGMA user_version = 2");
  try {
    const Index index({.path = folder.index()});
    ADD_FAILURE();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("newer version"), std::string::npos) << text;
    EXPECT_NE(text.find("2; expected 1"), std::string::npos) << text;
  }
  refused(ErrorCode::kUnsupported);
}

TEST(IndexDamage, AnotherSchemaIsRefused) {
  const Folder folder;
  for (const char* change : {
           "DROP TABLE settings",
           "ALTER TABLE entries ADD COLUMN note",
           "ALTER TABLE segments RENAME COLUMN size TO room",
           "DELETE FROM settings WHERE name = 'limit'",
           "UPDATE settings SET value = 'much' WHERE name = 'limit'",
           "UPDATE settings SET value = -1 WHERE name = 'period'",
           "UPDATE settings SET value = 1e999 WHERE name = 'accesses'",
           "DELETE FROM sqlite_sequence",
           "UPDATE sqlite_sequence SET seq = 9223372036854775807",
           "INSERT INTO entries VALUES(9223372036854775807, x'00', 0, 1, 64, 16, 0, 0, 0)",
       }) {
    make(folder.index(), 3);
    meddle(folder.index(), change);
    expect_error(ErrorCode::kCorruption, [&] { const Index index({.path = folder.index()}); });
    std::filesystem::remove(folder.index());
    clear(folder);
  }
}

TEST(IndexDamage, TriggersAndViewsDoNothing) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 3);
  meddle(folder.index(),
         "CREATE TRIGGER bad AFTER INSERT ON entries BEGIN DELETE FROM entries; END;"
         "CREATE VIEW worse AS SELECT * FROM entries; CREATE TABLE more(x)");
  Index index({.path = folder.index()});
  Index::Write write(index);
  EXPECT_TRUE(index.add(entry_of(3, segment)));
  write.commit();
  EXPECT_EQ(all_of(index).size(), 4U);
}

void expect_skipped(const std::string& change, std::size_t scanned) {
  SCOPED_TRACE(change);
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 3);
  meddle(folder.index(), "UPDATE entries SET " + change + " WHERE id = 2");
  Index index({.path = folder.index()});
  EXPECT_FALSE(index.find(key_of(1)));
  EXPECT_TRUE(index.find(key_of(2)));
  EXPECT_EQ(all_of(index).size(), scanned);
  EXPECT_EQ(index.entries_of(row_of(index, segment)).size(), 2U);
  Index::Write write(index);
  const std::array hits{HitCount{key_of(1), 1}};
  index.add_hits(hits, {}, 1, 1, 100);
  EXPECT_FALSE(index.remove(key_of(1), entry_of(1, segment).place));
  EXPECT_TRUE(index.add(entry_of(1, segment)));  // its key is free for another
  EXPECT_GT(index.find(key_of(1))->id, 3);
  write.commit();
}

TEST(IndexDamage, HostileEntriesReadAsNothing) {
  for (const char* change :
       {"segment = 0", "segment = 4294967296", "segment = -1", "segment = 'one'", "offset = -16",
        "offset = 65", "offset = 68719476736", "offset = 1.5", "length = 0", "length = 24",
        "length = -16", "length = 9223372036854775807", "length = x'10'"}) {
    expect_skipped(change, 2);
  }
  for (const char* change : {"cost = -1", "cost = 1e999", "cost = 'dear'", "hits = -1",
                             "hits = -1e999", "used = -1", "used = 'never'", "scope = 'all'"}) {
    expect_skipped(change, 3);  // a scan looks at places alone
  }
}

TEST(IndexDamage, HostileKeysAreSkipped) {
  const Folder folder;
  make(folder.index(), 3);
  meddle(folder.index(),
         "UPDATE entries SET key = x'0102' WHERE id = 1;"
         "UPDATE entries SET key = 'text of a length of 32 characters' WHERE id = 2;"
         "INSERT INTO entries VALUES(-5, zeroblob(32), 0, 1, 64, 16, 0, 0, 0)");
  Index index({.path = folder.index()});
  EXPECT_EQ(all_of(index).size(), 1U);
  EXPECT_EQ(index.entries_of(row_of(index, 1)).size(), 1U);
  EXPECT_FALSE(index.find(Key()));
  Index::Write write(index);
  EXPECT_EQ(index.remove(Key()), std::nullopt);
  IndexEntry zeros = entry_of(9, 1);
  zeros.key = Key();
  EXPECT_TRUE(index.add(zeros));
  write.commit();
  EXPECT_TRUE(index.find(Key()));
}

TEST(IndexDamage, AKeyOfAMegabyteIsDamage) {
  const Folder folder;
  make(folder.index(), 3);
  meddle(folder.index(), "UPDATE entries SET key = zeroblob(2000000) WHERE id = 2");
  expect_error(ErrorCode::kCorruption, [&] {
    Index index({.path = folder.index()});
    static_cast<void>(all_of(index));
  });
}

TEST(IndexDamage, HostileSegmentsAreSkipped) {
  const Folder folder;
  for (const char* change : {"mark = x'00'",
                             "mark = 'sixteen letters.'",
                             "size = -1",
                             "size = 63",
                             "size = 1e30",
                             "\"end\" = -1",
                             "\"end\" = 67108865",
                             "sealed = 2",
                             "entries = -1",
                             "entries = 'few'",
                             "bytes = -1",
                             "bytes = 9223372036854775807",
                             "worth = -1",
                             "worth = 1e999",
                             "last_id = -1",
                             "first_id = 4",
                             "first_id = -1",
                             "id = 4294967296",
                             "id = 0",
                             "id = -7"}) {
    SCOPED_TRACE(change);
    make(folder.index(), 3);
    meddle(folder.index(), std::string("UPDATE segments SET ") + change);
    try {
      Index index({.path = folder.index()});
      EXPECT_TRUE(index.segments().empty());
      EXPECT_EQ(index.entries(), 0U);
      EXPECT_TRUE(index.find(key_of(1)));
      Index::Write write(index);
      const std::array hits{HitCount{key_of(1), 1}};
      index.add_hits(hits, {}, 1, 1, 100);
      EXPECT_TRUE(index.remove(key_of(1)));
      expect_error(ErrorCode::kIo, [&] { index.add(entry_of(7, 1)); });
      EXPECT_EQ(index.remove_segment({.id = 1, .first_id = 1, .last_id = 3}), 2U);
      write.commit();
    } catch (const Error& error) {  // a number that leaves none for others
      EXPECT_EQ(error.code(), ErrorCode::kCorruption) << error.what();
      EXPECT_STREQ(change, "id = 4294967296");
    }
    std::filesystem::remove(folder.index());
    clear(folder);
  }
}

// SQLite's own copies are not in WAL mode.
TEST(IndexDamage, ACopyBySqlIsAnIndexAgain) {
  const Folder folder;
  const std::uint32_t segment = make(folder.index(), 10);
  meddle(folder.index(), "VACUUM INTO '" + (folder / "copy.db") + "'");
  {
    Index reader({.path = folder / "copy.db", .read_only = true});
    EXPECT_EQ(all_of(reader).size(), 10U);
  }
  Index index({.path = folder / "copy.db"});
  Index other({.path = folder / "copy.db"});
  Index::Write write(index);
  index.add(entry_of(10, segment));
  EXPECT_FALSE(other.find(key_of(10)));
  write.commit();
  EXPECT_TRUE(other.find(key_of(10)));
}

}  // namespace
}  // namespace tensorkey::internal
