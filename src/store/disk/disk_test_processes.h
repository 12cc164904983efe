// What the tests with several processes share: children, memory that all of them see, entries whose
// values tell which they are, and how much of a test there is.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "store/disk/disk_test_folder.h"

namespace tensorkey::test {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// The long form of a test, with its limits of time: `make stress`. Elsewhere the outcome counts.
inline bool is_stress() {
  static const bool stress = [] {
    const char* const value = std::getenv("TENSORKEY_STRESS");  // NOLINT(concurrency-mt-unsafe)
    return value != nullptr && std::strcmp(value, "1") == 0;
  }();
  return stress;
}

inline int times(int few, int many) { return is_stress() ? many : few; }

// Limits of time are promises where the machine is this test's alone.
inline double within(double seconds) { return is_stress() ? seconds : 1e9; }

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

inline void pause(int microseconds) {
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

// Waits for something that happens sooner or later; the watchdog of the test is the limit.
template <typename Condition>
void await(Condition&& condition) {
  while (!condition()) pause(500);
}

// One object in memory that children share with their parent. Made before the fork.
template <typename T>
class Shared {
 public:
  Shared() {
    void* const memory =
        ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    object_ = new (memory) T();
  }
  ~Shared() { ::munmap(object_, sizeof(T)); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  T* operator->() const noexcept { return object_; }
  T& operator*() const noexcept { return *object_; }

 private:
  T* object_;
};

// A forked process that runs `work` and ends with what it returns, or 1 for an exception; it does
// not outlive its parent, or this object. REQUIRES: work that uses a cache runs where the parent
// has none, unless that is what is tested.
class Child {
 public:
  template <typename Work>
  explicit Child(Work&& work) : id_(::fork()) {
    if (id_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    int result = 1;
    try {
      result = work();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "a child: %s\n", error.what());
    } catch (...) {
      std::fprintf(stderr, "a child: an unknown exception\n");
    }
    ::_exit(result);
  }
  Child(Child&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  Child& operator=(Child&&) = delete;
  ~Child() { kill(); }

  [[nodiscard]] pid_t id() const noexcept { return id_; }

  // Its exit status; 128 and more: it was ended by this signal.
  int wait() {
    if (id_ <= 0) return -1;
    int status = 0;
    while (::waitpid(id_, &status, 0) < 0 && errno == EINTR) {
    }
    id_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  void kill() {
    if (id_ <= 0) return;
    ::kill(id_, SIGKILL);
    wait();
  }
  // Returns when it stands still.
  void stop() const {
    ::kill(id_, SIGSTOP);
    int status = 0;
    while (::waitpid(id_, &status, WUNTRACED) < 0 && errno == EINTR) {
    }
  }
  void resume() const { ::kill(id_, SIGCONT); }

 private:
  pid_t id_;
};

// --- Entries

inline std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ x >> 30U) * 0xBF58476D1CE4E5B9U;
  x = (x ^ x >> 27U) * 0x94D049BB133111EBU;
  return x ^ x >> 31U;
}

// The bytes of an entry say which it is, each of them.
inline std::vector<std::byte> value_of(std::uint64_t id, std::size_t bytes) {
  std::vector<std::byte> value(bytes);
  for (std::size_t i = 0; i < bytes; i += 8) {
    const std::uint64_t word = mixed(id * 0x9E3779B97F4A7C15U + i + 1);
    std::memcpy(value.data() + i, &word, std::min<std::size_t>(8, bytes - i));
  }
  return value;
}

inline std::size_t usual_size(std::uint64_t id) { return 16 + mixed(id + 1) % 4000; }

inline EntryPtr make_value(std::uint64_t id, std::size_t bytes, double seconds = 0.001) {
  const std::vector<std::byte> value = value_of(id, bytes);
  const std::array<std::int64_t, 1> shape{static_cast<std::int64_t>(bytes)};
  const TensorParts tensor{.shape = shape, .data = value};
  return make_entry({.key = key_of(id), .seconds = seconds, .tensors = {&tensor, 1}});
}

inline void put_value(ActivationCache& cache, std::uint64_t id, std::size_t bytes,
                      double seconds = 0.001) {
  const std::vector<std::byte> value = value_of(id, bytes);
  const std::array<std::int64_t, 1> shape{static_cast<std::int64_t>(bytes)};
  const TensorParts tensor{.shape = shape, .data = value};
  cache.insert({.key = key_of(id), .seconds = seconds, .tensors = {&tensor, 1}});
}

inline void put_value(ActivationCache& cache, std::uint64_t id) {
  put_value(cache, id, usual_size(id));
}

inline bool is_value(const Entry& entry, std::uint64_t id) {
  if (entry.tensor_count() != 1 || entry.key() != key_of(id)) return false;
  const std::span<const std::byte> data = entry.tensor(0).data;
  const std::vector<std::byte> value = value_of(id, data.size());
  return std::ranges::equal(data, value);
}

enum class Answer : std::uint8_t { kMissing, kRight, kWrong };

inline Answer ask(ActivationCache& cache, std::uint64_t id) {
  const EntryPtr entry = cache.find(key_of(id));
  if (!entry) return Answer::kMissing;
  return is_value(*entry, id) ? Answer::kRight : Answer::kWrong;
}

// --- The disk

// What the files of a directory take now, without the help of what is tested.
inline std::uint64_t disk_bytes(const std::string& path) {
  std::uint64_t sum = 0;
  DIR* const stream = ::opendir(path.c_str());
  if (stream == nullptr) return 0;
  while (const dirent* const each = ::readdir(stream)) {  // NOLINT(concurrency-mt-unsafe)
    struct stat about {};
    const bool there = ::fstatat(::dirfd(stream), each->d_name, &about, AT_SYMLINK_NOFOLLOW) == 0;
    if (there && S_ISREG(about.st_mode)) sum += static_cast<std::uint64_t>(about.st_blocks) * 512;
  }
  ::closedir(stream);
  return sum;
}

// A small file system of its own in a folder, if this user may mount one.
class Mount {
 public:
  Mount(const std::filesystem::path& where, const std::string& options) : path_(where.string()) {
    std::filesystem::create_directories(where);
    done_ = ::mount("none", path_.c_str(), "tmpfs", 0, (options + ",mode=0700").c_str()) == 0;
  }
  ~Mount() {
    if (done_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;

  explicit operator bool() const noexcept { return done_; }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] bool remount(unsigned long flags) const {
    return ::mount("none", path_.c_str(), "tmpfs", MS_REMOUNT | flags, nullptr) == 0;
  }

 private:
  std::string path_;
  bool done_ = false;
};

}  // namespace tensorkey::test
