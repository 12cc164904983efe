// Whether a directory may be used as a cache, and making it one: the rules of directory.h. Only for
// directory.cc.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/descriptor.h"
#include "store/disk/directory.h"

namespace tensorkey::internal {

// A last component that is a link stays one: no slash and no dot is left behind it.
[[nodiscard]] std::string absolute(const std::string& path);
void check_mode(mode_t mode);

// Opens a directory, which is made with this mode if it is missing. Appends to `made` what was made
// for it, parents first, also when it throws.
[[nodiscard]] Descriptor open_or_make(const std::string& path, mode_t mode,
                                      std::vector<std::string>& made);
// Throws if its owner, its permissions or its file system are not as the options want them.
void check_directory(const std::string& path, int at, const DirectoryOptions& options);
// Throws for a directory with foreign files or of another format, makes tensorkey.lock in an empty
// one. Returns whether it can only be read.
[[nodiscard]] bool claim(const Directory& directory, int at);

inline std::string message_of(int number) { return std::generic_category().message(number); }

// Calls take(name, whether it is a regular file) for every name; false with errno set if the
// directory cannot be read. Not for what `take` does to errno.
template <typename Take>
bool for_each_name(int directory, const Take& take) {
  // Opened anew: the position of a descriptor is shared with other threads and with children.
  const int own = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (own < 0) return false;
  struct Close {
    void operator()(DIR* stream) const noexcept { ::closedir(stream); }
  };
  const std::unique_ptr<DIR, Close> stream(::fdopendir(own));
  if (stream == nullptr) {
    ::close(own);
    return false;
  }
  for (;;) {
    errno = 0;
    // NOLINTNEXTLINE(concurrency-mt-unsafe): a stream of its own
    const dirent* const each = ::readdir(stream.get());
    if (each == nullptr) return errno == 0;
    const std::string_view name(each->d_name);
    if (name == "." || name == "..") continue;
    bool regular = each->d_type == DT_REG;
    if (each->d_type == DT_UNKNOWN) {
      struct stat about {};
      if (::fstatat(directory, each->d_name, &about, AT_SYMLINK_NOFOLLOW) != 0) continue;
      regular = S_ISREG(about.st_mode);
    }
    take(name, regular);
  }
}

}  // namespace tensorkey::internal
