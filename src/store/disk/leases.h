// Who computes what, over the processes of a directory. A lease is an open-file-description lock on
// one byte of tensorkey.lock, chosen by the key; the kernel drops it when its holder dies, so there
// are no pids and no clocks in it. Nothing here waits, but for lock_index().
//
//   leases.acquire(keys, mine);     // mine[i]: this process computes keys[i]
//   ... compute, publish ...
//   leases.release(keys that were mine);
//
// The locks belong to this object, not to a thread: threads settle among themselves first, and no
// two of them may hold the lease of one key. Two objects exclude each other, in one process too.
// Every object also holds a shared lock that says "somebody is here". In the child of a fork the
// descriptor is closed, never unlocked, and opened anew when it is next needed. Thread-safe.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_set>

#include <tensorkey/key.h>

#include "base/descriptor.h"
#include "base/fork.h"
#include "store/disk/directory.h"

namespace tensorkey::internal {

class Leases {
 public:
  // More keys than this are not leased: a list of locks is searched from its beginning each time.
  static constexpr std::size_t kMost = 1024;

  // Borrows the directory. Never throws for a file that cannot be locked: then nobody is alone,
  // and no lease is got.
  explicit Leases(const Directory& directory);
  Leases(const Leases&) = delete;
  Leases& operator=(const Leases&) = delete;

  // Whether nobody else has the directory open.
  [[nodiscard]] bool alone() noexcept;

  // mine[i] = whether the lease of keys[i] is held now; never for keys behind the first kMost.
  // REQUIRES: mine.size() >= keys.size().
  void acquire(std::span<const Key> keys, std::span<std::uint8_t> mine) noexcept;
  void release(std::span<const Key> keys) noexcept;

  // The holder of this key's lease took too long: it is not waited for again until the lease has
  // been free once, which acquire() notices.
  void distrust(const Key& key);
  [[nodiscard]] bool distrusted(const Key& key) const noexcept;

  // A lock of the whole directory, for making or replacing its index; it excludes threads too.
  // False if it could not be had before the deadline. The child of a fork does not have it.
  bool lock_index(std::chrono::milliseconds patience) noexcept;
  void unlock_index() noexcept;

 private:
  // mutex_ is held. Negative if there is none.
  int descriptor() noexcept;
  bool try_lock_index() noexcept;

  const Directory& directory_;
  Descriptor file_;
  std::unordered_set<std::uint64_t> distrusted_;  // bytes of the locks; bounded
  bool index_locked_ = false;
  mutable ForkMutex mutex_;  // destroyed first: a fork in another thread comes into the members
};

}  // namespace tensorkey::internal
