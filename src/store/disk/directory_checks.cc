#include "store/disk/directory_checks.h"

#include <tensorkey/error.h>

#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <random>

#include "base/utf8.h"

namespace tensorkey::internal {
namespace {

constexpr std::string_view kNewLockFile = "tensorkey.lock.new";
constexpr std::string_view kLockWords = "tensorkey directory, format ";
constexpr std::string_view kLockText = "tensorkey directory, format 1\n";
constexpr mode_t kGroupBits = S_IRWXG;

struct FileSystem {
  std::uint32_t magic;
  std::string_view name;
};
constexpr std::array kRefused{
    FileSystem{0x00006969, "NFS"},    FileSystem{0x0000517b, "SMB"},
    FileSystem{0xff534d42, "CIFS"},   FileSystem{0xfe534d42, "SMB2"},
    FileSystem{0x0bd00bd0, "Lustre"}, FileSystem{0x01021997, "9p"},
    FileSystem{0x65735546, "FUSE"},   FileSystem{0x00c36400, "Ceph"},
    FileSystem{0x5346414f, "AFS"},    FileSystem{0x73757245, "Coda"},
    FileSystem{0x47504653, "GPFS"},   FileSystem{0x19830326, "BeeGFS"},
};

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error(ErrorCode::kUnavailable, "[ActivationCache] " + path + " " + why);
}

bool forbidden(int number) { return number == EACCES || number == EPERM || number == EROFS; }

std::string octal(mode_t mode) {
  std::array<char, 16> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), mode, 8).ptr;
  return "0" + std::string(digits.data(), end);
}

bool is_database(std::string_view name, std::string_view database) {
  if (!name.starts_with(database)) return false;
  name.remove_prefix(database.size());
  return name.empty() || name == "-wal" || name == "-shm" || name == "-journal";
}

bool is_ours(std::string_view name) {
  return name == kLockFile || name.starts_with(kNewLockFile) || is_database(name, kIndexFile) ||
         name.starts_with(kNewIndexFile) || is_database(name, kDamagedIndexFile) ||
         segment_of(name) != 0;
}

// Appends what it made, parents first. False with errno set if it fails.
bool make(const std::string& path, std::vector<std::string>& made) {
  const auto try_it = [&] {
    if (::mkdir(path.c_str(), S_IRWXU) != 0) return errno == EEXIST;
    made.push_back(path);
    return true;
  };
  if (try_it()) return true;
  if (errno != ENOENT) return false;
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent != path && make(parent, made) && try_it();
}

Descriptor open_directory(const std::string& path) {
  return Descriptor(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

// Whatever the umask is.
void give_permissions(const std::string& path, int directory, mode_t mode) {
  if (mode == 0) mode = S_IRWXU;
  if ((mode & kGroupBits) != 0) mode |= S_ISGID;
  if (::fchmod(directory, mode) == 0) return;
  refuse(path, "cannot be given permissions " + octal(mode) + ": " + message_of(errno) +
                   "; expected a file system that has them");
}

bool has_group(gid_t group) {
  if (::getegid() == group) return true;
  const int count = ::getgroups(0, nullptr);
  if (count <= 0) return false;
  std::vector<gid_t> groups(static_cast<std::size_t>(count));
  const int got = ::getgroups(count, groups.data());
  return got > 0 && std::find(groups.begin(), groups.begin() + got, group) != groups.begin() + got;
}

void check_owner(const std::string& path, const struct stat& about, mode_t mode) {
  if (about.st_uid == ::geteuid()) return;
  const std::string other = "belongs to another user (" + std::to_string(about.st_uid) + ")";
  if ((mode & kGroupBits) == 0) {
    refuse(path, other +
                     ", who would decide what hits answer; expected a directory of one's own, "
                     "or mode=0o770 for one that a team shares");
  }
  if (!has_group(about.st_gid)) {
    refuse(path, other + " and to a group (" + std::to_string(about.st_gid) +
                     ") that this process is not in; expected to be in it, or a directory of "
                     "one's own");
  }
}

void check_permissions(const std::string& path, const struct stat& about, mode_t mode) {
  check_owner(path, about, mode);
  const mode_t permissions = about.st_mode & 07777;
  const std::string has = "has permissions " + octal(permissions);
  if ((permissions & S_IWOTH) != 0) {
    refuse(path, has +
                     ": everybody could decide what hits answer; expected that others may not "
                     "write (chmod o-w)");
  }
  if ((permissions & S_IWGRP) == 0) return;
  if ((mode & S_IWGRP) == 0) {
    refuse(path, has +
                     ": its group could decide what hits answer; expected that it may not write "
                     "(chmod g-w), or mode=0o770 for a directory that a team shares");
  }
  // SQLite makes files by itself, so their group cannot be set afterwards.
  if ((permissions & S_ISGID) == 0 && about.st_gid != ::getegid()) {
    refuse(path, has +
                     ": new files would not belong to its group; expected the set-group-id bit "
                     "(chmod g+s)");
  }
}

void check_file_system(const std::string& path, int directory) {
  struct statfs about {};
  if (::fstatfs(directory, &about) != 0) {
    refuse(path, "has an unknown file system: " + message_of(errno) + "; expected a local one");
  }
  // The type is a signed long, and some magic numbers have their upper bit set.
  const auto magic = static_cast<std::uint32_t>(about.f_type);
  const auto* const found = std::ranges::find(kRefused, magic, &FileSystem::magic);
  if (found == kRefused.end()) return;
  refuse(path, "is on " + std::string(found->name) +
                   ", where the index cannot be shared safely; expected node-local disk, or a "
                   "pack that is read from here (allow_network takes the risk)");
}

struct Contents {
  bool empty = true;  // but for what a process leaves that dies while it makes the lock file
  std::vector<std::string> leftovers;
};

Contents check_names(const std::string& path, int directory) {
  Contents contents;
  std::string foreign;
  const bool read = for_each_name(directory, [&](std::string_view name, bool regular) {
    if (!regular || !is_ours(name)) {
      foreign = name;
    } else if (name.starts_with(kNewLockFile)) {
      contents.leftovers.emplace_back(name);
    } else {
      contents.empty = false;
    }
  });
  if (!read) refuse(path, "cannot be read: " + message_of(errno) + "; expected to be allowed to");
  if (!foreign.empty()) {
    if (!is_utf8(foreign)) foreign = "a file whose name is no UTF-8";
    refuse(path, "holds " + foreign +
                     ", which is no file of a cache; expected a directory that is new or empty");
  }
  return contents;
}

bool write_all(int file, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(file, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

// It gets its name when it is whole, and never takes the name from another: locks are in that one.
void make_lock_file(const Directory& directory, int at) {
  std::random_device random;
  const std::string name =
      std::string(kNewLockFile) + '.' + std::to_string(random()) + std::to_string(random());
  const auto fail = [&] {
    const int number = errno;
    directory.remove(name);
    refuse(directory.path(), "has no " + std::string(kLockFile) + ", and none can be made: " +
                                 message_of(number) + "; expected a directory that can be written");
  };
  const Descriptor file = directory.open(name, O_WRONLY | O_CREAT | O_EXCL);
  // Synced once: an empty one after a power failure would make the directory useless.
  if (!file || !write_all(file.get(), kLockText) || ::fsync(file.get()) != 0) fail();
  if (::linkat(at, name.c_str(), at, std::string(kLockFile).c_str(), 0) != 0 &&
      !directory.exists(kLockFile)) {
    fail();
  }
  directory.remove(name);
}

void check_lock_text(const std::string& path, int file) {
  std::array<char, 64> text{};
  ssize_t size = -1;
  do {
    size = ::pread(file, text.data(), text.size(), 0);
  } while (size < 0 && errno == EINTR);
  const std::string where = "holds a " + std::string(kLockFile) + " that ";
  if (size < 0) {
    refuse(path, where + "cannot be read: " + message_of(errno) + "; expected its text");
  }
  const std::string_view begin(text.data(), static_cast<std::size_t>(size));
  if (begin.starts_with(kLockText)) return;
  if (begin.starts_with(kLockWords)) {
    const char* const first = begin.data() + kLockWords.size();
    const char* const last = begin.data() + begin.size();
    std::uint64_t format = 0;
    const auto [end, error] = std::from_chars(first, last, format);
    if (end != last && *end == '\n' && (error == std::errc::result_out_of_range || format > 1)) {
      refuse(path, "was written by a newer version (format " + std::string(first, end) +
                       "); expected format 1: update tensorkey, or take another directory");
    }
  }
  refuse(path, where + "has another text; expected \"" +
                   std::string(kLockText.substr(0, kLockText.size() - 1)) + "\"");
}

}  // namespace

std::string absolute(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos) {
    throw Error(ErrorCode::kInvalidArgument,
                "[ActivationCache] the path of the directory is empty or has a zero byte; expected "
                "a path");
  }
  std::filesystem::path result;
  if (path.front() != '/') {
    std::error_code error;
    result = std::filesystem::current_path(error);
    if (error) refuse(path, "has no absolute path: " + error.message() + "; expected one");
  }
  for (const std::filesystem::path& part : std::filesystem::path(path)) {
    if (!part.empty() && part != ".") result /= part;
  }
  return result.string();
}

void check_mode(mode_t mode) {
  if (mode == 0 || ((mode & ~mode_t{02770}) == 0 && (mode & S_IRWXU) == S_IRWXU)) return;
  throw Error(ErrorCode::kInvalidArgument,
              "[ActivationCache] mode is " + octal(mode) +
                  "; expected 0700 to 0770: all for the owner, nothing for others");
}

Descriptor open_or_make(const std::string& path, mode_t mode, std::vector<std::string>& made) {
  Descriptor directory = open_directory(path);
  if (directory) return directory;
  if (errno == ENOENT) {
    if (!make(path, made)) {
      refuse(path, "cannot be made: " + message_of(errno) +
                       "; expected a directory, or a place where one can be made");
    }
    directory = open_directory(path);
    if (directory) {
      if (!made.empty() && made.back() == path) give_permissions(path, directory.get(), mode);
      return directory;
    }
  }
  const int number = errno;
  struct stat about {};
  if (::lstat(path.c_str(), &about) == 0 && S_ISLNK(about.st_mode)) {
    refuse(path, "is a symbolic link; expected the directory that it leads to");
  }
  if (number == ENOTDIR && ::access(path.c_str(), F_OK) == 0) {
    refuse(path, "is no directory; expected one");
  }
  refuse(path, "cannot be opened: " + message_of(number) + "; expected a directory of this user's");
}

void check_directory(const std::string& path, int at, const DirectoryOptions& options) {
  struct stat about {};
  if (::fstat(at, &about) != 0) {
    refuse(path, "cannot be looked at: " + message_of(errno) + "; expected a local directory");
  }
  if (!options.allow_network) check_file_system(path, at);
  check_permissions(path, about, options.mode);
}

bool claim(const Directory& directory, int at) {
  const Contents contents = check_names(directory.path(), at);
  const std::string lock_file(kLockFile);
  Descriptor lock = directory.open(kLockFile, O_RDWR);
  if (!lock && errno == ENOENT) {
    if (!contents.empty) {
      refuse(directory.path(), "holds files of a cache, but no " + lock_file +
                                   "; expected a whole directory, or a new or empty one");
    }
    make_lock_file(directory, at);
    lock = directory.open(kLockFile, O_RDWR);
  }
  bool read_only = false;
  if (!lock && forbidden(errno)) {
    read_only = true;
    lock = directory.open(kLockFile, O_RDONLY);
  }
  if (!lock) {
    refuse(directory.path(), "holds a " + lock_file + " that cannot be opened: " +
                                 message_of(errno) + "; expected a file that can be read");
  }
  check_lock_text(directory.path(), lock.get());
  if (::faccessat(at, ".", W_OK | X_OK, AT_EACCESS) != 0) read_only = true;
  if (!read_only) {
    for (const std::string& name : contents.leftovers) directory.remove(name);
  }
  return read_only;
}

}  // namespace tensorkey::internal
