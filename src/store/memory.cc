#include "store/memory.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>

#include "base/epoch.h"

namespace tensorkey::internal {
namespace {

// An entry above this is copied outside the lock.
constexpr std::size_t kCopyUnderLock = std::size_t{16} << 10;

// Milliseconds; the cheap clock, right to a few of them.
std::int64_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return static_cast<std::int64_t>(time.tv_sec) * 1000 + time.tv_nsec / 1'000'000;
}

}  // namespace

MemoryTier::MemoryTier(const CacheOptions& options)
    : bound_(options.memory),
      ttl_(std::llround(std::ceil(std::min(options.ttl, 1e12) * 1000))),
      arena_(std::make_shared<Arena>(options.memory)),
      policy_(options.memory) {
  count_metadata();
}

MemoryTier::~MemoryTier() {
  for (std::size_t i = 0; i < table_.slot_count(); ++i) {
    if (const Block* const block = table_.at(i)) release(*block);
  }
  for (const Retired& retired : limbo_) {
    if (retired.block != nullptr) release(*retired.block);
  }
}

// --- Lookups

bool MemoryTier::expired(const Block& block) const noexcept {
  if (ttl_ == 0) return false;
  const std::int64_t expires = block.expires.load(std::memory_order_relaxed);
  return expires != 0 && expires <= now();
}

void MemoryTier::hit(Block& block) {
  policy_.touch(block.policy);
  const Request& request = block.policy.request;
  if (crowded_.load(std::memory_order_relaxed) && policy_.sampled(request.hash) &&
      !accesses_.add(request)) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) learn();
  }
  if (trace_.on()) [[unlikely]]
    trace_.write(request);
}

EntryPtr MemoryTier::find(const Key& key) {
  EntryPtr entry;
  find({&key, 1}, {&entry, 1});
  return entry;
}

void MemoryTier::find(std::span<const Key> keys, std::span<EntryPtr> out) {
  std::uint64_t hits = 0;
  {
    const EpochGuard guard;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      Block* const block = table_.find(keys[i]);
      if (block == nullptr || expired(*block)) {
        out[i] = nullptr;
        continue;
      }
      retain(*block);
      out[i] = EntryPtr(block);
      ++hits;
    }
  }
  // Outside of the guard: the policy's turn may take a while, and the references keep the blocks.
  for (const EntryPtr& entry : out) {
    if (entry) hit(const_cast<Block&>(block_of(*entry)));
  }
  if (hits > 0) lookups_.add(Lookup::kHit, hits);
}

bool MemoryTier::read(const Key& key, std::span<std::byte> out) {
  Request request;
  bool wanted = false;
  {
    const EpochGuard guard;
    Block* const block = table_.find(key);
    if (block == nullptr || expired(*block) || block->tensors == 0) return false;
    if (block->bytes != out.size()) return false;
    std::memcpy(out.data(), block->data, block->bytes);
    policy_.touch(block->policy);
    request = block->policy.request;
    wanted = crowded_.load(std::memory_order_relaxed) && policy_.sampled(request.hash);
  }
  lookups_.add(Lookup::kHit, 1);
  if (wanted && !accesses_.add(request)) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) learn();
  }
  if (trace_.on()) [[unlikely]]
    trace_.write(request);
  return true;
}

EntryPtr MemoryTier::peek(const Key& key) const {
  const EpochGuard guard;
  Block* const block = table_.find(key);
  if (block == nullptr || expired(*block)) return nullptr;
  retain(*block);
  return EntryPtr(block);
}

Lookup MemoryTier::why(const Key& key) const {
  const Block* const block = table_.find(key);
  if (block != nullptr && expired(*block)) return Lookup::kExpired;
  return policy_.seen(std::hash<Key>{}(key)) ? Lookup::kEvicted : Lookup::kNew;
}

Lookup MemoryTier::why_missing(const Key& key) const {
  const std::lock_guard lock(mutex_);
  return why(key);
}

void MemoryTier::count_misses(std::span<const Key> keys, std::span<Lookup> reasons) {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const Lookup reason = why(keys[i]);
    if (!reasons.empty()) reasons[i] = reason;
    lookups_.add(reason, 1);
    distinct_.add(std::hash<Key>{}(keys[i]));
  }
}

// --- Changes

EntryPtr MemoryTier::known(const Key& key) {
  Block* const block = table_.find(key);
  if (block == nullptr) return nullptr;
  if (expired(*block)) {
    ++counted_.expirations;
    drop(*block);
    return nullptr;
  }
  retain(*block);
  return EntryPtr(block);
}

EntryPtr MemoryTier::insert(const EntryParts& parts, std::uint64_t scope) {
  const std::size_t bytes = block_bytes(parts);
  std::unique_lock lock(mutex_);
  if (bound_ == 0) return nullptr;
  if (EntryPtr entry = known(parts.key)) return entry;
  Block* const block = reserve(parts.key, bytes, parts.seconds);
  if (block == nullptr) {
    ++counted_.rejections;
    return nullptr;
  }
  if (bytes > kCopyUnderLock) {
    lock.unlock();
    fill_block(*block, parts);
    lock.lock();
  } else {
    fill_block(*block, parts);
  }
  return publish(*block, scope);
}

EntryPtr MemoryTier::insert(const EntryPtr& entry, std::uint64_t scope) {
  std::vector<TensorParts> tensors(entry->tensor_count());
  for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i] = entry->tensor(i);
  EntryPtr stored = insert(EntryParts{.key = entry->key(),
                                      .input = entry->input(),
                                      .seconds = entry->seconds(),
                                      .tensors = tensors},
                           scope);
  return stored ? stored : entry;
}

// Takes over the caller's reference to a block from reserve().
EntryPtr MemoryTier::publish(Block& block, std::uint64_t scope) {
  EntryPtr entry(&block);
  --coming_;
  // Only while the lock was away can another thread have stored the key.
  if (EntryPtr other = known(block.key)) return other;
  block.scope = scope;
  if (ttl_ != 0) block.expires.store(now() + ttl_, std::memory_order_relaxed);
  policy_.link(block.policy);
  retain(block);
  block.linked = true;
  table_.insert(block);
  ++counted_.insertions;
  return entry;
}

bool MemoryTier::remove(const Key& key) {
  const std::lock_guard lock(mutex_);
  Block* const block = table_.find(key);
  if (block == nullptr) return false;
  const bool there = !expired(*block);
  drop(*block);
  collect();
  return there;
}

std::size_t MemoryTier::purge(std::uint64_t scope) {
  const std::lock_guard lock(mutex_);
  std::size_t count = 0;
  for (std::size_t i = 0; i < table_.slot_count(); ++i) {
    if (Block* const block = table_.at(i); block != nullptr && block->scope == scope) {
      drop(*block);
      ++count;
    }
  }
  collect();
  return count;
}

void MemoryTier::clear() {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < table_.slot_count(); ++i) {
    if (Block* const block = table_.at(i)) drop(*block);
  }
  collect();
  arena_->trim();
}

bool MemoryTier::pin(const Key& key, bool pinned) {
  const std::lock_guard lock(mutex_);
  Block* const block = table_.find(key);
  if (block == nullptr || expired(*block)) return false;
  if (block->pinned == pinned) return true;
  block->pinned = pinned;
  if (pinned) {
    policy_.unlink(block->policy);
    pinned_ += block->footprint;
    block->expires.store(0, std::memory_order_relaxed);
  } else {
    policy_.link(block->policy);
    pinned_ -= block->footprint;
    if (ttl_ != 0) block->expires.store(now() + ttl_, std::memory_order_relaxed);
  }
  return true;
}

void MemoryTier::resize(std::size_t bound) {
  const std::lock_guard lock(mutex_);
  bound_ = bound;
  policy_.resize(bound);
  count_metadata();
  make_room(0, 0);
}

// --- Accounts

std::size_t MemoryTier::bound() const {
  const std::lock_guard lock(mutex_);
  return bound_;
}

std::vector<EntryInfo> MemoryTier::snapshot() const {
  const std::lock_guard lock(mutex_);
  std::vector<EntryInfo> infos;
  infos.reserve(table_.size());
  for (std::size_t i = 0; i < table_.slot_count(); ++i) {
    const Block* const block = table_.at(i);
    if (block == nullptr || expired(*block)) continue;
    infos.push_back({.key = block->key,
                     .scope = block->scope,
                     .bytes = block->footprint,
                     .seconds = block->seconds,
                     .pinned = block->pinned});
  }
  return infos;
}

CacheStats MemoryTier::stats() const {
  const std::lock_guard lock(mutex_);
  CacheStats stats = counted_;
  const LookupCounters::Counts counts = lookups_.sum();
  const auto of = [&](Lookup kind) { return counts[static_cast<std::size_t>(kind)]; };
  stats.hits = of(Lookup::kHit) - baseline_.hits;
  stats.misses_new = of(Lookup::kNew) - baseline_.misses_new;
  stats.misses_evicted = of(Lookup::kEvicted) - baseline_.misses_evicted;
  stats.misses_expired = of(Lookup::kExpired) - baseline_.misses_expired;
  stats.waits = waits_ - baseline_.waits;
  stats.hits += stats.waits;
  stats.stored_hits = stored_hits_ - baseline_.stored_hits;
  stats.corrupt = corrupt_ - baseline_.corrupt;
  stats.bound = bound_;
  if (bound_ != 0) {
    stats.bytes = metadata_ + arena_->held();
    stats.metadata = metadata_;
  }
  stats.pinned = pinned_;
  stats.entries = table_.size();
  stats.distinct = distinct_.estimate();
  return stats;
}

void MemoryTier::reset_stats() {
  const std::lock_guard lock(mutex_);
  const LookupCounters::Counts counts = lookups_.sum();
  baseline_.hits = counts[static_cast<std::size_t>(Lookup::kHit)];
  baseline_.misses_new = counts[static_cast<std::size_t>(Lookup::kNew)];
  baseline_.misses_evicted = counts[static_cast<std::size_t>(Lookup::kEvicted)];
  baseline_.misses_expired = counts[static_cast<std::size_t>(Lookup::kExpired)];
  baseline_.waits = waits_;
  baseline_.stored_hits = stored_hits_;
  baseline_.corrupt = corrupt_;
  counted_ = {};
  distinct_.reset();
}

}  // namespace tensorkey::internal
