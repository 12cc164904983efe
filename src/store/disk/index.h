// The index of a directory: one SQLite database that says what exists. It holds no values. One
// object is one connection, for one thread at a time; the tier has one that reads and one that
// writes. Nothing here may live through a fork(): the owner destroys it before and opens another
// afterwards, on both sides.
//
//   Index index({.path = directory.path_of(kIndexFile)});
//   {
//     Index::Write write(index);                  // BEGIN IMMEDIATE
//     if (index.add(entry)) ...                   // false: the key is there already
//     write.commit();                             // else everything is rolled back
//   }
//
// Errors: kUnavailable for a lock that others hold longer than `busy`, kExhausted for a full disk,
// kCorruption for a file that SQLite finds damaged or that is no index, kUnsupported for one of a
// newer version, kIo for all else. docs/disk_layout.md has every table and column. Schema version 1
// is PRAGMA user_version 1, and PRAGMA application_id is kApplication.
//
// Frequencies age by halving once in a period, a number in the settings. A hit in period p adds 2^p
// to the hits of its entry, so nothing else is written when a period ends; hits / 2^period is the
// frequency now.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <tensorkey/key.h>

#include "base/descriptor.h"
#include "store/disk/mirror.h"

namespace tensorkey::internal {

using SegmentMark =
    std::array<std::byte, 16>;  // random, in the head of the segment and its records

struct IndexEntry {
  std::int64_t id = 0;  // never used again; 0 when it is added
  Key key;
  std::uint64_t scope = 0;
  Place place;
  double cost = 0;        // seconds
  double hits = 0;        // see above
  std::int64_t used = 0;  // Unix time of the last use, seconds
};

struct SegmentRow {
  std::uint32_t id = 0;
  SegmentMark mark{};
  std::uint64_t size = 0;  // bytes of the file, preallocated while it is open
  std::uint64_t end = 0;   // behind the last committed record
  bool sealed = false;
  std::uint64_t entries = 0;  // rows that are in it
  std::uint64_t bytes = 0;    // of their records
  double worth = 0;           // sum of hits * cost over them
  std::int64_t first_id = 0;  // all its rows have ids from first_id to last_id
  std::int64_t last_id = 0;
};

struct IndexSettings {
  std::uint64_t limit = 0;  // bytes of the directory
  std::int64_t period = 0;
  double accesses = 0;  // since the period began
};

// Hits of one entry that are to be added to its row.
struct HitCount {
  Key key;
  double hits;  // in units of the present period: 2^period is multiplied by add_hits
};

// What hits were worth to the entries of a segment together, in seconds, likewise.
struct SegmentWorth {
  std::uint32_t segment;
  double worth;
};

class Index {
 public:
  static constexpr std::int32_t kApplication = 0x544b4458;  // "TKDX"
  static constexpr int kVersion = 1;

  struct Options {
    std::string path;
    bool read_only = false;  // also where no file can be made beside it (immutable, if it must be)
    std::chrono::milliseconds busy{200};
    std::uint64_t wal_bytes = std::uint64_t{4} << 20;  // checkpointed, and cut back, at this size
  };

  // Opens an index that is there.
  explicit Index(const Options& options);
  ~Index();
  Index(const Index&) = delete;
  Index& operator=(const Index&) = delete;

  // Makes a complete, empty index at a path where nothing is, in WAL mode, auto_vacuum incremental,
  // with file permissions `mode`; first_segment: the least number that a segment may get.
  static void create(const std::string& path, unsigned mode, std::uint64_t limit,
                     std::uint32_t first_segment = 1);

  // Whether the file that this connection has open is still what `path` leads to.
  [[nodiscard]] bool moved() const noexcept;

  // Names the file that this connection has open also when the connection is gone, so that no other
  // gets its number. Nothing can be read through it, and no lock hangs on it.
  [[nodiscard]] Descriptor pin() const noexcept;
  // Whether it is this file that was pinned.
  [[nodiscard]] bool is(const Descriptor& pinned) const noexcept;

  // --- Reading. Each is a read transaction of its own, ended before it returns.
  [[nodiscard]] std::optional<IndexEntry> find(const Key& key);
  // Calls take() for entries with id > after in ascending order, at most `most` of them; returns
  // the last id seen, or `after`. Only key, id and place are set.
  std::int64_t scan(std::int64_t after, std::size_t most,
                    const std::function<void(const IndexEntry&)>& take);
  // Every entry of a segment, complete.
  [[nodiscard]] std::vector<IndexEntry> entries_of(const SegmentRow& segment);
  [[nodiscard]] std::vector<SegmentRow> segments();
  [[nodiscard]] std::uint64_t entries();  // from the segments' accounts
  [[nodiscard]] IndexSettings settings();
  [[nodiscard]] std::int64_t data_version();    // moves when another connection has committed
  [[nodiscard]] std::int64_t last_id();         // the highest id that was ever given
  [[nodiscard]] std::uint64_t segment_bytes();  // of all segments' files, from their rows

  // --- Size, also within a Write: of the disk, in bytes.
  // What the index and SQLite's files beside it take, as large as they will be once the log has
  // been moved; and the part of it that the index is still going to grow then.
  [[nodiscard]] std::uint64_t file_bytes();
  [[nodiscard]] std::uint64_t unwritten_bytes();
  [[nodiscard]] std::uint64_t length();  // of the index, whether it is in the log or not
  [[nodiscard]] std::uint64_t log_bytes() const;

  // --- Writing. REQUIRES: a Write of this index is open.
  class Write {
   public:
    explicit Write(Index& index);  // BEGIN IMMEDIATE
    ~Write();                      // rolls back unless it was committed
    Write(Write&& other) noexcept
        : index_(other.index_), open_(std::exchange(other.open_, false)) {}
    Write& operator=(Write&&) = delete;
    void commit();

   private:
    Index& index_;
    bool open_ = true;
  };

  // A new segment, unsealed, with end = `end`. Returns its number, never used before; or it gets
  // the number `id`, which no segment has.
  std::uint32_t add_segment(const SegmentMark& mark, std::uint64_t size, std::uint64_t end,
                            std::uint32_t id = 0);
  void set_size(std::uint32_t segment, std::uint64_t size);
  void set_end(std::uint32_t segment, std::uint64_t end);
  void seal(std::uint32_t segment, std::uint64_t size);
  // Removes a segment with all its entries; returns how many entries went.
  std::uint64_t remove_segment(const SegmentRow& segment);
  // Removes at most so many of its entries; returns how many.
  std::size_t remove_entries(const SegmentRow& segment, std::size_t most);

  // False if the key is there already. Keeps the accounts of the segment, as all below do. The hits
  // of the entry are in units of the present period.
  bool add(const IndexEntry& entry);
  // Removes the entry of a key; only at this place, if one is given. Returns where it was.
  std::optional<Place> remove(const Key& key, const std::optional<Place>& place = std::nullopt);
  // Removes the entries of a scope with after < id <= last; returns them.
  std::vector<IndexEntry> remove_scope(std::uint64_t scope, std::int64_t after, std::int64_t last);
  // Adds hits and the time of last use to the rows that are there, worth to their segments (hits
  // may be a sample, worth is not), and `accesses` to the settings; begins a new period when those
  // exceed `period_length`.
  void add_hits(std::span<const HitCount> hits, std::span<const SegmentWorth> worth,
                std::int64_t now, double accesses, double period_length);
  void set_limit(std::uint64_t limit);

  // --- Upkeep, outside of a Write.
  // Gives free pages back to the file system, at most `pages`; true if there may be more.
  bool vacuum(int pages);
  // Moves the log into the database; false if a reader is in the way.
  bool checkpoint();
  // Bytes by which one commit that adds so many entries, or removes a segment with so many, may
  // make file_bytes() grow, at most. An entry that is moved, removed or hit alone counts twice.
  [[nodiscard]] static std::uint64_t growth(std::size_t entries) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tensorkey::internal
