#include "store/table.h"

#include <algorithm>
#include <bit>
#include <new>

#include "store/key_hash.h"

namespace tensorkey::internal {
namespace {

constexpr std::size_t kFewest = 16;
constexpr unsigned kTagShift = 48;  // user addresses have 47 bits, on both architectures
constexpr std::uint64_t kPointerMask = (std::uint64_t{1} << kTagShift) - 1;
constexpr std::uint64_t kEmpty = 0;
constexpr std::uint64_t kTombstone = 1;

std::uint64_t pack(const Block& block, std::uint64_t hash) {
  const auto pointer = reinterpret_cast<std::uintptr_t>(&block);
  return static_cast<std::uint64_t>(pointer) | (hash >> kTagShift << kTagShift);
}

Block* unpack(std::uint64_t slot) {
  return reinterpret_cast<Block*>(static_cast<std::uintptr_t>(slot & kPointerMask));
}

}  // namespace

struct EntryTable::Slots {
  std::size_t mask;  // their number - 1
  std::atomic<std::uint64_t>* array() noexcept {
    return reinterpret_cast<std::atomic<std::uint64_t>*>(this + 1);
  }

  static std::size_t bytes(std::size_t count) {
    return sizeof(Slots) + count * sizeof(std::uint64_t);
  }

  static Slots* make(std::size_t count) {
    void* const memory = ::operator new(bytes(count));
    auto* const slots = new (memory) Slots{.mask = count - 1};
    for (std::size_t i = 0; i < count; ++i) {
      new (slots->array() + i) std::atomic<std::uint64_t>(kEmpty);
    }
    return slots;
  }
};

void EntryTable::Free::operator()(Slots* slots) const noexcept { ::operator delete(slots); }

EntryTable::EntryTable() : seeds_(random_seeds<4>()), slots_(Slots::make(kFewest)) {}

EntryTable::~EntryTable() { ::operator delete(slots_.load()); }

// The upper bits are the tag, the lower ones the place.
std::uint64_t EntryTable::hash(const Key& key) const noexcept {
  return seeded_hash(key.bytes().data(), seeds_);
}

Block* EntryTable::find(const Key& key) const noexcept {
  const std::uint64_t hash = this->hash(key);
  Slots* const slots = slots_.load();
  for (std::size_t i = hash & slots->mask;; i = (i + 1) & slots->mask) {
    const std::uint64_t slot = slots->array()[i].load();
    if (slot == kEmpty) return nullptr;
    if (((slot ^ hash) >> kTagShift) == 0 && slot != kTombstone) {
      Block* const block = unpack(slot);
      if (same_key(block->key, key)) return block;
    }
  }
}

std::size_t EntryTable::wanted_slots(std::size_t inserts) const noexcept {
  return std::bit_ceil(std::max(kFewest, 2 * (size_ + inserts)));
}

std::size_t EntryTable::growth(std::size_t inserts) const noexcept {
  const std::size_t count = slots_.load()->mask + 1;
  return (used_ + inserts) * 4 <= count * 3 ? 0 : Slots::bytes(wanted_slots(inserts));
}

EntryTable::SlotsPtr EntryTable::grow(std::size_t inserts) {
  Slots* const old = slots_.load();
  Slots* const fresh = Slots::make(wanted_slots(inserts));
  for (std::size_t i = 0; i <= old->mask; ++i) {
    const std::uint64_t slot = old->array()[i].load(std::memory_order_relaxed);
    if (slot == kEmpty || slot == kTombstone) continue;
    std::size_t to = hash(unpack(slot)->key) & fresh->mask;
    while (fresh->array()[to].load(std::memory_order_relaxed) != kEmpty) {
      to = (to + 1) & fresh->mask;
    }
    fresh->array()[to].store(slot, std::memory_order_relaxed);
  }
  used_ = size_;
  slots_.store(fresh);
  return SlotsPtr(old);
}

void EntryTable::insert(Block& block) noexcept {
  const std::uint64_t hash = this->hash(block.key);
  Slots* const slots = slots_.load();
  std::size_t i = hash & slots->mask;
  for (;; i = (i + 1) & slots->mask) {
    const std::uint64_t slot = slots->array()[i].load(std::memory_order_relaxed);
    if (slot == kTombstone) break;
    if (slot == kEmpty) {
      ++used_;
      break;
    }
  }
  ++size_;
  slots->array()[i].store(pack(block, hash));
}

std::size_t EntryTable::place_of(const Block& block) const noexcept {
  const std::uint64_t hash = this->hash(block.key);
  Slots* const slots = slots_.load();
  const std::uint64_t wanted = pack(block, hash);
  std::size_t i = hash & slots->mask;
  while (slots->array()[i].load(std::memory_order_relaxed) != wanted) i = (i + 1) & slots->mask;
  return i;
}

void EntryTable::remove(const Block& block) noexcept {
  Slots* const slots = slots_.load();
  const std::size_t i = place_of(block);
  // Before an empty slot no chain goes on: no tombstone is needed.
  const bool last = slots->array()[(i + 1) & slots->mask].load(std::memory_order_relaxed) == kEmpty;
  slots->array()[i].store(last ? kEmpty : kTombstone);
  --size_;
  if (last) --used_;
}

void EntryTable::replace(const Block& block, Block& copy) noexcept {
  slots_.load()->array()[place_of(block)].store(pack(copy, hash(copy.key)));
}

std::size_t EntryTable::bytes(const Slots& slots) noexcept { return Slots::bytes(slots.mask + 1); }

std::size_t EntryTable::bytes() const noexcept { return bytes(*slots_.load()); }

std::size_t EntryTable::slot_count() const noexcept { return slots_.load()->mask + 1; }

Block* EntryTable::at(std::size_t i) const noexcept {
  Slots* const slots = slots_.load();
  const std::uint64_t slot = slots->array()[i & slots->mask].load(std::memory_order_relaxed);
  return slot == kEmpty || slot == kTombstone ? nullptr : unpack(slot);
}

}  // namespace tensorkey::internal
