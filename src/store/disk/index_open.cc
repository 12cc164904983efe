#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>

#include <tensorkey/error.h>

#include "store/disk/index_impl.h"

namespace tensorkey::internal {
namespace {

constexpr std::array kSchema{
    "CREATE TABLE entries(\n"
    "  id INTEGER PRIMARY KEY AUTOINCREMENT,\n"
    "  key BLOB NOT NULL UNIQUE,\n"
    "  scope INTEGER NOT NULL,\n"
    "  segment INTEGER NOT NULL,\n"
    "  offset INTEGER NOT NULL,\n"
    "  length INTEGER NOT NULL,\n"
    "  cost REAL NOT NULL,\n"
    "  hits REAL NOT NULL,\n"
    "  used INTEGER NOT NULL)",
    "CREATE TABLE segments(\n"
    "  id INTEGER PRIMARY KEY AUTOINCREMENT,\n"
    "  mark BLOB NOT NULL,\n"
    "  size INTEGER NOT NULL,\n"
    "  \"end\" INTEGER NOT NULL,\n"
    "  sealed INTEGER NOT NULL,\n"
    "  entries INTEGER NOT NULL,\n"
    "  bytes INTEGER NOT NULL,\n"
    "  worth REAL NOT NULL,\n"
    "  first_id INTEGER NOT NULL,\n"
    "  last_id INTEGER NOT NULL)",
    "CREATE TABLE settings(name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
};

// SQLite refuses a path with a link anywhere in it, so the folder's links are followed here, and
// only the file itself must not be one.
std::string resolved(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string folder =
      slash == std::string::npos ? "." : path.substr(0, std::max<std::size_t>(slash, 1));
  char* real = ::realpath(folder.c_str(), nullptr);
  if (real == nullptr) throw_errno(errno, "Index", path);
  std::string result = real;
  std::free(real);
  if (result.back() != '/') result += '/';
  return result + path.substr(slash == std::string::npos ? 0 : slash + 1);
}

[[noreturn]] void refuse(ErrorCode code, const std::string& path, const std::string& problem) {
  throw Error(code, "[Index] " + path + " " + problem);
}

std::uint32_t big_endian(const unsigned char* bytes) noexcept {
  return std::uint32_t{bytes[0]} << 24U | std::uint32_t{bytes[1]} << 16U |
         std::uint32_t{bytes[2]} << 8U | bytes[3];
}

// The head is judged before SQLite reads anything: of a database that is not ours, or newer, not
// even a log is made.
void check_head(const Database& database, const std::string& path) {
  const std::array<unsigned char, 100> head = database.head("Index");
  const std::uint32_t version = big_endian(head.data() + 60);
  if (std::memcmp(head.data(), "SQLite format 3", 16) != 0 ||
      big_endian(head.data() + 68) != static_cast<std::uint32_t>(Index::kApplication) ||
      version == 0 || head[16] != 0x10 || head[17] != 0) {
    refuse(ErrorCode::kCorruption, path, "is no index; expected a file that Index::create made");
  }
  if (version > std::uint32_t{Index::kVersion}) {
    refuse(ErrorCode::kUnsupported, path,
           "was written by a newer version of this library, with index version " +
               std::to_string(version) + "; expected " + std::to_string(Index::kVersion) +
               ": update tensorkey, or take another directory");
  }
}

void check_schema(Database& database, const std::string& path) {
  std::size_t found = 0;
  {
    Statement statement("SELECT sql FROM sqlite_schema");
    Query query(database, statement, "Index");
    while (query.step()) {
      found += static_cast<std::size_t>(std::ranges::count(kSchema, query.text(0)));
    }
  }
  if (found != kSchema.size()) {
    refuse(ErrorCode::kCorruption, path, "has other tables; expected those of index version 1");
  }
}

// Numbers that were counted up to their end would make every insertion look like a full disk.
void check_sequences(Database& database, const std::string& path) {
  Statement statement(
      "SELECT name, max(seq, ifnull(CASE name WHEN 'entries' THEN (SELECT max(id) FROM entries) "
      "ELSE (SELECT max(id) FROM segments) END, 0)) FROM sqlite_sequence");
  Query query(database, statement, "Index");
  std::size_t found = 0;
  while (query.step()) {
    const std::int64_t most = query.text(0) == "segments" ? kMostSegments : kLastId;
    const std::optional<std::int64_t> last = query.integer(1);
    found += static_cast<std::size_t>(last && *last >= 0 && *last <= most);
  }
  if (found != 2) {
    refuse(ErrorCode::kCorruption, path, "has lost count; expected the last numbers of its rows");
  }
}

}  // namespace

Index::Impl::Impl(const Options& given) : options(given) {
  const std::string path = resolved(options.path);
  pin = Descriptor(::open(path.c_str(), O_PATH | O_CLOEXEC | O_NOFOLLOW));
  if (!pin) throw_errno(errno, "Index", path);
  const auto open = [&](Database::Access access) {
    database.emplace(path, access, options.busy);
    check_head(*database, path);
    // Closing checkpoints nothing and leaves the log: a process that forks closes and opens again,
    // and SQLite's checkpoint on the last close would cost two fsyncs, hold out whoever opens
    // meanwhile, and delete a log that is made anew at once.
    sqlite3_db_config(database->get(), SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
    return database->try_execute("SELECT 1 FROM sqlite_schema");
  };
  int code = open(options.read_only ? Database::Access::kRead : Database::Access::kWrite);
  const int kind = code & 0xFF;
  if (options.read_only && (kind == SQLITE_CANTOPEN || kind == SQLITE_READONLY)) {
    code = open(Database::Access::kImmutable);
  }
  if (code != SQLITE_OK) database->fail(code, "Index");
  // Checked pages: a damaged one is an error, never a read beyond it.
  database->execute(
      "PRAGMA cell_size_check = ON; PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY;"
      "PRAGMA cache_size = -4096; PRAGMA mmap_size = 0; PRAGMA secure_delete = OFF;"
      "PRAGMA journal_size_limit = " +
          std::to_string(options.wal_bytes),
      "Index");
  const std::uint64_t frames = std::clamp<std::uint64_t>(options.wal_bytes / kLogFrame, 1, 1 << 20);
  sqlite3_wal_autocheckpoint(database->get(), static_cast<int>(frames));
  check_schema(*database, path);
  check_sequences(*database, path);
  static_cast<void>(read_settings("Index"));
  // A copy made by SQLite's own means may have lost the mode.
  if (!options.read_only && database->head("Index")[18] == 1) {
    database->execute("PRAGMA journal_mode = WAL", "Index");
  }
}

Index::Index(const Options& options) : impl_(std::make_unique<Impl>(options)) {
  if (moved()) {
    throw Error(ErrorCode::kUnavailable, "[Index] " + options.path +
                                             " was replaced while it was opened; expected to "
                                             "find it there when opened again");
  }
}

Index::~Index() = default;

void Index::create(const std::string& path, unsigned mode, std::uint64_t limit,
                   std::uint32_t first_segment) {
  const std::string real = resolved(path);
  Descriptor file(::open(real.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!file) throw_errno(errno, "Index::create", real);
  try {
    if (::fchmod(file.get(), mode) != 0) throw_errno(errno, "Index::create", real);
    {
      Database database(real, Database::Access::kWrite, std::chrono::milliseconds(0));
      std::string script =
          "PRAGMA page_size = 4096; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = MEMORY;"
          "PRAGMA synchronous = OFF; BEGIN IMMEDIATE;";
      for (const char* table : kSchema) (script += table) += ';';
      const std::uint64_t most = std::numeric_limits<std::int64_t>::max();
      script += "INSERT INTO sqlite_sequence(name, seq) VALUES('entries', 0), ('segments', " +
                std::to_string(std::max(first_segment, 1U) - 1) + ");";
      script += "INSERT INTO settings VALUES('accesses', 0.0), ('period', 0), ('limit', " +
                std::to_string(std::min(limit, most)) + ");";
      script += "PRAGMA application_id = " + std::to_string(kApplication) + ";";
      script += "PRAGMA user_version = " + std::to_string(kVersion) + "; COMMIT;";
      // Last, with everything in the main file: the last close takes the empty log away.
      script += "PRAGMA journal_mode = WAL";
      database.execute(script, "Index::create");
    }
    // Once for all that was written without.
    if (::fsync(file.get()) != 0) throw_errno(errno, "Index::create", real);
  } catch (...) {
    for (const char* suffix : {"", "-wal", "-shm", "-journal"}) ::unlink((real + suffix).c_str());
    throw;
  }
}

Descriptor Index::pin() const noexcept {
  return Descriptor(::fcntl(impl_->pin.get(), F_DUPFD_CLOEXEC, 0));
}

bool Index::is(const Descriptor& pinned) const noexcept {
  struct stat ours;
  struct stat theirs;
  return pinned && ::fstat(impl_->pin.get(), &ours) == 0 && ::fstat(pinned.get(), &theirs) == 0 &&
         ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

bool Index::moved() const noexcept {
  struct stat ours;
  struct stat there;
  return ::fstat(impl_->pin.get(), &ours) != 0 ||
         ::stat(impl_->options.path.c_str(), &there) != 0 || ours.st_dev != there.st_dev ||
         ours.st_ino != there.st_ino;
}

}  // namespace tensorkey::internal
