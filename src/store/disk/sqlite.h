// What the index needs of SQLite: a connection, its statements, and the one place that turns
// SQLite's codes into Errors. One thread at a time. A Statement is prepared when it is first used
// and lives no longer than its Database; a Query is one run of it, and ends its read transaction
// when it goes.
//
//   Statement find{"SELECT id FROM entries WHERE key = ?1"};
//   Query query(database, find, "Index::find");
//   query.bind(1, key.bytes());
//   if (query.step()) ... query.integer(0) ...
//
// A value of another type than the one asked for is no value: files are not trusted.
#pragma once

#include <sqlite3.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace tensorkey::internal {

// Throws what errno says of a path: kExhausted for a full disk, kUnavailable where a remedy is the
// user's, kIo for the rest.
[[noreturn]] void throw_errno(int error, std::string_view where, const std::string& path);

class Database {
 public:
  enum class Access : std::uint8_t {
    kWrite,
    kRead,
    kImmutable,  // read without locks and without the log: nothing is made beside the file
  };

  // Opens a file that is there, whose path is absolute and free of links. Nothing is read yet.
  Database(std::string path, Access access, std::chrono::milliseconds busy);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  [[nodiscard]] sqlite3* get() const noexcept { return handle_; }
  [[nodiscard]] bool in_transaction() const noexcept {
    return sqlite3_get_autocommit(handle_) == 0;
  }

  // Runs statements to their end. try_execute returns SQLite's code.
  void execute(const std::string& sql, std::string_view where);
  [[nodiscard]] int try_execute(const char* sql) noexcept;
  [[noreturn]] void fail(int code, std::string_view where) const;

  // The head of the file as it is on disk, zeros where there is none, read through SQLite's own
  // descriptor: closing another one would drop the locks of every connection of this process.
  [[nodiscard]] std::array<unsigned char, 100> head(std::string_view where) const;
  [[nodiscard]] std::uint64_t log_bytes() const noexcept;

  // Whether a lock that others hold is waited for.
  void set_patient(bool patient) noexcept { patient_ = patient; }

 private:
  static int wait(void* self, int calls) noexcept;

  std::string path_;
  std::chrono::milliseconds busy_;
  std::chrono::steady_clock::time_point deadline_;
  bool patient_ = true;
  sqlite3* handle_ = nullptr;
};

class Statement {
 public:
  explicit Statement(const char* sql) noexcept : sql_(sql) {}
  ~Statement() { sqlite3_finalize(handle_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

 private:
  friend class Query;
  const char* sql_;
  sqlite3_stmt* handle_ = nullptr;
};

class Query {
 public:
  Query(Database& database, Statement& statement, std::string_view where);
  ~Query() { sqlite3_reset(handle_); }
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;

  void bind(int index, std::int64_t value) { check(sqlite3_bind_int64(handle_, index, value)); }
  void bind(int index, double value) { check(sqlite3_bind_double(handle_, index, value)); }
  // These borrow the bytes until the query goes.
  void bind(int index, std::string_view text) {
    const int size = static_cast<int>(text.size());
    check(sqlite3_bind_text(handle_, index, text.data(), size, SQLITE_STATIC));
  }
  template <std::size_t size>
  void bind(int index, const std::array<std::uint8_t, size>& bytes) {
    check(sqlite3_bind_blob(handle_, index, bytes.data(), static_cast<int>(size), SQLITE_STATIC));
  }
  template <std::size_t size>
  void bind(int index, const std::array<std::byte, size>& bytes) {
    check(sqlite3_bind_blob(handle_, index, bytes.data(), static_cast<int>(size), SQLITE_STATIC));
  }

  // Whether there is a row.
  bool step();
  // For what has no rows. Returns how many rows it changed.
  std::uint64_t run();

  [[nodiscard]] std::optional<std::int64_t> integer(int column) const noexcept;
  [[nodiscard]] std::optional<double> real(int column) const noexcept;
  [[nodiscard]] std::string_view text(int column) const noexcept;
  // Copies a blob of exactly this size; false for anything else.
  [[nodiscard]] bool blob(int column, std::span<std::byte> out) const noexcept;

 private:
  void check(int code) const {
    if (code != SQLITE_OK) database_.fail(code, where_);
  }

  Database& database_;
  std::string_view where_;
  sqlite3_stmt* handle_;
};

}  // namespace tensorkey::internal
