// What a process remembers of the index: where the record of a key is. Open addressing over slots
// of 28 bytes (16 bytes of the key, segment, offset, length) in 256 shards that grow one by one, so
// that an entry takes at most 48 bytes with its empty slots, also while the table grows or shrinks
// (from some thousand entries on; the object itself has 8 KiB). It may be stale about what is gone,
// and two keys whose halves have the same exclusive or are one to it: whoever reads a record
// verifies it. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include <tensorkey/key.h>

#include "base/fork.h"
#include "store/key_hash.h"

namespace tensorkey::internal {

// Where a record lies.
struct Place {
  std::uint32_t segment = 0;  // its number; 0: no place
  std::uint64_t offset = 0;   // of the record's head; a multiple of 16 below 2^36
  std::uint64_t length = 0;   // of the whole record, head included; likewise
  friend bool operator==(const Place&, const Place&) = default;
};

class Mirror {
 public:
  // limit: bytes that it may take; below those of the object itself it knows nothing.
  explicit Mirror(std::size_t limit);
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;

  // out[i] = the place of keys[i]; segment 0 if it is not known.
  void find(std::span<const Key> keys, std::span<Place> out) const;
  // Replaces the place of a key that is known. False if there is no room for it, also for a moment
  // while its shard grows, or the place is none (see Place). Throws std::bad_alloc.
  bool insert(const Key& key, const Place& place);
  // Forgets a key, if this still is its place.
  void erase(const Key& key, const Place& place);
  // Forgets all entries of segments for which alive(segment) is false. Others may insert meanwhile,
  // and what they insert may stay. alive() must not call the mirror.
  void retain(const std::function<bool(std::uint32_t)>& alive);
  void clear();

  [[nodiscard]] std::size_t entries() const;
  // This object and all slots.
  [[nodiscard]] std::size_t bytes() const;
  [[nodiscard]] std::size_t limit() const noexcept { return limit_; }

 private:
  using Tag = std::array<std::uint32_t, 4>;  // its alignment keeps a slot at 28 bytes
  struct Slot {
    Tag tag{};
    std::uint32_t segment = 0;  // 0: the slot is empty
    std::uint32_t offset = 0;   // in units of 16 bytes, like length
    std::uint32_t length = 0;
  };
  static_assert(sizeof(Slot) == 28);
  struct Shard {
    std::vector<Slot> slots;
    std::size_t used = 0;
  };
  static constexpr std::size_t kShards = 256;

  // A key as the table has it. The place follows from the tag, since a slot has no more of its key.
  struct Wanted {
    Tag tag;
    std::uint64_t hash;
  };
  static std::size_t home(std::uint64_t hash, std::size_t slots) noexcept;
  [[nodiscard]] Wanted wanted(const Key& key) const noexcept;
  static std::size_t shard_of(std::uint64_t hash) noexcept;
  // All below: mutex_ is held. Of the slot that has the tag, or of the empty one where it would be.
  static std::size_t probe(const std::vector<Slot>& slots, const Wanted& wanted) noexcept;
  bool resize(Shard& shard, std::size_t count);
  void remove(Shard& shard, std::size_t i) noexcept;
  void shrink(Shard& shard) noexcept;

  const std::size_t limit_;
  const HashSeeds<2> seeds_;
  mutable ForkMutex mutex_;
  std::array<Shard, kShards> shards_;
  std::size_t bytes_ = sizeof(Mirror);
  std::size_t entries_ = 0;
};

}  // namespace tensorkey::internal
