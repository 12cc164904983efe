#include "store/disk/index.h"

#include <sys/stat.h>

#include <algorithm>
#include <limits>

#include <tensorkey/error.h>

#include "store/disk/index_impl.h"

namespace tensorkey::internal {
namespace {

constexpr std::int64_t kMostBytes = std::int64_t{1} << 36;  // of a place: see Place

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
  const std::uint64_t complete = length();
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

std::uint64_t Index::length() {
  const std::int64_t pages = impl_->number(impl_->select_pages, "Index::length");
  return static_cast<std::uint64_t>(std::max<std::int64_t>(pages, 0)) * kIndexPage;
}

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
