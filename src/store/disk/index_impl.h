// What an Index is made of: shared by its reading half (index.cc), its writing half
// (index_write.cc), and how it comes to be (index_open.cc).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/descriptor.h"
#include "store/disk/index.h"
#include "store/disk/sqlite.h"

namespace tensorkey::internal {

// A page of the file. The log holds whole pages, each behind a head of 24 bytes.
inline constexpr std::uint64_t kIndexPage = 4096;
inline constexpr std::uint64_t kLogFrame = kIndexPage + 24;

// After so many periods all hits are scaled back: 2^500 times them is still a number.
inline constexpr std::int64_t kPeriods = 500;

// The highest numbers that a row may have. More ids than that are left to be given.
inline constexpr std::int64_t kMostSegments = std::numeric_limits<std::uint32_t>::max();
inline constexpr std::int64_t kLastId = std::int64_t{1} << 62;

// Rows may have been changed by anybody: one that the library would not have written reads as
// nothing. Columns are counted from `first`.

// segment, offset, length
[[nodiscard]] std::optional<Place> place_in(const Query& query, int first);
// id, scope, segment, offset, length, cost, hits, used; not the key
[[nodiscard]] std::optional<IndexEntry> entry_in(const Query& query);
// all columns of a segment, in their order
[[nodiscard]] std::optional<SegmentRow> segment_in(const Query& query);

[[nodiscard]] bool is_place(const Place& place) noexcept;

// Sums of hostile numbers stay numbers that a row may hold.
[[nodiscard]] inline double tamed(double value) noexcept {
  return value > 0 ? std::fmin(value, 1e300) : 0;  // NaN becomes 0
}

struct Index::Impl {
  explicit Impl(const Options& options);

  [[nodiscard]] IndexSettings read_settings(std::string_view where);
  [[nodiscard]] std::uint64_t main_bytes() const noexcept;
  [[nodiscard]] std::int64_t number(Statement& statement, std::string_view where);

  // --- For the open Write. Rows of segments are changed here and written once, by write_back().
  struct Account {
    SegmentRow row;
    bool present;
    bool changed;
  };
  // Throws unless a Write is open and its transaction still alive.
  void require_write(std::string_view where) const;
  [[nodiscard]] Account& account(std::uint32_t segment, std::string_view where);
  // The row to change; throws if there is none.
  [[nodiscard]] SegmentRow& row_to_change(std::uint32_t segment, std::string_view where);
  [[nodiscard]] IndexSettings& settings_to_read(std::string_view where);
  static void count_out(Account& owner, const IndexEntry& entry) noexcept;
  void rescale(double factor, std::string_view where);
  void write_back(std::string_view where);
  template <class T>
  void write_setting(std::string_view name, T value, std::string_view where) {
    Query query(*database, update_setting, where);
    query.bind(1, name);
    query.bind(2, value);
    query.run();
  }
  void forget_write() noexcept;
  [[nodiscard]] std::optional<IndexEntry> find(const Key& key, std::string_view where);
  // With hits as they are stored. False if the key is there.
  bool insert(const IndexEntry& entry, std::string_view where);
  void erase(const IndexEntry& entry, std::string_view where);

  Options options;
  Descriptor pin;  // O_PATH: it names the file, and closing it drops no lock
  std::optional<Database> database;

  bool writing = false;
  std::unordered_map<std::uint32_t, Account> accounts;
  std::optional<IndexSettings> settings;

  Statement select_entry{
      "SELECT id, scope, segment, offset, length, cost, hits, used FROM entries WHERE key = ?1"};
  Statement select_after{
      "SELECT id, key, segment, offset, length FROM entries WHERE id > ?1 ORDER BY id LIMIT ?2"};
  Statement select_range{
      "SELECT id, scope, segment, offset, length, cost, hits, used, key FROM entries "
      "WHERE id BETWEEN ?1 AND ?2 AND segment = ?3 ORDER BY id"};
  Statement select_scope{
      "SELECT id, scope, segment, offset, length, cost, hits, used, key FROM entries "
      "WHERE scope = ?1 AND id > ?2 AND id <= ?3"};
  Statement select_segments{"SELECT * FROM segments ORDER BY id"};
  Statement select_segment{"SELECT * FROM segments WHERE id = ?1"};
  Statement select_settings{"SELECT name, value FROM settings"};
  Statement select_last{"SELECT seq FROM sqlite_sequence WHERE name = 'entries'"};
  Statement select_version{"PRAGMA data_version"};
  Statement select_free{"PRAGMA freelist_count"};
  Statement select_pages{"PRAGMA page_count"};

  Statement begin{"BEGIN IMMEDIATE"};
  Statement commit{"COMMIT"};
  Statement rollback{"ROLLBACK"};
  Statement insert_entry{
      "INSERT INTO entries(key, scope, segment, offset, length, cost, hits, used) "
      "VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT(key) DO NOTHING"};
  Statement update_entry{"UPDATE entries SET hits = ?2, used = ?3 WHERE id = ?1"};
  Statement delete_entry{"DELETE FROM entries WHERE id = ?1"};
  Statement delete_key{"DELETE FROM entries WHERE key = ?1"};
  Statement delete_range{"DELETE FROM entries WHERE id BETWEEN ?1 AND ?2 AND segment = ?3"};
  Statement delete_scope{"DELETE FROM entries WHERE scope = ?1 AND id > ?2 AND id <= ?3"};
  Statement insert_segment{
      "INSERT INTO segments(id, mark, size, \"end\", sealed, entries, bytes, worth, first_id, "
      "last_id) VALUES(nullif(?4, 0), ?1, ?2, ?3, 0, 0, 0, 0.0, 0, 0)"};
  Statement update_segment{
      "UPDATE segments SET size = ?2, \"end\" = ?3, sealed = ?4, entries = ?5, bytes = ?6, "
      "worth = ?7, first_id = ?8, last_id = ?9 WHERE id = ?1"};
  Statement delete_segment{"DELETE FROM segments WHERE id = ?1"};
  Statement update_setting{"UPDATE settings SET value = ?2 WHERE name = ?1"};
  Statement scale_entries{"UPDATE entries SET hits = hits * ?1"};
  Statement scale_segments{"UPDATE segments SET worth = worth * ?1"};
};

}  // namespace tensorkey::internal
