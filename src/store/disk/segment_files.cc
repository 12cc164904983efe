#include <fcntl.h>

#include <cerrno>
#include <limits>
#include <mutex>
#include <system_error>
#include <utility>

#include "store/disk/segment.h"

namespace tensorkey::internal {

namespace {

constexpr std::uint64_t kMostOffset = std::numeric_limits<off_t>::max();

SegmentFiles::FilePtr open_segment(const Directory& directory, std::uint32_t id) {
  auto file = std::make_shared<SegmentFiles::File>();
  file->descriptor = directory.open(segment_name(id), O_RDONLY);
  if (!file->descriptor) {
    if (errno == ENOENT || errno == ELOOP || errno == EINVAL) errno = 0;  // no regular file
    return nullptr;
  }
  std::array<std::byte, kSegmentHead> head;
  if (!read_at(file->descriptor.get(), 0, head)) return nullptr;
  const std::optional<SegmentMark> mark = read_segment_head(head, id);
  if (!mark) {
    errno = 0;
    return nullptr;
  }
  file->id = id;
  file->mark = *mark;
  return file;
}

}  // namespace

// In all of these the last owner of a file may be a local of the function, made before the lock:
// so it is closed after the lock is gone.

SegmentFiles::FilePtr SegmentFiles::open(std::uint32_t id) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = files_.find(id); found != files_.end()) {
      used_.splice(used_.begin(), used_, found->second);
      return used_.front();
    }
  }
  FilePtr file = open_segment(directory_, id);
  if (file == nullptr) return nullptr;
  std::list<FilePtr> added{file};
  std::list<FilePtr> closed;
  const std::lock_guard lock(mutex_);
  const auto [place, is_new] = files_.try_emplace(id, added.begin());
  if (!is_new) {  // another thread was faster
    used_.splice(used_.begin(), used_, place->second);
    return used_.front();
  }
  used_.splice(used_.begin(), added);
  if (used_.size() > kMostOpen) {
    files_.erase(used_.back()->id);
    closed.splice(closed.begin(), used_, std::prev(used_.end()));
  }
  return file;
}

void SegmentFiles::close(std::uint32_t id) {
  std::list<FilePtr> closed;
  const std::lock_guard lock(mutex_);
  const auto found = files_.find(id);
  if (found == files_.end()) return;
  closed.splice(closed.begin(), used_, found->second);
  files_.erase(found);
}

void SegmentFiles::retain(const std::function<bool(std::uint32_t)>& alive) {
  std::list<FilePtr> closed;
  const std::lock_guard lock(mutex_);
  for (auto each = used_.begin(); each != used_.end();) {
    const auto next = std::next(each);
    if (!alive((*each)->id)) {
      files_.erase((*each)->id);
      closed.splice(closed.begin(), used_, each);
    }
    each = next;
  }
}

bool read_at(int descriptor, std::uint64_t offset, std::span<std::byte> out) noexcept {
  if (offset > kMostOffset || out.size() > kMostOffset - offset) {
    errno = 0;
    return false;
  }
  while (!out.empty()) {
    const ssize_t got = ::pread(descriptor, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    if (got == 0) {
      errno = 0;
      return false;
    }
    out = out.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return true;
}

bool write_at(int descriptor, std::uint64_t offset, std::span<const std::byte> bytes) noexcept {
  if (offset > kMostOffset || bytes.size() > kMostOffset - offset) {
    errno = EFBIG;
    return false;
  }
  while (!bytes.empty()) {
    const ssize_t put =
        ::pwrite(descriptor, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    if (put == 0) {
      errno = EIO;
      return false;
    }
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return true;
}

Error write_error(const std::string& message, int number) {
  const bool full = number == ENOSPC || number == EDQUOT || number == EFBIG;
  return {full ? ErrorCode::kExhausted : ErrorCode::kIo,
          message + ": " + std::generic_category().message(number)};
}

}  // namespace tensorkey::internal
