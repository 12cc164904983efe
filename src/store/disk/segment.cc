#include "store/disk/segment.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <limits>

namespace tensorkey::internal {

namespace {

constexpr std::uint64_t kMostSize = std::numeric_limits<off_t>::max();

struct flock whole_file() noexcept {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

bool try_lock(int descriptor) noexcept {
  struct flock lock = whole_file();
  return ::fcntl(descriptor, F_OFD_SETLK, &lock) == 0;
}

// The blocks of the whole file, so that a full disk is known before a record is written.
bool preallocate(int descriptor, std::uint64_t size) noexcept {
  int done = 0;
  do {
    done = ::fallocate(descriptor, 0, 0, static_cast<off_t>(size));
  } while (done != 0 && errno == EINTR);
  if (done == 0) return true;
  if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) return false;
  static constexpr std::array<std::byte, 65536> kZeros{};
  for (std::uint64_t at = 0; at < size; at += kZeros.size()) {
    const std::uint64_t bytes = std::min<std::uint64_t>(kZeros.size(), size - at);
    if (!write_at(descriptor, at, std::span(kZeros).first(bytes))) return false;
  }
  return true;
}

// Whether the name in the directory still leads to this open file.
bool is_named(const Directory& directory, const std::string& name,
              const struct stat& file) noexcept {
  const Descriptor named = directory.open(name, O_RDONLY);
  struct stat status {};
  return named && ::fstat(named.get(), &status) == 0 && status.st_dev == file.st_dev &&
         status.st_ino == file.st_ino;
}

}  // namespace

SegmentWriter SegmentWriter::create(const Directory& directory, std::uint32_t id,
                                    const SegmentMark& mark, std::uint64_t size) {
  const std::string name = segment_name(id);
  if (size < kSegmentHead || size > kMostSize) {
    throw Error(ErrorCode::kInvalidArgument, "[SegmentWriter] a segment of " +
                                                 std::to_string(size) + " bytes; expected " +
                                                 std::to_string(kSegmentHead) + " or more");
  }
  SegmentWriter writer;
  writer.file_ = directory.open(name, O_RDWR | O_CREAT | O_EXCL);
  if (!writer.file_ && errno == EEXIST && unlocked(directory, id)) {
    erase_segment(directory, id);
    writer.file_ = directory.open(name, O_RDWR | O_CREAT | O_EXCL);
  }
  if (!writer.file_) {
    const int number = errno;
    throw write_error("[SegmentWriter] " + directory.path_of(name) + " cannot be made", number);
  }
  std::array<std::byte, kSegmentHead> head;
  write_segment_head(id, mark, head);
  if (!try_lock(writer.file_.get()) || !preallocate(writer.file_.get(), size) ||
      !write_at(writer.file_.get(), 0, head)) {
    const int number = errno;
    static_cast<void>(::ftruncate(writer.file_.get(), 0));
    directory.remove(name);
    throw write_error("[SegmentWriter] " + directory.path_of(name) + " cannot have " +
                          std::to_string(size) + " bytes",
                      number);
  }
  writer.id_ = id;
  writer.mark_ = mark;
  writer.end_ = kSegmentHead;
  writer.size_ = size;
  return writer;
}

std::optional<SegmentWriter> SegmentWriter::adopt(const Directory& directory,
                                                  const SegmentRow& row) {
  if (row.sealed || row.end < kSegmentHead || row.end % 16 != 0) return std::nullopt;
  const std::string name = segment_name(row.id);
  SegmentWriter writer;
  writer.file_ = directory.open(name, O_RDWR);
  if (!writer.file_ || !try_lock(writer.file_.get())) return std::nullopt;
  // Only now that it is locked nobody else takes it over or away.
  struct stat status {};
  if (::fstat(writer.file_.get(), &status) != 0 || !is_named(directory, name, status)) {
    return std::nullopt;
  }
  writer.size_ = static_cast<std::uint64_t>(status.st_size);
  std::array<std::byte, kSegmentHead> head;
  if (writer.size_ < row.end || !read_at(writer.file_.get(), 0, head) ||
      read_segment_head(head, row.id) != row.mark) {
    return std::nullopt;
  }
  writer.id_ = row.id;
  writer.mark_ = row.mark;
  writer.end_ = row.end;
  return writer;
}

void SegmentWriter::append(std::span<const std::byte> bytes) {
  assert(bytes.size() <= left());
  if (!write_at(file_.get(), end_, bytes)) {
    const int number = errno;
    throw write_error("[SegmentWriter] " + segment_name(id_) + " cannot be written", number);
  }
  end_ += bytes.size();
}

std::uint64_t SegmentWriter::seal() {
  int done = 0;
  do {
    done = ::ftruncate(file_.get(), static_cast<off_t>(end_));
  } while (done != 0 && errno == EINTR);
  if (done != 0) {
    const int number = errno;
    throw write_error("[SegmentWriter] " + segment_name(id_) + " cannot be sealed", number);
  }
  size_ = end_;
  return size_;
}

bool unlocked(const Directory& directory, std::uint32_t id) noexcept {
  const Descriptor file = directory.open(segment_name(id), O_RDONLY);
  // What is no regular file (ELOOP, EINVAL) nobody writes.
  if (!file) return errno == ENOENT || errno == ELOOP || errno == EINVAL;
  struct flock lock = whole_file();
  return ::fcntl(file.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

void erase_segment(const Directory& directory, std::uint32_t id) noexcept {
  const std::string name = segment_name(id);
  if (const Descriptor file = directory.open(name, O_WRONLY)) {
    static_cast<void>(::ftruncate(file.get(), 0));
  }
  directory.remove(name);
}

}  // namespace tensorkey::internal
