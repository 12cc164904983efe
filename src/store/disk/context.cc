#include "store/disk/context.h"

#include <tensorkey/error.h>

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>

namespace tensorkey::internal {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kDefaultLimit = std::uint64_t{10} << 30;
constexpr milliseconds kFirstPause(20);
constexpr milliseconds kLongestPause(5000);

class IndexLock {
 public:
  IndexLock(DiskContext& context, milliseconds patience) : context_(context) {
    if (!context.leases.lock_index(patience)) {
      throw Error(ErrorCode::kUnavailable,
                  "[ActivationCache] another process is making the index of " +
                      context.directory.path() + "; expected it to be done soon");
    }
  }
  ~IndexLock() { context_.leases.unlock_index(); }
  IndexLock(const IndexLock&) = delete;
  IndexLock& operator=(const IndexLock&) = delete;

 private:
  DiskContext& context_;
};

std::uint64_t wanted_limit(const DiskContext& context) {
  const std::uint64_t limit = context.options.disk_limit;
  return limit == 0 ? kDefaultLimit : limit;
}

std::unique_ptr<Index> open_existing(DiskContext& context) {
  auto index =
      std::make_unique<Index>(Index::Options{.path = context.directory.path_of(kIndexFile),
                                             .read_only = context.directory.read_only(),
                                             .wal_bytes = log_bytes(wanted_limit(context))});
  context.refused_since = Clock::time_point{};
  return index;
}

// A segment, or a part of it, that cannot be read. An index without it would be taken for all there
// is, and what it lacks would be removed.
void refuse_segment(DiskContext& context, std::uint32_t id, int number) {
  const Clock::time_point now = Clock::now();
  if (context.refused_since.load() == Clock::time_point{}) context.refused_since = now;
  if (now - context.refused_since.load() >= context.refusal_patience) return;
  throw Error(ErrorCode::kIo, "[ActivationCache] " + context.directory.path_of(segment_name(id)) +
                                  " cannot be read, of which an index is to be made: " +
                                  std::generic_category().message(number) +
                                  "; expected a device that reads");
}

// All records of a segment become rows of the index. The segment keeps its number, which stands in
// its head, and stays open: a writer that still has it is noticed by its lock.
void restore_segment(DiskContext& context, Index& index, const SegmentFiles::File& file,
                     std::uint64_t size) {
  const std::uint64_t limit = wanted_limit(context);
  const std::size_t part = rows_per_commit(limit, index.length());
  std::size_t rows = 0;
  std::optional<Index::Write> write(std::in_place, index);
  index.add_segment(file.mark, size, kSegmentHead, file.id);
  std::uint64_t end = kSegmentHead;
  const int refused = scan_records(file, [&](const RecordHead& head, double cost) {
    if (++rows % part == 0) {  // so that the log keeps to its share of the limit
      write->commit();
      write.reset();
      if (index.log_bytes() > log_bytes(limit)) index.checkpoint();
      write.emplace(index);
    }
    const Place place{
        .segment = file.id, .offset = head.offset, .length = kRecordHead + head.length};
    index.add({.key = head.key,
               .scope = head.scope,
               .place = place,
               .cost = cost,
               .hits = 1,
               .used = head.stored});
    end = std::max(end, place.offset + place.length);
  });
  if (refused != 0) refuse_segment(context, file.id, refused);
  index.set_end(file.id, end);
  write->commit();
}

// Makes an index of the segments that are there. REQUIRES: the index lock.
void make_index(DiskContext& context) {
  const Directory& directory = context.directory;
  const std::string name(kNewIndexFile);  // one at a time is made
  const std::string path = directory.path_of(name);
  const auto remove_files = [&] {
    for (const char* const suffix : {"", "-wal", "-shm", "-journal"}) {
      directory.remove(name + suffix);
    }
  };
  remove_files();  // of a process that died here
  try {
    Index::create(path, directory.file_mode(), wanted_limit(context));
    const std::vector<std::uint64_t> ids = directory.segments();
    if (!ids.empty()) {
      const std::uint64_t limit = wanted_limit(context);
      Index index({.path = path, .wal_bytes = log_bytes(limit)});
      for (const std::uint64_t id : ids) {
        const auto number = static_cast<std::uint32_t>(id);
        context.files.close(number);  // an open one may have been of the index before
        const SegmentFiles::FilePtr file = context.files.open(number);
        if (file == nullptr) {
          if (errno != 0) refuse_segment(context, number, errno);
          continue;  // nothing says which records are its: an orphan
        }
        struct stat status {};
        if (::fstat(file->descriptor.get(), &status) != 0) {
          refuse_segment(context, number, errno);
          continue;
        }
        restore_segment(context, index, *file, static_cast<std::uint64_t>(status.st_size));
      }
      index.checkpoint();
    }
    for (const char* const suffix : {"-wal", "-shm"}) directory.remove(name + suffix);
    if (!directory.rename(name, kIndexFile)) {
      throw Error(ErrorCode::kIo, "[ActivationCache] " + path + " cannot become the index: " +
                                      std::generic_category().message(errno));
    }
  } catch (...) {
    remove_files();
    throw;
  }
}

// The log of an index that is gone would be taken for that of the next. REQUIRES: the index lock.
void remove_log(const Directory& directory) {
  for (const char* const suffix : {"-wal", "-shm", "-journal"}) {
    directory.remove(std::string(kIndexFile) + suffix);
  }
}

// REQUIRES: the index lock.
void set_aside(DiskContext& context) {
  const Directory& directory = context.directory;
  directory.rename(kIndexFile, kDamagedIndexFile);
  remove_log(directory);
  // It is kept where there is room for one more, with its log.
  const std::uint64_t limit = wanted_limit(context);
  const std::uint64_t wanted = directory.allocated(kDamagedIndexFile) + 2 * log_bytes(limit);
  if (directory.allocated() + wanted > limit) directory.remove(kDamagedIndexFile);
  make_index(context);
  ++context.counters.rebuilds;
}

}  // namespace

void DiskCounters::add_to(DiskStats& stats) const {
  stats.hits += hits;
  stats.misses += misses;
  stats.insertions += insertions;
  stats.inserted_bytes += inserted_bytes;
  stats.written_bytes += written_bytes;
  stats.rejections += rejections;
  stats.dropped += dropped;
  stats.evictions += evictions;
  stats.corrupt += corrupt;
  stats.stale += stale;
  stats.expired += expired;
  stats.errors += errors;
  stats.lease_waits += lease_waits;
  stats.lease_timeouts += lease_timeouts;
  stats.rebuilds += rebuilds;
}

void DiskCounters::reset() noexcept {
  for (Counter* const counter : {&hits, &misses, &insertions, &inserted_bytes, &written_bytes,
                                 &rejections, &dropped, &evictions, &corrupt, &stale, &expired,
                                 &errors, &lease_waits, &lease_timeouts, &rebuilds}) {
    counter->store(0);
  }
}

bool Health::usable() const noexcept {
  if (!failing_.load(std::memory_order_relaxed)) return true;
  const std::lock_guard lock(mutex_);
  return Clock::now() >= until_;
}

void Health::failed(const std::exception& error) noexcept {
  ++counters_.errors;
  const std::lock_guard lock(mutex_);
  failing_ = true;
  pause_ = std::clamp<Clock::duration>(2 * pause_, kFirstPause, kLongestPause);
  until_ = Clock::now() + pause_;
  try {
    text_ = error.what();
  } catch (const std::bad_alloc&) {
    text_.clear();
  }
}

void Health::worked() noexcept {
  if (!failing_.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(mutex_);
  failing_ = false;
  pause_ = {};
  text_.clear();
}

std::string Health::text() const {
  const std::lock_guard lock(mutex_);
  return failing_ ? text_ : std::string();
}

std::optional<ErrorCode> note_failure(DiskContext& context, Health& health, const Index* index,
                                      const std::exception& error) noexcept {
  health.failed(error);
  const auto* const known = dynamic_cast<const Error*>(&error);
  if (known == nullptr) return std::nullopt;
  if (known->code() == ErrorCode::kCorruption && index != nullptr) {
    try {
      replace_index(context, *index);
    } catch (const std::exception& again) {
      health.failed(again);
    }
  }
  return known->code();
}

std::uint64_t log_bytes(std::uint64_t limit) noexcept {
  return std::clamp<std::uint64_t>(limit / 48, std::uint64_t{224} << 10, std::uint64_t{32} << 20);
}

std::size_t rows_per_commit(std::uint64_t limit, std::uint64_t index_length) noexcept {
  constexpr std::size_t kMost = 16'384;
  constexpr std::uint64_t kRowBytes = 512;  // more than a new row takes on average
  // A page is in the log once, however many of its rows a commit changes.
  const std::uint64_t all = index_length + index_length / 16 + Index::growth(0);
  std::size_t rows = kMost;
  while (rows > 1 && std::min(Index::growth(rows), all + rows * kRowBytes) > log_bytes(limit)) {
    rows -= (rows + 7) / 8;
  }
  return rows;
}

DiskContext::DiskContext(const CacheOptions& the_options)
    : options(the_options),
      directory(
          {.path = options.disk, .mode = options.mode, .allow_network = options.allow_network}),
      files(directory),
      mirror(options.index_limit),
      leases(directory) {}

std::unique_ptr<Index> open_index(DiskContext& context, milliseconds patience) {
  const bool read_only = context.directory.read_only();
  // SQLite goes by paths: what is there now may be the index of other segments.
  if (context.directory.moved()) {
    throw Error(ErrorCode::kUnavailable, "[ActivationCache] " + context.directory.path() +
                                             " was removed or replaced; expected the directory "
                                             "that was opened");
  }
  try {
    if (context.directory.exists(kIndexFile)) return open_existing(context);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCorruption || read_only) throw;
  }
  if (read_only) {
    throw Error(ErrorCode::kUnavailable,
                "[ActivationCache] " + context.directory.path() +
                    " has no index and cannot be written; expected one that a process that may "
                    "write has made");
  }
  const IndexLock lock(context, patience);
  if (!context.directory.exists(kIndexFile)) {
    remove_log(context.directory);
    make_index(context);
  } else {
    try {
      return open_existing(context);  // made while this process waited
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kCorruption) throw;
      set_aside(context);
    }
  }
  return open_existing(context);
}

void replace_index(DiskContext& context, const Index& damaged) {
  if (context.directory.read_only()) return;
  const IndexLock lock(context, kIndexPatience);
  if (!damaged.moved()) set_aside(context);
}

}  // namespace tensorkey::internal
