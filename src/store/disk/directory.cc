#include "store/disk/directory.h"

#include <tensorkey/error.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <limits>
#include <type_traits>

#include "store/disk/directory_checks.h"

namespace tensorkey::internal {
namespace {

constexpr std::size_t kSegmentDigits = 12;
constexpr std::string_view kSegmentEnd = ".seg";

// A name as the system wants it, without the heap.
class Name {
 public:
  explicit Name(std::string_view name) noexcept : fits_(name.size() < text_.size()) {
    if (fits_) name.copy(text_.data(), name.size());
    if (!fits_) errno = ENAMETOOLONG;
  }
  explicit operator bool() const noexcept { return fits_; }
  [[nodiscard]] const char* get() const noexcept { return text_.data(); }

 private:
  std::array<char, NAME_MAX + 1> text_{};
  bool fits_;
};

std::uint64_t bytes_of(const struct stat& about) {
  constexpr std::uint64_t kBlock = 512;  // whatever the block size of the file system
  return static_cast<std::uint64_t>(about.st_blocks) * kBlock;
}

[[noreturn]] void cannot_list(const std::string& path, int number) {
  throw Error(ErrorCode::kIo, "[ActivationCache] " + path + " cannot be listed: " +
                                  message_of(number) + "; expected the directory that was opened");
}

}  // namespace

std::string segment_name(std::uint64_t id) {
  std::string digits = std::to_string(id);
  digits.insert(0, kSegmentDigits - std::min(kSegmentDigits, digits.size()), '0');
  return digits.append(kSegmentEnd);
}

std::uint64_t segment_of(std::string_view name) noexcept {
  if (name.size() != kSegmentDigits + kSegmentEnd.size() || !name.ends_with(kSegmentEnd)) return 0;
  std::uint64_t id = 0;
  for (const char digit : name.substr(0, kSegmentDigits)) {
    if (digit < '0' || digit > '9') return 0;
    id = id * 10 + static_cast<std::uint64_t>(digit - '0');
  }
  return id > std::numeric_limits<std::uint32_t>::max() ? 0 : id;
}

Directory::Directory(const DirectoryOptions& options) : path_(absolute(options.path)) {
  static_assert(std::is_same_v<mode_t, unsigned>);
  check_mode(options.mode);
  if (options.mode != 0) file_mode_ = options.mode & 0660;
  std::vector<std::string> made;
  try {
    directory_ = open_or_make(path_, options.mode, made);
    check_directory(path_, directory_.get(), options);
    read_only_ = claim(*this, directory_.get());
  } catch (...) {
    for (auto each = made.rbegin(); each != made.rend(); ++each) ::rmdir(each->c_str());
    throw;
  }
}

std::string Directory::path_of(std::string_view name) const {
  return std::string(path_).append(1, '/').append(name);
}

Descriptor Directory::open(std::string_view name, int flags) const noexcept {
  const Name text(name);
  if (!text) return {};
  // A FIFO must not make anybody wait; to a regular file O_NONBLOCK means nothing.
  const int plain = (flags & ~(O_CREAT | O_EXCL)) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  Descriptor file;
  bool made = false;
  constexpr int kTries = 16;  // for a name that comes and goes
  for (int i = 0; i < kTries && !file; ++i) {
    if ((flags & O_EXCL) == 0) {
      file = Descriptor(::openat(directory_.get(), text.get(), plain));
      if (file) break;
      if (errno == EINTR) continue;
      if (errno != ENOENT || (flags & O_CREAT) == 0) return {};
    }
    file = Descriptor(
        ::openat(directory_.get(), text.get(), plain | O_CREAT | O_EXCL, mode_t{file_mode_}));
    made = static_cast<bool>(file);
    if (!file && errno != EINTR && (errno != EEXIST || (flags & O_EXCL) != 0)) return {};
  }
  struct stat about {};
  if (!file || ::fstat(file.get(), &about) != 0) return {};
  if (!S_ISREG(about.st_mode)) {
    errno = EINVAL;
    return {};
  }
  if (made && (about.st_mode & 07777) != file_mode_ && ::fchmod(file.get(), file_mode_) != 0) {
    const int number = errno;
    ::unlinkat(directory_.get(), text.get(), 0);
    errno = number;
    return {};
  }
  return file;
}

bool Directory::remove(std::string_view name) const noexcept {
  const Name text(name);
  return text && ::unlinkat(directory_.get(), text.get(), 0) == 0;
}

bool Directory::rename(std::string_view from, std::string_view to) const noexcept {
  const Name old_name(from);
  const Name new_name(to);
  return old_name && new_name &&
         ::renameat(directory_.get(), old_name.get(), directory_.get(), new_name.get()) == 0;
}

bool Directory::exists(std::string_view name) const noexcept {
  const Name text(name);
  struct stat about {};
  return text && ::fstatat(directory_.get(), text.get(), &about, AT_SYMLINK_NOFOLLOW) == 0;
}

bool Directory::moved() const noexcept {
  struct stat there {};
  struct stat open {};
  return ::lstat(path_.c_str(), &there) != 0 || ::fstat(directory_.get(), &open) != 0 ||
         there.st_dev != open.st_dev || there.st_ino != open.st_ino;
}

std::uint64_t Directory::allocated() const {
  std::uint64_t sum = 0;
  const bool read = for_each_name(directory_.get(), [&](std::string_view name, bool) {
    sum += allocated(name);  // 0 for what vanished meanwhile
  });
  if (!read) cannot_list(path_, errno);
  return sum;
}

std::uint64_t Directory::allocated(std::string_view name) const noexcept {
  const Name text(name);
  struct stat about {};
  if (!text || ::fstatat(directory_.get(), text.get(), &about, AT_SYMLINK_NOFOLLOW) != 0) return 0;
  return bytes_of(about);
}

std::vector<std::uint64_t> Directory::segments() const {
  std::vector<std::uint64_t> ids;
  const bool read = for_each_name(directory_.get(), [&](std::string_view name, bool regular) {
    const std::uint64_t id = segment_of(name);
    if (regular && id != 0) ids.push_back(id);
  });
  if (!read) cannot_list(path_, errno);
  std::ranges::sort(ids);
  return ids;
}

}  // namespace tensorkey::internal
