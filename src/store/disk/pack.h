// A pack: one sealed file with the records of a cache and a sorted index of them, to be read from
// any file system, copied and published. Nobody locks it and nobody writes into it again.
//
//   PackWriter writer("latents.tkpack", 0644);
//   writer.add(key, scope, stored, entry);     // an entry as encode_entry wrote it
//   writer.finish();                           // only now there is a file of this name
//
//   PackReader pack("latents.tkpack");
//   if (pack.read(key, record)) decode_entry(std::span(record).subspan(kRecordHead), ...);
//
//   head, 64 bytes | record | record | ... | 48 bytes of index for each, by key | checksum
//
// Records are those of segments (store/disk/segment.h); docs/disk_layout.md has every byte. Of
// a pack only the index is held in memory. Writers are for one thread; readers are thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include <tensorkey/key.h>

#include "base/descriptor.h"
#include "store/disk/segment.h"

namespace tensorkey::internal {

inline constexpr std::size_t kPackHead = 64;

// A row of the index as it stands in the file. Offset and length are those of a record.
struct PackRow {
  Key key;
  std::uint64_t offset;
  std::uint64_t length;
};
static_assert(sizeof(PackRow) == 48);

// Errors of all members are kExhausted for a full disk and kIo for the rest; the file of this name,
// if there is one, stays as it was until finish() replaces it at once.
class PackWriter {
 public:
  // Makes a file beside `path`, under a name of its own. `mode` are the permissions of the pack.
  explicit PackWriter(const std::string& path, unsigned mode = 0600);
  ~PackWriter();  // removes the file, unless it was finished
  PackWriter(const PackWriter&) = delete;
  PackWriter& operator=(const PackWriter&) = delete;

  // False for a key that is in it already. Throws kInvalidArgument for bytes that cannot be an
  // entry; whether they are one is not looked at.
  bool add(const Key& key, std::uint64_t scope, std::int64_t stored,
           std::span<const std::byte> entry);
  // Writes the index, waits for the disk, and gives the pack its name. Nothing is called after it.
  void finish();

  [[nodiscard]] std::size_t entries() const noexcept { return index_.size(); }

 private:
  void flush();
  [[noreturn]] void fail(const std::string& what, int number) const;

  const std::string path_;
  const std::string temporary_;
  SegmentMark mark_;
  std::uint64_t written_ = 0;      // bytes that are in the file
  std::vector<std::byte> buffer_;  // those that follow
  std::vector<PackRow> index_;
  std::unordered_set<Key> keys_;
  Descriptor file_;
};

class PackReader {
 public:
  // Checks the head and the whole index. Throws kUnavailable for a file that is not there, cannot
  // be read or is of another version, and kCorruption for what is no whole pack.
  explicit PackReader(const std::string& path);

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] std::size_t entries() const noexcept { return index_.size(); }
  // Ascending by key.
  [[nodiscard]] std::span<const PackRow> rows() const noexcept { return index_; }
  // Its segment is 1.
  [[nodiscard]] std::optional<Place> find(const Key& key) const noexcept;

  // Reads the record at the place that find() gave for this key into `record`, which is as long.
  // False for a file that cannot be read, or if it is not the record of this key; the entry in it
  // is not looked at.
  bool read(const Key& key, const Place& place, std::span<std::byte> record) const noexcept;
  // The same for a key; false also if it is not in the pack.
  bool read(const Key& key, std::vector<std::byte>& record) const;

 private:
  std::string path_;
  Descriptor file_;
  SegmentMark mark_{};
  std::vector<PackRow> index_;
};

}  // namespace tensorkey::internal
