// The memory store: a hash table of nodes that also stand in a SIEVE queue, under one lock.
//
// SIEVE (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024): new entries join at the head; the
// hand moves from the tail towards the head, clears the bit of each visited node it passes and
// evicts the first that has none. A hit only sets a bit, so nothing is moved.
#include <tensorkey/error.h>
#include <tensorkey/store.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <string>
#include <unordered_map>

namespace tensorkey {
namespace {

// Beside the entry's own bytes: the control block of its shared_ptr, a list node, a table node and
// its share of the buckets, each with the allocator's rounding.
constexpr std::size_t kNodeBytes = 192;

struct Node {
  Key key;
  EntryPtr entry;
  std::size_t footprint;
  bool visited;
};

}  // namespace

std::size_t Entry::footprint() const noexcept {
  return sizeof(Entry) + data.capacity() + shape.capacity() * sizeof(std::int64_t) + kNodeBytes;
}

struct MemoryStore::Impl {
  using Queue = std::list<Node>;  // front: newest

  // REQUIRES: the lock, and at least one node.
  void evict_one() {
    if (hand == queue.end()) hand = std::prev(queue.end());
    while (hand->visited) {
      hand->visited = false;
      hand = hand == queue.begin() ? std::prev(queue.end()) : std::prev(hand);
    }
    const auto victim = hand;
    // end() says: begin at the tail again.
    hand = victim == queue.begin() ? queue.end() : std::prev(victim);
    stats.bytes -= victim->footprint;
    ++stats.evictions;
    table.erase(victim->key);
    queue.erase(victim);
  }

  EntryPtr find(const Key& key) {
    const auto found = table.find(key);
    if (found == table.end()) return nullptr;
    found->second->visited = true;
    return found->second->entry;
  }

  std::mutex mutex;
  Queue queue;
  Queue::iterator hand = queue.end();
  std::unordered_map<Key, Queue::iterator> table;
  StoreStats stats;
};

MemoryStore::MemoryStore(std::size_t bound) : impl_(std::make_unique<Impl>()) {
  if (bound == 0) {
    throw Error(ErrorCode::kInvalidArgument,
                "[MemoryStore] the bound is 0 bytes; expected at least 1");
  }
  impl_->stats.bound = bound;
}

MemoryStore::~MemoryStore() = default;

EntryPtr MemoryStore::find(const Key& key) {
  const std::lock_guard lock(impl_->mutex);
  return impl_->find(key);
}

void MemoryStore::find(std::span<const Key> keys, std::span<EntryPtr> out) {
  if (keys.size() != out.size()) {
    throw Error(ErrorCode::kInvalidArgument, "[MemoryStore::find] " + std::to_string(keys.size()) +
                                                 " keys, but room for " +
                                                 std::to_string(out.size()) + " entries");
  }
  const std::lock_guard lock(impl_->mutex);
  std::ranges::transform(keys, out.begin(), [&](const Key& key) { return impl_->find(key); });
}

bool MemoryStore::insert(const Key& key, EntryPtr entry) {
  if (entry == nullptr) {
    throw Error(ErrorCode::kInvalidArgument, "[MemoryStore::insert] the entry is null");
  }
  const std::size_t footprint = entry->footprint();
  const std::lock_guard lock(impl_->mutex);
  Impl& self = *impl_;
  if (footprint > self.stats.bound) {
    ++self.stats.rejections;
    return false;
  }
  if (self.table.contains(key)) return true;
  // Both nodes are made before anything is evicted, so that running out of memory changes nothing.
  Impl::Queue fresh;
  fresh.push_back(
      {.key = key, .entry = std::move(entry), .footprint = footprint, .visited = false});
  self.table.emplace(key, fresh.begin());
  while (self.stats.bytes + footprint > self.stats.bound) self.evict_one();
  self.queue.splice(self.queue.begin(), fresh);
  self.stats.bytes += footprint;
  ++self.stats.insertions;
  return true;
}

void MemoryStore::clear() {
  Impl::Queue dropped;  // freed after the lock
  const std::lock_guard lock(impl_->mutex);
  impl_->table.clear();
  dropped.swap(impl_->queue);
  impl_->hand = impl_->queue.end();
  impl_->stats.bytes = 0;
}

StoreStats MemoryStore::stats() const {
  const std::lock_guard lock(impl_->mutex);
  StoreStats stats = impl_->stats;
  stats.entries = impl_->table.size();
  return stats;
}

}  // namespace tensorkey
