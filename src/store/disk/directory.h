// The directory of a disk tier: who may use it, what may be in it, how much of the disk it takes.
//
//   Directory directory({.path = "activations"});    // made if it is not there; checked
//   Descriptor file = directory.open("index.db", O_RDWR);
//
// In it are: tensorkey.lock (what the directory is, and the locks of leases), index.db with
// SQLite's own index.db-wal and index.db-shm, segments NNNNNNNNNNNN.seg, index.db.new* (an index
// that is being made) and index.db.damaged. Anything else is foreign, and such a directory is
// refused untouched. All calls are thread-safe; the constructor throws kUnavailable with the reason
// and the remedy (kInvalidArgument for a path or mode that none can have).
//
// Whoever can write here decides what hits answer. So a directory is accepted if it is this user's
// and lets nobody write but him; with a mode that has group bits also if it is another's, and its
// group one of ours. A directory that is there keeps its permissions: they may let fewer people
// write than `mode` does, never more. Who may only read its names does not count, since the files
// are made with file_mode().
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/descriptor.h"

namespace tensorkey::internal {

struct DirectoryOptions {
  std::string path;
  // Of a directory that is made, a subset of 02770: 0 is 0700 with files 0600; a team has 0770 with
  // files 0660, or 0750 with 0640. With group bits the set-group-id bit is set too.
  unsigned mode = 0;
  bool allow_network = false;  // also file systems where SQLite's shared memory is known to fail
};

inline constexpr std::string_view kLockFile = "tensorkey.lock";
inline constexpr std::string_view kIndexFile = "index.db";
inline constexpr std::string_view kNewIndexFile = "index.db.new";
inline constexpr std::string_view kDamagedIndexFile = "index.db.damaged";

// "000000000012.seg", and back; 0 for any other name, and for numbers of more than 32 bits.
[[nodiscard]] std::string segment_name(std::uint64_t id);
[[nodiscard]] std::uint64_t segment_of(std::string_view name) noexcept;

class Directory {
 public:
  // Creates the directory (parents with 0700) and tensorkey.lock where they are missing and can be
  // made; what it made goes again if it throws. A directory that can be read but not written is
  // opened read-only if it has a tensorkey.lock.
  explicit Directory(const DirectoryOptions& options);
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  [[nodiscard]] const std::string& path() const noexcept { return path_; }  // absolute
  [[nodiscard]] std::string path_of(std::string_view name) const;
  [[nodiscard]] bool read_only() const noexcept { return read_only_; }
  [[nodiscard]] unsigned file_mode() const noexcept { return file_mode_; }

  // Opens a regular file of the directory, never following a link, closed on exec; made with
  // file_mode() whatever the umask if flags has O_CREAT. No descriptor, with errno set, if it fails
  // (EINVAL for what is no regular file). REQUIRES of every name here: it has no slash.
  [[nodiscard]] Descriptor open(std::string_view name, int flags) const noexcept;
  bool remove(std::string_view name) const noexcept;  // false with errno set if it fails
  bool rename(std::string_view from, std::string_view to) const noexcept;
  [[nodiscard]] bool exists(std::string_view name) const noexcept;

  // Whether the path leads to another directory now, or nowhere.
  [[nodiscard]] bool moved() const noexcept;

  // Bytes of disk that all files in it take, foreign ones too (st_blocks); 0 once it was removed.
  // This and segments() throw kIo if it cannot be read.
  [[nodiscard]] std::uint64_t allocated() const;
  // The same of one file, 0 if it is not there.
  [[nodiscard]] std::uint64_t allocated(std::string_view name) const noexcept;
  // The segments that have a file, ascending.
  [[nodiscard]] std::vector<std::uint64_t> segments() const;

 private:
  std::string path_;
  Descriptor directory_;
  bool read_only_ = false;
  unsigned file_mode_ = 0600;
};

}  // namespace tensorkey::internal
