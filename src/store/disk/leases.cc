#include "store/disk/leases.h"

#include <fcntl.h>
#include <sys/types.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

namespace tensorkey::internal {
namespace {

// Bytes of tensorkey.lock, far behind its end: below 2^62 those of keys.
constexpr std::uint64_t kKeyBytes = std::uint64_t{1} << 62;
constexpr std::uint64_t kPresenceByte = kKeyBytes;
constexpr std::uint64_t kIndexByte = kKeyBytes + 1;
static_assert(sizeof(off_t) == sizeof(std::uint64_t));

constexpr std::size_t kMostDistrusted = 65'536;

std::uint64_t byte_of(const Key& key) noexcept {
  std::uint64_t first = 0;
  std::memcpy(&first, key.bytes().data(), sizeof first);
  return first & (kKeyBytes - 1);
}

struct flock lock_of(short type, std::uint64_t byte) noexcept {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(byte);
  lock.l_len = 1;
  return lock;
}

bool set_lock(int file, short type, std::uint64_t byte) noexcept {
  const struct flock lock = lock_of(type, byte);
  return ::fcntl(file, F_OFD_SETLK, &lock) == 0;
}

}  // namespace

Leases::Leases(const Directory& directory)
    : directory_(directory), mutex_([this] {
        // The description is shared with the parent: to unlock anything here would free its leases.
        file_.reset();
        distrusted_.clear();
        index_locked_ = false;
      }) {
  const std::lock_guard lock(mutex_);
  descriptor();
}

int Leases::descriptor() noexcept {
  if (!file_ && !directory_.read_only()) {
    Descriptor file = directory_.open(kLockFile, O_RDWR);
    if (file && set_lock(file.get(), F_RDLCK, kPresenceByte)) file_ = std::move(file);
  }
  return file_.get();
}

bool Leases::alone() noexcept {
  const std::lock_guard lock(mutex_);
  struct flock wanted = lock_of(F_WRLCK, kPresenceByte);
  const int file = descriptor();
  return file >= 0 && ::fcntl(file, F_OFD_GETLK, &wanted) == 0 && wanted.l_type == F_UNLCK;
}

void Leases::acquire(std::span<const Key> keys, std::span<std::uint8_t> mine) noexcept {
  std::ranges::fill(mine, std::uint8_t{0});
  const std::lock_guard lock(mutex_);
  const int file = descriptor();
  if (file < 0) return;
  for (std::size_t i = 0; i < std::min(keys.size(), kMost); ++i) {
    const std::uint64_t byte = byte_of(keys[i]);
    if (!set_lock(file, F_WRLCK, byte)) continue;
    mine[i] = 1;
    distrusted_.erase(byte);
  }
}

void Leases::release(std::span<const Key> keys) noexcept {
  const std::lock_guard lock(mutex_);
  if (!file_) return;
  for (const Key& key : keys) set_lock(file_.get(), F_UNLCK, byte_of(key));
}

void Leases::distrust(const Key& key) {
  const std::lock_guard lock(mutex_);
  // Who has this many to distrust waits for each once more.
  if (distrusted_.size() >= kMostDistrusted) distrusted_.clear();
  distrusted_.insert(byte_of(key));
}

bool Leases::distrusted(const Key& key) const noexcept {
  const std::lock_guard lock(mutex_);
  return distrusted_.contains(byte_of(key));
}

bool Leases::try_lock_index() noexcept {
  const std::lock_guard lock(mutex_);
  // Of two threads the kernel would let both have it.
  if (index_locked_) return false;
  const int file = descriptor();
  index_locked_ = file >= 0 && set_lock(file, F_WRLCK, kIndexByte);
  return index_locked_;
}

bool Leases::lock_index(std::chrono::milliseconds patience) noexcept {
  constexpr std::chrono::milliseconds kPause{2};
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!try_lock_index()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(kPause);
  }
  return true;
}

void Leases::unlock_index() noexcept {
  const std::lock_guard lock(mutex_);
  if (!index_locked_) return;  // it was the parent's
  set_lock(file_.get(), F_UNLCK, kIndexByte);
  index_locked_ = false;
}

}  // namespace tensorkey::internal
