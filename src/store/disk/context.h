// What the parts of a disk tier share: its options, its files, its counters, and whether it works.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>

#include <tensorkey/cache.h>
#include <tensorkey/error.h>

#include "base/fork.h"
#include "store/disk/directory.h"
#include "store/disk/index.h"
#include "store/disk/leases.h"
#include "store/disk/mirror.h"
#include "store/disk/segment.h"
#include "store/disk/usage.h"

namespace tensorkey::internal {

// Of one process since it opened the directory.
struct DiskCounters {
  using Counter = std::atomic<std::uint64_t>;
  Counter hits{0}, misses{0}, insertions{0}, inserted_bytes{0}, written_bytes{0}, rejections{0};
  Counter dropped{0}, evictions{0}, corrupt{0}, stale{0}, expired{0}, errors{0};
  Counter lease_waits{0}, lease_timeouts{0}, rebuilds{0};

  void add_to(DiskStats& stats) const;
  void reset() noexcept;
};

// Whether the index can be used. After a failure it is left alone for a while, twice as long each
// time, so that a store that is gone or locked costs its callers nothing. Thread-safe.
class Health {
 public:
  explicit Health(DiskCounters& counters) : counters_(counters) {}

  [[nodiscard]] bool usable() const noexcept;
  void failed(const std::exception& error) noexcept;
  void worked() noexcept;
  [[nodiscard]] std::string text() const;  // why not; empty if it is usable

 private:
  using Clock = std::chrono::steady_clock;
  DiskCounters& counters_;
  mutable ForkMutex mutex_;
  Clock::time_point until_{};
  Clock::duration pause_{};
  std::string text_;
  std::atomic<bool> failing_{false};
};

struct DiskContext {
  explicit DiskContext(const CacheOptions& the_options);

  const CacheOptions options;
  DiskCounters counters;
  Directory directory;
  SegmentFiles files;
  Mirror mirror;
  Leases leases;
  Usage usage;

  // What a device refuses to read while an index is made may be given later: it is left out only
  // after so long. Until then there is no index, and nothing is lost.
  std::chrono::milliseconds refusal_patience{30'000};
  std::atomic<std::chrono::steady_clock::time_point> refused_since{};  // the epoch: it does not
};

// Opens the index of a directory. Where there is none it is made; one that is damaged is set aside
// as index.db.damaged, if there is room for two, and made anew from the records of the segments.
// Throws as Index does, kUnavailable when another process is at it for longer than `patience` or
// the path leads to another directory now, and kIo for a segment that the device refuses to read.
// Usually that is a lookup, which computing can replace.
inline constexpr std::chrono::milliseconds kIndexPatience(20);
[[nodiscard]] std::unique_ptr<Index> open_index(
    DiskContext& context, std::chrono::milliseconds patience = kIndexPatience);

// After kCorruption: sets aside the file that this connection has, unless somebody did so already,
// and makes a new one. Throws as open_index.
void replace_index(DiskContext& context, const Index& damaged);

// Counts the failure of an index, and has one that is damaged replaced. `index`: the connection, or
// null. Returns the code of an Error.
std::optional<ErrorCode> note_failure(DiskContext& context, Health& health, const Index* index,
                                      const std::exception& error) noexcept;

// The size at which SQLite's log is cut back. Twice as much of the limit is the log's, whatever it
// takes now, so that no commit has to look for room: what one may write is as much again.
[[nodiscard]] std::uint64_t log_bytes(std::uint64_t limit) noexcept;
// Rows of an index of this length that one transaction may change.
[[nodiscard]] std::size_t rows_per_commit(std::uint64_t limit, std::uint64_t index_length) noexcept;

}  // namespace tensorkey::internal
