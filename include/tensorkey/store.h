// The memory store: entries under keys, never more bytes than its bound. An entry is immutable and
// shared: who holds one may read it for as long as he likes, also after its eviction.
//
// All calls are thread-safe. A miss is a null pointer. Room is taken before an entry becomes
// visible, metadata included, so the bound holds at every instant; an entry that is larger than the
// bound is rejected and counted. Victims are chosen by SIEVE (Zhang et al., NSDI 2024): one bit an
// entry, no work but setting it on a hit.
//
//   MemoryStore store(std::size_t{1} << 30);
//   store.insert(key, std::make_shared<const Entry>(...));
//   if (EntryPtr entry = store.find(key)) use(entry->data);
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <tensorkey/dtype.h>
#include <tensorkey/export.h>
#include <tensorkey/key.h>

namespace tensorkey {

// One stored tensor: its elements in C order, little-endian, and what it cost to compute.
struct Entry {
  DType dtype = DType::kUInt8;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> data;
  double seconds = 0;  // of computation that a hit saves

  // What it takes of a store's bound: the bytes above and what a store needs beside them.
  [[nodiscard]] TENSORKEY_EXPORT std::size_t footprint() const noexcept;
};

using EntryPtr = std::shared_ptr<const Entry>;

struct StoreStats {
  std::size_t bound = 0;  // bytes
  std::size_t bytes = 0;  // of them taken, metadata included
  std::size_t entries = 0;
  std::uint64_t insertions = 0;
  std::uint64_t evictions = 0;
  std::uint64_t rejections = 0;  // entries larger than the bound: computed, not stored
};

class TENSORKEY_EXPORT MemoryStore {
 public:
  // Throws kInvalidArgument for a bound of 0.
  explicit MemoryStore(std::size_t bound);
  ~MemoryStore();
  MemoryStore(const MemoryStore&) = delete;
  MemoryStore& operator=(const MemoryStore&) = delete;

  [[nodiscard]] EntryPtr find(const Key& key);

  // out[i] = find(keys[i]), under one lock. Throws kInvalidArgument unless the sizes agree.
  void find(std::span<const Key> keys, std::span<EntryPtr> out);

  // False if the entry was rejected. A key that is there already keeps its entry.
  bool insert(const Key& key, EntryPtr entry);

  void clear();
  [[nodiscard]] StoreStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tensorkey
