#include "store/disk/sqlite.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

#include <tensorkey/error.h>

namespace tensorkey::internal {
namespace {

// SQLite waits up to ten seconds where a process was stopped while it wrote the head of the shared
// memory: a hundred rounds of growing naps, without asking the busy handler. Shorter naps end that
// wait in 0.2 s.
constexpr int kLongestNap = 2000;  // microseconds

int nap(sqlite3_vfs*, int microseconds) noexcept {
  ::usleep(static_cast<useconds_t>(std::clamp(microseconds, 0, kLongestNap)));
  return microseconds;
}

// The unix layer of SQLite with our naps, under a name of its own: a program that links the same
// SQLite keeps its default.
const char* file_layer() {
  static constexpr const char* kName = "tensorkey";
  static const bool registered = [] {
    const sqlite3_vfs* plain = sqlite3_vfs_find("unix");
    if (plain == nullptr) return false;
    static sqlite3_vfs ours;
    ours = *plain;
    ours.zName = kName;
    ours.pNext = nullptr;
    ours.xSleep = nap;
    return sqlite3_vfs_register(&ours, 0) == SQLITE_OK;
  }();
  return registered ? kName : nullptr;
}

// Of a path in a URI, all but the plain characters escaped.
std::string uri_of(const std::string& path) {
  static constexpr std::string_view kDigits = "0123456789ABCDEF";
  static constexpr std::string_view kPlain = "-._~/";
  std::string uri = "file://";
  for (const char letter : path) {
    const auto code = static_cast<unsigned char>(letter);
    const bool alphanumeric = (code >= '0' && code <= '9') || (code >= 'a' && code <= 'z') ||
                              (code >= 'A' && code <= 'Z');
    if (alphanumeric || kPlain.find(letter) != std::string_view::npos) {
      uri += letter;
    } else {
      uri += '%';
      uri += kDigits[code >> 4U];
      uri += kDigits[code & 15U];
    }
  }
  return uri + "?immutable=1";
}

ErrorCode code_of_errno(int error) noexcept {
  switch (error) {
    case ENOSPC:
    case EDQUOT: return ErrorCode::kExhausted;
    case EACCES:
    case EPERM:
    case EROFS:
    case ENOENT:
    case ENOTDIR:
    case ELOOP:
    case ESTALE:
    case EMFILE:
    case ENFILE: return ErrorCode::kUnavailable;
    default: return ErrorCode::kIo;
  }
}

struct Meaning {
  ErrorCode code;
  const char* expected;
};

Meaning meaning_of(int code, int system_error) noexcept {
  switch (code & 0xFF) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
    case SQLITE_SCHEMA: return {ErrorCode::kUnavailable, "others to let go of it in time"};
    case SQLITE_FULL: return {ErrorCode::kExhausted, "free space on the disk"};
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return {ErrorCode::kUnavailable, "a file, and a directory, that can be read and written"};
    case SQLITE_IOERR:
      if (code == SQLITE_IOERR_CORRUPTFS || code == SQLITE_IOERR_SHORT_READ) break;
      return {code_of_errno(system_error), "a device that reads and writes"};
    case SQLITE_INTERRUPT:
    case SQLITE_MISUSE:
    case SQLITE_INTERNAL:
    case SQLITE_NOLFS: return {ErrorCode::kIo, "SQLite to work"};
    default:
      break;  // CORRUPT, NOTADB, and what only another schema or hostile rows can bring about
  }
  return {ErrorCode::kCorruption, "an index as this library writes it"};
}

}  // namespace

void throw_errno(int error, std::string_view where, const std::string& path) {
  throw Error(code_of_errno(error), "[" + std::string(where) + "] " + path + ": " +
                                        std::generic_category().message(error) +
                                        "; expected a file that can be opened");
}

Database::Database(std::string path, Access access, std::chrono::milliseconds busy)
    : path_(std::move(path)), busy_(busy) {
  const bool immutable = access == Access::kImmutable;
  const int flags = (access == Access::kWrite ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY) |
                    (immutable ? SQLITE_OPEN_URI : 0) | SQLITE_OPEN_NOMUTEX |
                    SQLITE_OPEN_PRIVATECACHE | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_EXRESCODE;
  const std::string name = immutable ? uri_of(path_) : path_;
  const int code = sqlite3_open_v2(name.c_str(), &handle_, flags, file_layer());
  try {
    if (code != SQLITE_OK) fail(code, "Index");
    // A schema is not trusted: it runs no trigger, view or function on our behalf.
    for (const auto& [option, value] :
         {std::pair{SQLITE_DBCONFIG_DEFENSIVE, 1}, std::pair{SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0},
          std::pair{SQLITE_DBCONFIG_ENABLE_TRIGGER, 0}, std::pair{SQLITE_DBCONFIG_ENABLE_VIEW, 0},
          std::pair{SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0},
          std::pair{SQLITE_DBCONFIG_DQS_DML, 0}, std::pair{SQLITE_DBCONFIG_DQS_DDL, 0}}) {
      const int refused = sqlite3_db_config(handle_, option, value, nullptr);
      if (refused != SQLITE_OK) fail(refused, "Index");
    }
    sqlite3_limit(handle_, SQLITE_LIMIT_LENGTH, 1 << 20);
    sqlite3_busy_handler(handle_, wait, this);
  } catch (...) {
    sqlite3_close(handle_);
    throw;
  }
}

Database::~Database() { sqlite3_close(handle_); }

int Database::wait(void* self, int calls) noexcept {
  auto& database = *static_cast<Database*>(self);
  const auto now = std::chrono::steady_clock::now();
  if (calls == 0) database.deadline_ = now + database.busy_;
  if (!database.patient_ || now >= database.deadline_) return 0;
  ::usleep(calls < 4 ? 100 : 1000);
  return 1;
}

void Database::execute(const std::string& sql, std::string_view where) {
  const int code = try_execute(sql.c_str());
  if (code != SQLITE_OK) fail(code, where);
}

int Database::try_execute(const char* sql) noexcept {
  return sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr);
}

void Database::fail(int code, std::string_view where) const {
  if ((code & 0xFF) == SQLITE_NOMEM || code == SQLITE_IOERR_NOMEM) throw std::bad_alloc();
  const bool latest = handle_ != nullptr && sqlite3_extended_errcode(handle_) == code;
  const int system_error = latest ? sqlite3_system_errno(handle_) : 0;
  const Meaning meaning = meaning_of(code, system_error);
  std::string message = "[" + std::string(where) + "] " + path_ + ": ";
  message += latest ? sqlite3_errmsg(handle_) : sqlite3_errstr(code);
  message += " (SQLite " + std::to_string(code);
  if (system_error != 0) message += ", " + std::generic_category().message(system_error);
  throw Error(meaning.code, message + "); expected " + meaning.expected);
}

std::array<unsigned char, 100> Database::head(std::string_view where) const {
  std::array<unsigned char, 100> bytes{};
  sqlite3_file* file = nullptr;
  int code = sqlite3_file_control(handle_, "main", SQLITE_FCNTL_FILE_POINTER, &file);
  if (code == SQLITE_OK) {
    code = file->pMethods->xRead(file, bytes.data(), static_cast<int>(bytes.size()), 0);
  }
  if (code != SQLITE_OK && code != SQLITE_IOERR_SHORT_READ) fail(code, where);
  return bytes;
}

std::uint64_t Database::log_bytes() const noexcept {
  sqlite3_file* file = nullptr;
  sqlite3_int64 size = 0;
  const int code = sqlite3_file_control(handle_, "main", SQLITE_FCNTL_JOURNAL_POINTER, &file);
  if (code != SQLITE_OK || file == nullptr || file->pMethods == nullptr) return 0;
  return file->pMethods->xFileSize(file, &size) == SQLITE_OK ? static_cast<std::uint64_t>(size) : 0;
}

Query::Query(Database& database, Statement& statement, std::string_view where)
    : database_(database), where_(where), handle_(statement.handle_) {
  if (handle_ != nullptr) return;
  check(sqlite3_prepare_v3(database.get(), statement.sql_, -1, SQLITE_PREPARE_PERSISTENT, &handle_,
                           nullptr));
  statement.handle_ = handle_;
}

bool Query::step() {
  const int code = sqlite3_step(handle_);
  if (code == SQLITE_ROW) return true;
  if (code != SQLITE_DONE) database_.fail(code, where_);
  return false;
}

std::uint64_t Query::run() {
  while (step()) {
  }
  return static_cast<std::uint64_t>(sqlite3_changes64(database_.get()));
}

std::optional<std::int64_t> Query::integer(int column) const noexcept {
  if (sqlite3_column_type(handle_, column) != SQLITE_INTEGER) return std::nullopt;
  return sqlite3_column_int64(handle_, column);
}

std::optional<double> Query::real(int column) const noexcept {
  const int type = sqlite3_column_type(handle_, column);
  if (type != SQLITE_FLOAT && type != SQLITE_INTEGER) return std::nullopt;
  return sqlite3_column_double(handle_, column);
}

std::string_view Query::text(int column) const noexcept {
  if (sqlite3_column_type(handle_, column) != SQLITE_TEXT) return {};
  const unsigned char* letters = sqlite3_column_text(handle_, column);
  if (letters == nullptr) return {};
  return {reinterpret_cast<const char*>(letters),
          static_cast<std::size_t>(sqlite3_column_bytes(handle_, column))};
}

bool Query::blob(int column, std::span<std::byte> out) const noexcept {
  if (sqlite3_column_type(handle_, column) != SQLITE_BLOB) return false;
  const void* bytes = sqlite3_column_blob(handle_, column);
  const auto size = static_cast<std::size_t>(sqlite3_column_bytes(handle_, column));
  if (bytes == nullptr || size != out.size()) return false;
  std::memcpy(out.data(), bytes, size);
  return true;
}

}  // namespace tensorkey::internal
