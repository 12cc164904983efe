#include "store/memory.h"

#include <tensorkey/error.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>

#include "base/epoch.h"

namespace tensorkey::internal {
namespace {

// An entry above this is copied outside the lock.
constexpr std::size_t kCopyUnderLock = std::size_t{16} << 10;
// How often an inserting thread looks again whether readers have left what was evicted.
constexpr int kPatience = 1000;
constexpr int kRounds = 3;
constexpr std::uint64_t kNeverFits = ~std::uint64_t{0};
constexpr std::size_t kSweepSlots = 8;

constexpr double kTicksPerSecond = 1e3;

std::int64_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return static_cast<std::int64_t>(time.tv_sec) * 1000 + time.tv_nsec / 1'000'000;
}

}  // namespace

// Bytes taken of the account, given back unless an entry takes them over.
class MemoryTier::Reservation {
 public:
  Reservation(Account& account, std::size_t bytes) : account_(&account), bytes_(bytes) {}
  ~Reservation() { account_->bytes.fetch_sub(bytes_, std::memory_order_release); }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  void keep() noexcept { bytes_ = 0; }

 private:
  Account* account_;
  std::size_t bytes_;
};

MemoryTier::MemoryTier(const CacheOptions& options)
    : bound_(options.memory),
      ttl_(options.ttl == 0 ? 0
                            : std::max<std::int64_t>(
                                  1, std::llround(std::min(options.ttl, 1e12) * kTicksPerSecond))),
      policy_(options.memory) {
  count_metadata();
}

MemoryTier::~MemoryTier() {
  for (std::size_t i = 0; i < table_.slot_count(); ++i) {
    if (Block* const block = table_.at(i)) {
      if (!block->pinned) policy_.unlink(block->policy);
      release(*block);
    }
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
  if (policy_.sampled(request.hash) && !accesses_.add(request)) {
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
    wanted = policy_.sampled(request.hash);
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

void MemoryTier::count_misses(std::span<const Key> keys, std::span<Lookup> reasons) {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    std::uint64_t hash = 0;
    std::memcpy(&hash, keys[i].bytes().data(), sizeof hash);
    const Block* const block = table_.find(keys[i]);
    const Lookup reason = block != nullptr && expired(*block) ? Lookup::kExpired
                          : policy_.seen(hash)                ? Lookup::kEvicted
                                                              : Lookup::kNew;
    if (!reasons.empty()) reasons[i] = reason;
    lookups_.add(reason, 1);
    distinct_.add(hash);
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
  const std::size_t footprint = entry_footprint(parts);
  Request request{.hash = 0, .size = footprint, .cost = parts.seconds};
  std::memcpy(&request.hash, parts.key.bytes().data(), sizeof request.hash);
  if (trace_.on()) [[unlikely]]
    trace_.write(request);

  std::unique_lock lock(mutex_);
  if (EntryPtr entry = known(parts.key)) return entry;
  if (!reserve(request)) return nullptr;
  Reservation reservation(*account_, footprint);
  if (footprint > kCopyUnderLock) lock.unlock();
  Block* block = nullptr;
  try {
    block = allocate_block(parts, footprint);
  } catch (...) {
    if (!lock) lock.lock();
    --coming_;
    throw;
  }
  block->account = account_;
  reservation.keep();
  if (!lock) lock.lock();
  return publish(block, scope);
}

EntryPtr MemoryTier::insert(EntryPtr entry, std::uint64_t scope) {
  Block& block = const_cast<Block&>(block_of(*entry));
  if (block.account != nullptr || block.owners.load(std::memory_order_acquire) != 1) {
    std::vector<TensorParts> tensors(block.tensors);
    for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i] = block.tensor(i);
    EntryPtr copy = insert(
        EntryParts{
            .key = block.key, .input = block.input(), .seconds = block.seconds, .tensors = tensors},
        scope);
    return copy ? copy : entry;
  }
  if (trace_.on()) [[unlikely]]
    trace_.write(block.policy.request);
  const std::lock_guard lock(mutex_);
  if (EntryPtr other = known(block.key)) return other;
  if (!reserve(block.policy.request)) return entry;
  block.account = account_;
  retain(block);
  return publish(&block, scope);
}

// Takes over the caller's reference to a block whose bytes are reserved.
EntryPtr MemoryTier::publish(Block* block, std::uint64_t scope) {
  EntryPtr entry(block);
  --coming_;
  // Only while the lock was away can another thread have stored the key.
  if (EntryPtr other = known(block->key)) return other;
  block->scope = scope;
  if (ttl_ != 0) block->expires.store(now() + ttl_, std::memory_order_relaxed);
  policy_.link(block->policy);
  retain(*block);
  table_.insert(*block);
  ++counted_.insertions;
  return entry;
}

// Takes request.size bytes of the account and a place in the index, or says that the entry is not
// stored.
bool MemoryTier::reserve(const Request& request) {
  learn();
  if (ttl_ != 0) sweep();
  collect();
  count_metadata();
  // While the index grows, the old one is there too.
  const std::size_t growth = table_.growth(coming_ + 1);
  const std::size_t wanted = static_cast<std::size_t>(request.size) + growth;
  const std::size_t fixed = metadata_ + pinned_;
  const std::size_t taken = account_->bytes.load(std::memory_order_acquire);
  const std::size_t excess = taken + wanted > bound_ ? taken + wanted - bound_ : 0;
  const bool fits = fixed < bound_ && wanted <= bound_ - fixed;
  if (!policy_.admit(request, fits ? excess : kNeverFits, victims_)) {
    ++counted_.rejections;
    return false;
  }
  evict_victims();
  if (!make_room(wanted)) {
    ++counted_.rejections;
    return false;
  }
  if (growth > 0) {
    limbo_.push_back({.tag = 0, .block = nullptr, .slots = table_.grow(coming_ + 1)});
    limbo_.back().tag = retire_epoch();
    count_metadata();
  }
  account_->bytes.fetch_add(request.size, std::memory_order_relaxed);
  ++coming_;
  return true;
}

// What policy_ has just unlinked leaves the index.
void MemoryTier::evict_victims() {
  for (PolicyNode* const victim : victims_) retire(Block::of(*victim));
  counted_.evictions += victims_.size();
  count_metadata();
}

// Waits a moment for readers to leave what was evicted, and evicts more where callers hold what
// should have gone. False if there still is no room.
bool MemoryTier::make_room(std::size_t wanted) {
  for (int rounds = 0; rounds < kRounds; ++rounds) {
    for (int tries = 0; tries < kPatience; ++tries) {
      collect();
      if (account_->bytes.load(std::memory_order_acquire) + wanted <= bound_) return true;
      if (limbo_.empty()) break;
      std::this_thread::yield();
    }
    const std::size_t taken = account_->bytes.load(std::memory_order_acquire) + wanted;
    policy_.evict(taken > bound_ ? taken - bound_ : 0, victims_);
    evict_victims();
  }
  collect();
  return account_->bytes.load(std::memory_order_acquire) + wanted <= bound_;
}

void MemoryTier::retire(Block& block) {
  table_.remove(block);
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
      const std::size_t bytes = Table::bytes(*retired.slots);
      metadata_ -= bytes;
      account_->bytes.fetch_sub(bytes, std::memory_order_relaxed);
      retired.slots.reset();
    }
  }
  limbo_.resize(kept);
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

// Keeps the account right about what is not in entries.
void MemoryTier::count_metadata() {
  std::size_t bytes = sizeof(*this) + table_.bytes() + policy_.memory() +
                      limbo_.capacity() * sizeof(Retired) +
                      victims_.capacity() * sizeof(PolicyNode*);
  for (const Retired& retired : limbo_) {
    if (retired.slots != nullptr) bytes += Table::bytes(*retired.slots);
  }
  if (bytes > metadata_) {
    account_->bytes.fetch_add(bytes - metadata_, std::memory_order_relaxed);
  } else {
    account_->bytes.fetch_sub(metadata_ - bytes, std::memory_order_relaxed);
  }
  metadata_ = bytes;
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
  make_room(0);
}

// --- Accounts

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
  stats.corrupt = corrupt_ - baseline_.corrupt;
  stats.bound = bound_;
  stats.bytes = account_->bytes;
  stats.metadata = metadata_;
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
  baseline_.corrupt = corrupt_;
  counted_ = {};
  distinct_.reset();
}

}  // namespace tensorkey::internal
