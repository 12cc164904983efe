// The index of the memory tier: entries by key, open addressing with linear probing. Readers take
// no lock; one writer at a time, the owner's. A slot is a pointer with 16 bits of the key's hash,
// so that a probe reads no entry that is not the wanted one (but for one in 65,536).
//
// A removal leaves a tombstone, since moving entries would hide them from readers; the whole array
// is made anew when three quarters are used up. Readers may still be in the old one, so the writer
// gets it back to free it when they are gone.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include <tensorkey/key.h>

#include "store/entry_block.h"

namespace tensorkey::internal {

class EntryTable {
 public:
  struct Slots;
  struct Free {
    void operator()(Slots* slots) const noexcept;
  };
  using SlotsPtr = std::unique_ptr<Slots, Free>;

  EntryTable();
  ~EntryTable();
  EntryTable(const EntryTable&) = delete;
  EntryTable& operator=(const EntryTable&) = delete;

  // REQUIRES: an EpochGuard or the writer's lock, as long as the block is used.
  [[nodiscard]] Block* find(const Key& key) const noexcept;

  // All below: the writer.

  // Bytes of a new array that must be made before so many inserts; 0 if there is room.
  [[nodiscard]] std::size_t growth(std::size_t inserts) const noexcept;
  // Makes it; the old one is for the caller to free once no reader is in it.
  [[nodiscard]] SlotsPtr grow(std::size_t inserts);
  // REQUIRES: growth(1) == 0 and the key is not there.
  void insert(Block& block) noexcept;
  // REQUIRES: it is there.
  void remove(const Block& block) noexcept;

  // Puts a copy of a block in its place. REQUIRES: the block is there.
  void replace(const Block& block, Block& copy) noexcept;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t bytes() const noexcept;
  static std::size_t bytes(const Slots& slots) noexcept;

  // The block in slot i modulo their number, or null.
  [[nodiscard]] Block* at(std::size_t i) const noexcept;
  [[nodiscard]] std::size_t slot_count() const noexcept;

 private:
  [[nodiscard]] std::uint64_t hash(const Key& key) const noexcept;
  [[nodiscard]] std::size_t wanted_slots(std::size_t inserts) const noexcept;
  [[nodiscard]] std::size_t place_of(const Block& block) const noexcept;

  std::array<std::uint64_t, 4> seeds_;
  std::atomic<Slots*> slots_;
  std::size_t size_ = 0;
  std::size_t used_ = 0;  // entries and tombstones
};

}  // namespace tensorkey::internal
