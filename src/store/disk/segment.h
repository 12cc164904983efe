// Segments: files of records, appended by one writer, read by everybody with pread and never
// mapped.
//
//   segment head, 64 bytes | record | record | ... | zeros up to the preallocated size
//   record = record head, 96 bytes | an entry (docs/entry_format.md); its length is a multiple of
//   16
//
// docs/disk_layout.md has every byte. A record says where it lies and in which segment, so one that
// was copied, moved or belongs to another file is noticed; its head is under a checksum of its own
// and the entry under its seal.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include <tensorkey/entry_format.h>
#include <tensorkey/error.h>
#include <tensorkey/key.h>

#include "base/descriptor.h"
#include "base/fork.h"
#include "store/disk/directory.h"
#include "store/disk/index.h"

namespace tensorkey::internal {

inline constexpr std::size_t kSegmentHead = 64;
inline constexpr std::size_t kRecordHead = 96;

// What stands in the head of a record.
struct RecordHead {
  Key key;
  std::uint64_t scope = 0;
  std::int64_t stored = 0;   // Unix time, seconds
  std::uint64_t length = 0;  // of the entry
  std::uint64_t offset = 0;  // of this head in its segment
  SegmentMark mark{};
};

// The last 8 bytes of every head: the low half of XXH3-128 of the bytes before them.
[[nodiscard]] std::uint64_t head_checksum(std::span<const std::byte> before) noexcept;

void write_segment_head(std::uint32_t id, const SegmentMark& mark,
                        std::span<std::byte, kSegmentHead> out) noexcept;
[[nodiscard]] std::optional<SegmentMark> read_segment_head(
    std::span<const std::byte, kSegmentHead> bytes, std::uint32_t id) noexcept;
void write_record_head(const RecordHead& head, std::span<std::byte, kRecordHead> out) noexcept;
// Nothing unless magic, version, checksum and the padding are right.
[[nodiscard]] std::optional<RecordHead> read_record_head(
    std::span<const std::byte, kRecordHead> bytes) noexcept;

// The one who appends to a segment; it holds an open-file-description lock on the file, on a
// descriptor of its own. Errors are kExhausted for a full disk, kIo for the rest. One thread at
// a time. In the child of a fork its owner destroys it, which closes the descriptor: so the lock
// is the parent's alone.
class SegmentWriter {
 public:
  // Makes the file: exclusive, locked, preallocated to `size`, its head written. Leaves no file
  // behind when it throws. A file of this number without a living writer is replaced: a process
  // that died before its row was committed left it. REQUIRES: the index's write transaction.
  static SegmentWriter create(const Directory& directory, std::uint32_t id, const SegmentMark& mark,
                              std::uint64_t size);
  // Takes over an unsealed segment from `row.end` on. Nothing if it has a living writer, is gone,
  // is shorter than row.end, or has another mark.
  static std::optional<SegmentWriter> adopt(const Directory& directory, const SegmentRow& row);
  SegmentWriter(SegmentWriter&&) noexcept = default;
  SegmentWriter& operator=(SegmentWriter&&) noexcept = default;

  [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
  [[nodiscard]] const SegmentMark& mark() const noexcept { return mark_; }
  [[nodiscard]] std::uint64_t end() const noexcept { return end_; }
  [[nodiscard]] std::uint64_t left() const noexcept { return size_ - end_; }

  // Writes at end(), and moves it. REQUIRES: bytes.size() <= left().
  void append(std::span<const std::byte> bytes);
  // Takes back what was appended since end() was `end`.
  void rewind(std::uint64_t end) noexcept { end_ = end; }
  // Gives the preallocated tail back; returns the size of the file. Nothing is appended any more.
  std::uint64_t seal();

 private:
  SegmentWriter() = default;
  Descriptor file_;
  std::uint32_t id_ = 0;
  SegmentMark mark_{};
  std::uint64_t end_ = 0;
  std::uint64_t size_ = 0;
};

// Whether a segment has no living writer, told by trying its lock. REQUIRES: the index's write
// transaction, so that nobody adopts it meanwhile.
[[nodiscard]] bool unlocked(const Directory& directory, std::uint32_t id) noexcept;
// Cuts a segment's file to nothing, then removes it: who holds it open keeps no blocks.
void erase_segment(const Directory& directory, std::uint32_t id) noexcept;

// The segments that this process reads: at most 128 open files, the longest unused is closed first.
// Thread-safe.
class SegmentFiles {
 public:
  static constexpr std::size_t kMostOpen = 128;

  explicit SegmentFiles(const Directory& directory) : directory_(directory) {}
  SegmentFiles(const SegmentFiles&) = delete;
  SegmentFiles& operator=(const SegmentFiles&) = delete;

  // An open segment, which stays open as long as somebody holds it.
  struct File {
    Descriptor descriptor;
    std::uint32_t id = 0;
    SegmentMark mark{};  // as its head says
  };
  using FilePtr = std::shared_ptr<const File>;

  // Null, with errno 0, if it is gone or its head is not that of this segment; with errno set if it
  // cannot be opened or read.
  [[nodiscard]] FilePtr open(std::uint32_t id);
  void close(std::uint32_t id);
  // Closes all for which alive(id) is false.
  void retain(const std::function<bool(std::uint32_t)>& alive);

 private:
  const Directory& directory_;
  ForkMutex mutex_;
  std::list<FilePtr> used_;  // the latest first
  std::unordered_map<std::uint32_t, std::list<FilePtr>::iterator> files_;
};

// pread of all of `out`; false at the end of the file or for an error (errno is 0 at the end).
bool read_at(int descriptor, std::uint64_t offset, std::span<std::byte> out) noexcept;
// pwrite of all of `bytes`; false with errno set.
bool write_at(int descriptor, std::uint64_t offset, std::span<const std::byte> bytes) noexcept;
// The Error of a write that failed with this errno: kExhausted for a full disk, kIo for the rest.
[[nodiscard]] Error write_error(const std::string& message, int number);

// The head of a record whose whole bytes are in `record`, if it is the record of this key at this
// place of this segment. The entry behind it is not looked at.
[[nodiscard]] std::optional<RecordHead> check_record(std::span<const std::byte> record,
                                                     const Key& key, const Place& place,
                                                     const SegmentMark& mark) noexcept;

// Makes the magic of a record's head invalid, so that nobody finds what was removed. True if there
// is no record at this place now, also where there was none; the file is never made longer.
bool void_record(const Directory& directory, const Place& place) noexcept;

// Calls take(head, cost) for every whole record in a segment's file, in the order of the file, also
// behind damage, and however the file ends: for making an index anew. Entries are checked as far as
// can be without a secret. Returns 0, or the errno of a part that the device refused to read, whose
// records were left out.
[[nodiscard]] int scan_records(const SegmentFiles::File& file,
                               const std::function<void(const RecordHead&, double)>& take);

}  // namespace tensorkey::internal
