#include "store/disk/mirror.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>

namespace tensorkey::internal {
namespace {

constexpr std::size_t kFewest = 8;
constexpr unsigned kShardShift = 56;
constexpr std::uint64_t kUnit = 16;
constexpr std::uint64_t kEnd = std::uint64_t{1} << 36;
constexpr std::size_t kAhead = 32;  // keys whose slots are fetched before the first is looked at

// Entries that so many slots take. One slot stays empty, which ends every search.
constexpr std::size_t room(std::size_t slots) { return slots * 4 / 5; }
// The least number of slots that is worth a growth, and what is left by shrinking: between 0.62 and
// 0.8 full a slot costs 35 to 45 bytes.
constexpr std::size_t grown(std::size_t slots) { return std::max(kFewest, slots + slots / 5 + 1); }
constexpr bool sparse(std::size_t slots, std::size_t used) { return used * 100 < slots * 62; }
constexpr std::size_t shrunk(std::size_t used) { return std::max(kFewest, used * 100 / 73 + 1); }

bool fits(const Place& place) {
  return place.segment != 0 && place.offset < kEnd && place.length < kEnd &&
         place.offset % kUnit == 0 && place.length % kUnit == 0;
}

}  // namespace

Mirror::Mirror(std::size_t limit) : limit_(limit), seeds_(random_seeds<2>()) {}

std::size_t Mirror::shard_of(std::uint64_t hash) noexcept { return hash >> kShardShift; }

// The lower half of the hash, since the upper one has chosen the shard.
std::size_t Mirror::home(std::uint64_t hash, std::size_t slots) noexcept {
  return (hash & 0xffffffff) * slots >> 32;
}

Mirror::Wanted Mirror::wanted(const Key& key) const noexcept {
  std::array<std::uint64_t, 4> words;
  std::memcpy(words.data(), key.bytes().data(), sizeof words);
  const std::array<std::uint64_t, 2> halves{words[0] ^ words[2], words[1] ^ words[3]};
  Wanted result{.tag = {}, .hash = seeded_hash(halves.data(), seeds_)};
  static_assert(sizeof halves == sizeof result.tag);
  std::memcpy(result.tag.data(), halves.data(), sizeof halves);
  return result;
}

std::size_t Mirror::probe(const std::vector<Slot>& slots, const Wanted& wanted) noexcept {
  std::size_t i = home(wanted.hash, slots.size());
  while (slots[i].segment != 0 && slots[i].tag != wanted.tag) {
    if (++i == slots.size()) i = 0;
  }
  return i;
}

void Mirror::find(std::span<const Key> keys, std::span<Place> out) const {
  std::array<Wanted, kAhead> ahead;
  const std::lock_guard lock(mutex_);
  for (std::size_t begin = 0; begin < keys.size(); begin += kAhead) {
    const std::size_t count = std::min(kAhead, keys.size() - begin);
    for (std::size_t i = 0; i < count; ++i) {
      ahead[i] = wanted(keys[begin + i]);
      const std::vector<Slot>& slots = shards_[shard_of(ahead[i].hash)].slots;
      if (slots.empty()) continue;
      const std::size_t first = home(ahead[i].hash, slots.size());
      __builtin_prefetch(&slots[first]);
      // Mostly the next line: a search takes two or three slots.
      __builtin_prefetch(&slots[std::min(first + 2, slots.size() - 1)]);
    }
    for (std::size_t i = 0; i < count; ++i) {
      Place& place = out[begin + i];
      place = {};
      const std::vector<Slot>& slots = shards_[shard_of(ahead[i].hash)].slots;
      if (slots.empty()) continue;
      const Slot& slot = slots[probe(slots, ahead[i])];
      if (slot.segment == 0) continue;
      place = {
          .segment = slot.segment, .offset = slot.offset * kUnit, .length = slot.length * kUnit};
    }
  }
}

// Both arrays count while there are two.
bool Mirror::resize(Shard& shard, std::size_t count) {
  const std::size_t added = count * sizeof(Slot);
  if (bytes_ > limit_ || added > limit_ - bytes_) return false;
  std::vector<Slot> fresh(count);
  for (const Slot& slot : shard.slots) {
    if (slot.segment == 0) continue;
    const Wanted wanted{.tag = slot.tag, .hash = seeded_hash(slot.tag.data(), seeds_)};
    fresh[probe(fresh, wanted)] = slot;
  }
  bytes_ += added - shard.slots.size() * sizeof(Slot);
  shard.slots.swap(fresh);
  return true;
}

bool Mirror::insert(const Key& key, const Place& place) {
  if (!fits(place)) return false;
  const Wanted wanted = this->wanted(key);
  const std::lock_guard lock(mutex_);
  Shard& shard = shards_[shard_of(wanted.hash)];
  std::size_t i = shard.slots.empty() ? 0 : probe(shard.slots, wanted);
  if (shard.slots.empty() || shard.slots[i].segment == 0) {
    if (shard.used == room(shard.slots.size())) {
      if (!resize(shard, grown(shard.slots.size()))) return false;
      i = probe(shard.slots, wanted);
    }
    ++shard.used;
    ++entries_;
  }
  shard.slots[i] = {.tag = wanted.tag,
                    .segment = place.segment,
                    .offset = static_cast<std::uint32_t>(place.offset / kUnit),
                    .length = static_cast<std::uint32_t>(place.length / kUnit)};
  return true;
}

// Those behind it move up, unless that would put one before its home: nothing is left behind that
// later searches would have to pass.
void Mirror::remove(Shard& shard, std::size_t i) noexcept {
  std::vector<Slot>& slots = shard.slots;
  const std::size_t count = slots.size();
  const auto distance = [count](std::size_t from, std::size_t to) {
    return to >= from ? to - from : to + count - from;
  };
  for (std::size_t next = i;;) {
    if (++next == count) next = 0;
    if (slots[next].segment == 0) break;
    const std::uint64_t hash = seeded_hash(slots[next].tag.data(), seeds_);
    if (distance(home(hash, count), next) < distance(i, next)) continue;
    slots[i] = slots[next];
    i = next;
  }
  slots[i] = {};
  --shard.used;
  --entries_;
}

void Mirror::shrink(Shard& shard) noexcept {
  const std::size_t count = shrunk(shard.used);
  if (!sparse(shard.slots.size(), shard.used) || count >= shard.slots.size()) return;
  try {
    resize(shard, count);
  } catch (const std::bad_alloc&) {
    return;  // it stays as large as it is
  }
}

void Mirror::erase(const Key& key, const Place& place) {
  if (!fits(place)) return;
  const Wanted wanted = this->wanted(key);
  const std::lock_guard lock(mutex_);
  Shard& shard = shards_[shard_of(wanted.hash)];
  if (shard.slots.empty()) return;
  const std::size_t i = probe(shard.slots, wanted);
  const Slot& slot = shard.slots[i];
  if (slot.segment != place.segment || slot.offset != place.offset / kUnit ||
      slot.length != place.length / kUnit) {
    return;
  }
  remove(shard, i);
  shrink(shard);
}

// Shard by shard, so that nobody waits for all of it.
void Mirror::retain(const std::function<bool(std::uint32_t)>& alive) {
  for (Shard& shard : shards_) {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < shard.slots.size();) {
      const std::uint32_t segment = shard.slots[i].segment;
      if (segment == 0 || alive(segment)) {
        ++i;
      } else {
        remove(shard, i);  // and look at what has moved here
      }
    }
    shrink(shard);
  }
}

void Mirror::clear() {
  for (Shard& shard : shards_) {
    const std::lock_guard lock(mutex_);
    bytes_ -= shard.slots.size() * sizeof(Slot);
    entries_ -= shard.used;
    shard = {};
  }
}

std::size_t Mirror::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

std::size_t Mirror::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace tensorkey::internal
