// What the tests of the index share: a folder that goes with its owner, keys, entries, and raw SQL.
#pragma once

#include <gtest/gtest.h>

#include <sqlite3.h>
#include <sys/stat.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <tensorkey/error.h>

#include "store/disk/index.h"

namespace tensorkey::internal::test {

class Folder {
 public:
  Folder() {
    std::string name = std::filesystem::temp_directory_path() / "tensorkey-index-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() {
    ::chmod(path_.c_str(), 0700);
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ / name; }
  [[nodiscard]] std::string index() const { return path_ / "index.db"; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::size_t files() const {
    const std::filesystem::directory_iterator all(path_);
    return static_cast<std::size_t>(std::distance(begin(all), end(all)));
  }

 private:
  std::filesystem::path path_;
};

// Random bytes, as keys are: they land anywhere in the index.
inline Key key_of(std::uint64_t number) {
  Digest bytes;
  std::uint64_t state = number * 0x9E3779B97F4A7C15U + 1;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    state = (state ^ state >> 30U) * 0xBF58476D1CE4E5B9U;
    bytes[i] = static_cast<std::uint8_t>(state >> 56U);
  }
  return Key(bytes);
}

inline SegmentMark mark_of(std::uint8_t number) {
  SegmentMark mark;
  mark.fill(std::byte{number});
  return mark;
}

inline IndexEntry entry_of(std::uint64_t number, std::uint32_t segment) {
  return {.key = key_of(number),
          .scope = 7,
          .place = {.segment = segment, .offset = 64 + 1600 * (number % 10'000), .length = 1600},
          .cost = 0.5,
          .hits = 1,
          .used = 1'700'000'000};
}

// A new index with one segment that holds entries 0 to count - 1; returns its number.
inline std::uint32_t make(const std::string& path, std::uint64_t count,
                          std::uint64_t limit = std::uint64_t{1} << 30) {
  Index::create(path, 0600, limit);
  Index index({.path = path});
  Index::Write write(index);
  const std::uint32_t segment = index.add_segment(mark_of(1), 1 << 26, 64);
  for (std::uint64_t i = 0; i < count; ++i) EXPECT_TRUE(index.add(entry_of(i, segment)));
  write.commit();
  return segment;
}

inline SegmentRow row_of(Index& index, std::uint32_t segment) {
  for (const SegmentRow& row : index.segments()) {
    if (row.id == segment) return row;
  }
  return {};
}

inline std::vector<IndexEntry> all_of(Index& index) {
  std::vector<IndexEntry> entries;
  index.scan(0, SIZE_MAX, [&](const IndexEntry& entry) { entries.push_back(entry); });
  return entries;
}

// What a user may do to the file with SQLite's own program.
inline void meddle(const std::string& path, const std::string& sql) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
  EXPECT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK)
      << sql << ": " << sqlite3_errmsg(database);
  sqlite3_close(database);
}

template <class Act>
void expect_error(ErrorCode code, Act&& act) {
  try {
    act();
    ADD_FAILURE() << "nothing was thrown; expected " << to_string(code);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_EQ(error.what()[0], '[') << error.what();
  }
}

inline std::uint64_t allocated(const std::string& path) {
  std::uint64_t bytes = 0;
  for (const char* suffix : {"", "-wal", "-shm"}) {
    struct stat status;
    if (::stat((path + suffix).c_str(), &status) == 0) {
      bytes += static_cast<std::uint64_t>(status.st_blocks) * 512;
    }
  }
  return bytes;
}

}  // namespace tensorkey::internal::test
