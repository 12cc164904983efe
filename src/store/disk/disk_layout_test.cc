// The golden directory and pack that tests/golden/make_disk.py wrote from docs/disk_layout.md.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "store/disk/directory.h"
#include "store/disk/index.h"
#include "store/disk/pack.h"
#include "store/disk/segment.h"
#include "store/entry_golden.h"

namespace tensorkey::internal {
namespace {

namespace fs = std::filesystem;

const std::string kGolden = std::string(TENSORKEY_GOLDEN) + "/disk";

struct GoldenRow {
  std::string file, entry;
  std::uint64_t offset = 0, length = 0, scope = 0;
  std::int64_t stored = 0, used = 0;
  double hits = 0;
  bool removed = false;
};

std::vector<GoldenRow> golden_rows(const std::string& file) {
  std::ifstream table(kGolden + "/rows.tsv");
  std::string line;
  std::getline(table, line);
  std::vector<GoldenRow> rows;
  while (std::getline(table, line)) {
    std::istringstream fields(line);
    GoldenRow row;
    fields >> row.file >> row.offset >> row.length >> row.entry >> row.scope >> row.stored >>
        row.hits >> row.used >> row.removed;
    EXPECT_TRUE(fields) << line;
    if (row.file == file) rows.push_back(row);
  }
  EXPECT_FALSE(rows.empty());
  return rows;
}

std::map<std::string, GoldenEntry> golden_by_name() {
  std::map<std::string, GoldenEntry> entries;
  for (GoldenEntry& entry : golden_entries(TENSORKEY_GOLDEN)) {
    std::string name = entry.name;
    entries.emplace(std::move(name), std::move(entry));
  }
  return entries;
}

class DiskLayoutTest : public testing::Test {
 protected:
  DiskLayoutTest() : path_(testing::TempDir() + "/layout_XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) throw std::bad_alloc();
    fs::copy(kGolden + "/directory", path_, fs::copy_options::recursive);
  }
  ~DiskLayoutTest() override { fs::remove_all(path_); }

  static void expect_record(const Bytes& record, const RecordHead& head, const GoldenRow& row,
                            const GoldenEntry& golden) {
    EXPECT_EQ(head.key, golden.key);
    EXPECT_EQ(head.scope, row.scope);
    EXPECT_EQ(head.stored, row.stored);
    const auto encoded = std::span(record).subspan(kRecordHead);
    EXPECT_TRUE(std::ranges::equal(encoded, golden.file));
    // Written again it is the same.
    Bytes again = record;
    write_record_head(head, std::span(again).first<kRecordHead>());
    EXPECT_EQ(again, record);
  }

  std::string path_;
  const std::map<std::string, GoldenEntry> golden_ = golden_by_name();
};

TEST_F(DiskLayoutTest, TheIndexLeadsToTheRecords) {
  const Directory directory({.path = path_});
  Index index({.path = directory.path_of(kIndexFile)});
  EXPECT_EQ(index.settings().limit, std::uint64_t{4} << 20);
  EXPECT_EQ(index.settings().period, 3);
  EXPECT_EQ(index.settings().accesses, 12.0);
  const std::vector<SegmentRow> segments = index.segments();
  ASSERT_EQ(segments.size(), 2U);
  SegmentFiles files(directory);
  for (const SegmentRow& segment : segments) {
    EXPECT_EQ(segment.size, fs::file_size(directory.path_of(segment_name(segment.id))));
    EXPECT_EQ(segment.sealed, segment.end == segment.size);
    const SegmentFiles::FilePtr file = files.open(segment.id);
    ASSERT_TRUE(file);
    EXPECT_EQ(file->mark, segment.mark);
    std::size_t entries = 0;
    std::uint64_t bytes = 0;
    for (const GoldenRow& row : golden_rows(std::to_string(segment.id))) {
      SCOPED_TRACE(row.entry);
      const GoldenEntry& golden = golden_.at(row.entry);
      const std::optional<IndexEntry> entry = index.find(golden.key);
      ASSERT_EQ(entry.has_value(), !row.removed);
      if (!entry) continue;
      const Place place{.segment = segment.id, .offset = row.offset, .length = row.length};
      EXPECT_EQ(entry->place, place);
      EXPECT_EQ(entry->scope, row.scope);
      EXPECT_EQ(entry->cost, golden.seconds);
      EXPECT_EQ(entry->hits, row.hits);
      EXPECT_EQ(entry->used, row.used);
      Bytes record(place.length);
      ASSERT_TRUE(read_at(file->descriptor.get(), place.offset, record));
      const auto head = check_record(record, golden.key, place, segment.mark);
      ASSERT_TRUE(head);
      expect_record(record, *head, row, golden);
      ++entries;
      bytes += place.length;
    }
    EXPECT_EQ(segment.entries, entries);
    EXPECT_EQ(segment.bytes, bytes);
    EXPECT_EQ(index.entries_of(segment).size(), entries);
  }
}

TEST_F(DiskLayoutTest, RecordsAreFoundWithoutTheIndex) {
  const Directory directory({.path = path_});
  EXPECT_EQ(directory.segments(), (std::vector<std::uint64_t>{1, 2}));
  SegmentFiles files(directory);
  for (const std::uint32_t id : {1U, 2U}) {
    std::vector<GoldenRow> rows = golden_rows(std::to_string(id));
    std::erase_if(rows, [](const GoldenRow& row) { return row.removed; });
    std::size_t found = 0;
    const int refused = scan_records(*files.open(id), [&](const RecordHead& head, double cost) {
      ASSERT_LT(found, rows.size());
      const GoldenRow& row = rows[found++];
      EXPECT_EQ(head.key, golden_.at(row.entry).key);
      EXPECT_EQ(head.offset, row.offset);
      EXPECT_EQ(head.scope, row.scope);
      EXPECT_EQ(head.stored, row.stored);
      EXPECT_EQ(cost, golden_.at(row.entry).seconds);
    });
    EXPECT_EQ(refused, 0);
    EXPECT_EQ(found, rows.size());
  }
}

TEST_F(DiskLayoutTest, TheUnsealedSegmentIsTakenOver) {
  const Directory directory({.path = path_});
  Index index({.path = directory.path_of(kIndexFile)});
  const std::vector<SegmentRow> segments = index.segments();
  ASSERT_EQ(segments.size(), 2U);
  EXPECT_FALSE(SegmentWriter::adopt(directory, segments[0]));
  std::optional<SegmentWriter> writer = SegmentWriter::adopt(directory, segments[1]);
  ASSERT_TRUE(writer);
  EXPECT_EQ(writer->end(), segments[1].end);
  EXPECT_EQ(writer->seal(), segments[1].end);
}

TEST_F(DiskLayoutTest, ThePackIsReadAndWrittenAgain) {
  const PackReader pack(kGolden + "/golden.tkpack");
  const std::vector<GoldenRow> rows = golden_rows("pack");
  EXPECT_EQ(pack.entries(), rows.size());
  PackWriter writer(path_ + "/again.tkpack");
  for (const GoldenRow& row : rows) {
    SCOPED_TRACE(row.entry);
    const GoldenEntry& golden = golden_.at(row.entry);
    Bytes record;
    ASSERT_TRUE(pack.read(golden.key, record));
    const auto head = read_record_head(std::span<const std::byte>(record).first<kRecordHead>());
    ASSERT_TRUE(head);
    EXPECT_EQ(head->offset, row.offset);
    expect_record(record, *head, row, golden);
    writer.add(head->key, head->scope, head->stored, std::span(record).subspan(kRecordHead));
  }
  writer.finish();
  const PackReader again(path_ + "/again.tkpack");
  ASSERT_TRUE(
      std::ranges::equal(again.rows(), pack.rows(), {}, &PackRow::offset, &PackRow::offset));
  ASSERT_TRUE(std::ranges::equal(again.rows(), pack.rows(), {}, &PackRow::key, &PackRow::key));
}

}  // namespace
}  // namespace tensorkey::internal
