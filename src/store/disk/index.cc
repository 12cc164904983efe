#include "store/disk/index.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include <tensorkey/error.h>

#include "store/disk/index_impl.h"

namespace tensorkey::internal {
namespace {

constexpr std::int64_t kMostSegments = std::numeric_limits<std::uint32_t>::max();
constexpr std::int64_t kMostBytes = std::int64_t{1} << 36;  // of a place: see Place
constexpr std::int64_t kLastId = std::int64_t{1} << 62;     // room for more is always left

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
  std::free(real);  // NOLINT(cppcoreguidelines-no-malloc): realpath's
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
    refuse(ErrorCode::kUnavailable, path,
           "was written by a newer version of this library, with index version " +
               std::to_string(version) + "; expected " + std::to_string(Index::kVersion));
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

bool in(const std::optional<std::int64_t>& value, std::int64_t least, std::int64_t most) noexcept {
  return value && *value >= least && *value <= most;
}

bool tame(const std::optional<double>& value) noexcept {
  return value && *value >= 0 && *value <= std::numeric_limits<double>::max();
}

}  // namespace

bool is_place(const Place& place) noexcept {
  constexpr auto kMost = static_cast<std::uint64_t>(kMostBytes);
  return place.segment != 0 && place.offset % 16 == 0 && place.length % 16 == 0 &&
         place.length != 0 && place.offset < kMost && place.length < kMost;
}

std::optional<Place> place_in(const Query& query, int first) {
  const auto segment = query.integer(first);
  const auto offset = query.integer(first + 1);
  const auto length = query.integer(first + 2);
  if (!in(segment, 1, kMostSegments) || !in(offset, 0, kMostBytes) || !in(length, 0, kMostBytes)) {
    return std::nullopt;
  }
  const Place place{.segment = static_cast<std::uint32_t>(*segment),
                    .offset = static_cast<std::uint64_t>(*offset),
                    .length = static_cast<std::uint64_t>(*length)};
  return is_place(place) ? std::optional(place) : std::nullopt;
}

std::optional<IndexEntry> entry_in(const Query& query) {
  const auto id = query.integer(0);
  const auto scope = query.integer(1);
  const auto place = place_in(query, 2);
  const auto cost = query.real(5);
  const auto hits = query.real(6);
  const auto used = query.integer(7);
  if (!in(id, 1, kLastId) || !scope || !place || !tame(cost) || !tame(hits) ||
      !in(used, 0, std::numeric_limits<std::int64_t>::max())) {
    return std::nullopt;
  }
  return IndexEntry{.id = *id,
                    .key = {},
                    .scope = static_cast<std::uint64_t>(*scope),
                    .place = *place,
                    .cost = *cost,
                    .hits = *hits,
                    .used = *used};
}

std::optional<SegmentRow> segment_in(const Query& query) {
  SegmentRow row;
  const auto id = query.integer(0);
  const auto size = query.integer(2);
  const auto end = query.integer(3);
  const auto sealed = query.integer(4);
  const auto entries = query.integer(5);
  const auto bytes = query.integer(6);
  const auto worth = query.real(7);
  const auto first_id = query.integer(8);
  const auto last_id = query.integer(9);
  // A segment may end up to one record behind the last place.
  if (!in(id, 1, kMostSegments) || !query.blob(1, row.mark) || !in(size, 0, 2 * kMostBytes) ||
      !in(end, 0, *size) || !in(sealed, 0, 1) || !in(entries, 0, kLastId) ||
      !in(bytes, 0, 2 * kMostBytes) || !tame(worth) || !in(last_id, 0, kLastId) ||
      !in(first_id, 0, *last_id)) {
    return std::nullopt;
  }
  row.id = static_cast<std::uint32_t>(*id);
  row.size = static_cast<std::uint64_t>(*size);
  row.end = static_cast<std::uint64_t>(*end);
  row.sealed = *sealed == 1;
  row.entries = static_cast<std::uint64_t>(*entries);
  row.bytes = static_cast<std::uint64_t>(*bytes);
  row.worth = *worth;
  row.first_id = *first_id;
  row.last_id = *last_id;
  return row;
}

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

bool Index::moved() const noexcept {
  struct stat ours;
  struct stat there;
  return ::fstat(impl_->pin.get(), &ours) != 0 ||
         ::stat(impl_->options.path.c_str(), &there) != 0 || ours.st_dev != there.st_dev ||
         ours.st_ino != there.st_ino;
}

// --- Reading

std::optional<IndexEntry> Index::Impl::find(const Key& key, std::string_view where) {
  Query query(*database, select_entry, where);
  query.bind(1, key.bytes());
  if (!query.step()) return std::nullopt;
  std::optional<IndexEntry> entry = entry_in(query);
  if (entry) entry->key = key;
  return entry;
}

std::optional<IndexEntry> Index::find(const Key& key) { return impl_->find(key, "Index::find"); }

std::int64_t Index::scan(std::int64_t after, std::size_t most,
                         const std::function<void(const IndexEntry&)>& take) {
  // take() may wait for a lock, so it is called between transactions of so many rows.
  constexpr std::size_t kBatch = 1024;
  std::vector<IndexEntry> batch;
  batch.reserve(std::min(most, kBatch));
  std::int64_t last = after;
  while (most > 0) {
    const std::size_t asked = std::min(most, kBatch);
    std::size_t rows = 0;
    batch.clear();
    {
      Query query(*impl_->database, impl_->select_after, "Index::scan");
      query.bind(1, last);
      query.bind(2, static_cast<std::int64_t>(asked));
      for (; query.step(); ++rows) {
        const std::int64_t id = query.integer(0).value_or(0);
        // A damaged tree may go round in circles.
        if (id <= last) impl_->database->fail(SQLITE_CORRUPT, "Index::scan");
        last = id;
        Digest key;
        const std::optional<Place> place = place_in(query, 2);
        if (place && id <= kLastId && query.blob(1, std::as_writable_bytes(std::span(key)))) {
          IndexEntry& entry = batch.emplace_back();
          entry.id = id;
          entry.key = Key(key);
          entry.place = *place;
        }
      }
    }
    for (const IndexEntry& entry : batch) take(entry);
    if (rows < asked) break;
    most -= rows;
  }
  return last;
}

std::vector<IndexEntry> Index::entries_of(const SegmentRow& segment) {
  std::vector<IndexEntry> entries;
  Query query(*impl_->database, impl_->select_range, "Index::entries_of");
  query.bind(1, segment.first_id);
  query.bind(2, segment.last_id);
  query.bind(3, std::int64_t{segment.id});
  while (query.step()) {
    Digest key;
    std::optional<IndexEntry> entry = entry_in(query);
    if (!entry || !query.blob(8, std::as_writable_bytes(std::span(key)))) continue;
    entry->key = Key(key);
    entries.push_back(*entry);
  }
  return entries;
}

std::vector<SegmentRow> Index::segments() {
  if (impl_->writing) impl_->write_back("Index::segments");
  std::vector<SegmentRow> rows;
  Query query(*impl_->database, impl_->select_segments, "Index::segments");
  while (query.step()) {
    if (const std::optional<SegmentRow> row = segment_in(query)) rows.push_back(*row);
  }
  return rows;
}

std::uint64_t Index::entries() {
  std::uint64_t sum = 0;
  for (const SegmentRow& row : segments()) sum += std::min(row.entries, std::uint64_t{1} << 40);
  return sum;
}

IndexSettings Index::Impl::read_settings(std::string_view where) {
  std::optional<std::int64_t> limit;
  std::optional<std::int64_t> period;
  std::optional<double> accesses;
  {
    Query query(*database, select_settings, where);
    while (query.step()) {
      const std::string_view name = query.text(0);
      if (name == "limit") limit = query.integer(1);
      if (name == "period") period = query.integer(1);
      if (name == "accesses") accesses = query.real(1);
    }
  }
  if (!in(limit, 0, std::numeric_limits<std::int64_t>::max()) || !in(period, 0, kPeriods) ||
      !tame(accesses)) {
    throw Error(ErrorCode::kCorruption, "[" + std::string(where) + "] " + options.path +
                                            " has lost its settings; expected limit, period and "
                                            "accesses");
  }
  return {.limit = static_cast<std::uint64_t>(*limit), .period = *period, .accesses = *accesses};
}

std::int64_t Index::Impl::number(Statement& statement, std::string_view where) {
  Query query(*database, statement, where);
  return query.step() ? query.integer(0).value_or(0) : 0;
}

IndexSettings Index::settings() { return impl_->read_settings("Index::settings"); }

std::int64_t Index::data_version() {
  return impl_->number(impl_->select_version, "Index::data_version");
}

std::int64_t Index::last_id() { return impl_->number(impl_->select_last, "Index::last_id"); }

std::uint64_t Index::segment_bytes() {
  std::uint64_t sum = 0;  // 2^32 rows of 2^37 bytes do not fit, but a table of so many is no table
  for (const SegmentRow& row : segments()) sum += row.size;
  return sum;
}

// --- Size

std::uint64_t Index::Impl::main_bytes() const noexcept {
  struct stat status;
  if (::fstat(pin.get(), &status) != 0 || status.st_blocks < 0) return 0;
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

std::uint64_t Index::unwritten_bytes() {
  const std::int64_t pages = impl_->number(impl_->select_pages, "Index::unwritten_bytes");
  const std::uint64_t complete =
      static_cast<std::uint64_t>(std::max<std::int64_t>(pages, 0)) * kIndexPage;
  return complete - std::min(complete, impl_->main_bytes());
}

std::uint64_t Index::file_bytes() {
  std::uint64_t sum = impl_->main_bytes() + unwritten_bytes();
  for (const char* suffix : {"-wal", "-shm"}) {
    struct stat status;
    if (::stat((impl_->options.path + suffix).c_str(), &status) == 0 && status.st_blocks > 0) {
      sum += static_cast<std::uint64_t>(status.st_blocks) * 512;
    }
  }
  return sum;
}

std::uint64_t Index::log_bytes() const { return impl_->database->log_bytes(); }

// --- Upkeep

bool Index::vacuum(int pages) {
  constexpr std::int64_t kFew = 16;
  const auto worth_it = [&](std::int64_t free) {
    return free > kFew && free > impl_->number(impl_->select_pages, "Index::vacuum") / 8;
  };
  const std::int64_t before = impl_->number(impl_->select_free, "Index::vacuum");
  if (pages <= 0 || impl_->options.read_only || !worth_it(before)) return false;
  impl_->database->execute("PRAGMA incremental_vacuum(" + std::to_string(pages) + ")",
                           "Index::vacuum");
  const std::int64_t after = impl_->number(impl_->select_free, "Index::vacuum");
  return after < before && worth_it(after);
}

bool Index::checkpoint() {
  if (impl_->options.read_only) return false;
  Database& database = *impl_->database;
  struct Impatience {
    explicit Impatience(Database& waiting) : who(waiting) { who.set_patient(false); }
    ~Impatience() { who.set_patient(true); }
    Impatience(const Impatience&) = delete;
    Impatience& operator=(const Impatience&) = delete;
    Database& who;
  };
  const Impatience impatience(database);
  int in_log = 0;
  int moved = 0;
  const auto run = [&](int mode) {
    const int code = sqlite3_wal_checkpoint_v2(database.get(), "main", mode, &in_log, &moved);
    if (code == SQLITE_OK) return true;
    const int kind = code & 0xFF;
    if (kind != SQLITE_BUSY && kind != SQLITE_LOCKED) database.fail(code, "Index::checkpoint");
    return false;
  };
  // The first does the work and keeps nobody from writing; the second, which does, then has only
  // to cut the log. It is not needed while the log is small.
  const bool complete = run(SQLITE_CHECKPOINT_PASSIVE) && in_log == moved;
  if (run(SQLITE_CHECKPOINT_TRUNCATE)) return true;
  return complete && database.log_bytes() <= impl_->options.wal_bytes;
}

}  // namespace tensorkey::internal
