// Room for entries: reserving it, evicting, waiting for readers, joining half empty slabs.
#include <algorithm>
#include <new>
#include <thread>
#include <utility>

#include "base/epoch.h"
#include "store/memory.h"

namespace tensorkey::internal {
namespace {

// How often an inserting thread looks again whether readers have left what was evicted.
constexpr int kPatience = 100;
constexpr int kRounds = 64;  // of evicting more than the policy was asked for at first
constexpr std::uint64_t kNeverFits = ~std::uint64_t{0};
constexpr std::size_t kSweepSlots = 8;

}  // namespace

// An empty block and a place in the index for it; null if the entry is not to be stored.
Block* MemoryTier::reserve(const Key& key, std::size_t bytes, double seconds) {
  // Only here, where something changes: were the policy's clock moved by hits alone, all hot
  // entries would be marked anew each time, by every core.
  const std::uint64_t hits = lookups_.sum()[static_cast<std::size_t>(Lookup::kHit)];
  policy_.count(hits - std::exchange(seen_hits_, hits));
  learn();
  if (ttl_ != 0) sweep();
  collect();
  count_metadata();
  const std::size_t taken = metadata_ + arena_->held();
  crowded_.store(taken > bound_ / 4, std::memory_order_relaxed);
  const std::size_t size = arena_->rounded(bytes);
  // While the index grows, the old one is there too.
  const std::size_t growth = table_.growth(coming_ + 1);
  const std::size_t fixed = metadata_ + pinned_ + growth;
  const Request request{.hash = std::hash<Key>{}(key), .size = size, .cost = seconds};
  if (trace_.on()) [[unlikely]]
    trace_.write(request);

  // What must go for it: nothing while there is a free place. That it then has one of its own size
  // is what the policy can give; make_room() sees to the rest.
  std::uint64_t excess = kNeverFits;
  if (fixed < bound_ && size <= bound_ - fixed) {
    while (!fits(size, growth) && (arena_->trim() || compact())) collect();
    const std::size_t wanted = metadata_ + growth + arena_->live() + size;
    excess = fits(size, growth) ? 0 : std::max(size, wanted > bound_ ? wanted - bound_ : 0);
  }
  if (!policy_.admit(request, excess, victims_)) return nullptr;
  evict_victims();
  if (!make_room(size, growth)) return nullptr;
  if (growth > 0) grow_index();
  void* memory = nullptr;
  try {
    memory = arena_->allocate(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  auto* const block = new (memory) Block;
  block->policy.request = request;
  block->size = bytes;
  block->footprint = size;
  block->arena = arena_;
  ++coming_;
  return block;
}

void MemoryTier::grow_index() {
  limbo_.push_back({.tag = 0, .block = nullptr, .slots = table_.grow(coming_ + 1)});
  limbo_.back().tag = retire_epoch();
  count_metadata();
}

// What policy_ has just unlinked leaves the index.
void MemoryTier::evict_victims() {
  for (PolicyNode* const victim : victims_) retire(Block::of(*victim));
  counted_.evictions += victims_.size();
  count_metadata();
}

bool MemoryTier::fits(std::size_t size, std::size_t extra) const noexcept {
  const std::size_t cost = size == 0 ? 0 : arena_->cost(size);
  return metadata_ + policy_.growth() + arena_->held() + cost + extra <= bound_;
}

// Makes room for an allocation of `size` bytes (0: none) and `extra` bytes of index: waits a moment
// for readers to leave what was evicted, then joins half empty slabs, then evicts more. False if
// there still is no room, since callers hold what should have gone.
bool MemoryTier::make_room(std::size_t size, std::size_t extra) {
  int patience = kPatience;
  for (int evictions = 0; evictions < kRounds;) {
    for (;;) {
      collect();
      if (fits(size, extra)) return true;
      if (limbo_.empty() || patience-- <= 0) break;
      std::this_thread::yield();
    }
    if (arena_->trim() || compact()) continue;
    ++evictions;
    const std::size_t wanted = metadata_ + arena_->held() + extra + size;
    policy_.evict(wanted > bound_ ? wanted - bound_ : size, victims_);
    if (victims_.empty()) break;
    evict_victims();
  }
  collect();
  return fits(size, extra);
}

// Empties the emptiest slab whose entries fit into others of its kind. False if there is none.
bool MemoryTier::compact() {
  Arena::Slab* const slab = arena_->close_sparse();
  if (slab == nullptr) return false;
  places_.clear();
  Arena::places(*slab, places_);
  std::size_t moved = 0;
  for (void* const place : places_) {
    Block& block = *static_cast<Block*>(place);
    if (!block.linked) continue;  // being filled, or held by callers
    Block* const copy = copy_block(block, arena_->allocate(block.footprint));
    copy->pinned = block.pinned;
    copy->linked = true;
    if (!block.pinned) policy_.move(block.policy, copy->policy);
    table_.replace(block, *copy);
    block.linked = false;
    limbo_.push_back({.tag = retire_epoch(), .block = &block, .slots = nullptr});
    ++moved;
  }
  if (moved < places_.size()) arena_->reopen(*slab);
  return moved > 0;
}

void MemoryTier::retire(Block& block) {
  table_.remove(block);
  block.linked = false;
  limbo_.push_back({.tag = retire_epoch(), .block = &block, .slots = nullptr});
}

// Takes a linked or pinned block out.
void MemoryTier::drop(Block& block) {
  if (block.pinned) {
    pinned_ -= block.footprint;
    block.pinned = false;
  } else {
    policy_.unlink(block.policy);
  }
  retire(block);
}

void MemoryTier::collect() {
  std::size_t kept = 0;
  for (Retired& retired : limbo_) {
    if (!epoch_passed(retired.tag)) {
      std::swap(limbo_[kept++], retired);
    } else if (retired.block != nullptr) {
      release(*retired.block);
    } else {
      metadata_ -= EntryTable::bytes(*retired.slots);
      retired.slots.reset();
    }
  }
  limbo_.resize(kept);
  arena_->reclaim();
}

// Looks at a few more slots for what has expired: all of them within some insertions.
void MemoryTier::sweep() {
  for (std::size_t i = 0; i < kSweepSlots; ++i) {
    if (Block* const block = table_.at(swept_++); block != nullptr && expired(*block)) {
      ++counted_.expirations;
      drop(*block);
    }
  }
}

void MemoryTier::learn() {
  accesses_.drain([this](const Request& request) { policy_.record(request); });
}

void MemoryTier::count_metadata() {
  metadata_ = sizeof(*this) + sizeof(Arena) + table_.bytes() + policy_.memory() +
              limbo_.capacity() * sizeof(Retired) + victims_.capacity() * sizeof(void*) +
              places_.capacity() * sizeof(void*);
  for (const Retired& retired : limbo_) {
    if (retired.slots != nullptr) metadata_ += EntryTable::bytes(*retired.slots);
  }
}

}  // namespace tensorkey::internal
