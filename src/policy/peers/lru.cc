// LRU, and its opposite: who came first stays.
#include "policy/peers/peer.h"
#include "policy/peers/queue.h"

namespace tensorkey::internal {
namespace {

class Lru : public Peer {
 public:
  explicit Lru(const Scope& scope) : capacity_(scope.capacity), queue_(1, scope.keys) {}

  bool access(const Item& item) override {
    if (queue_.where(item.id) == 0) {
      queue_.move(0, item.id);
      return true;
    }
    if (item.size > capacity_) {
      ++rejections_;
      return false;
    }
    while (queue_.bytes(0) + item.size > capacity_) {
      queue_.remove(queue_.tail(0));
      ++evictions_;
    }
    queue_.push(0, item.id, item.size);
    return false;
  }

 private:
  std::uint64_t capacity_;
  QueueSet queue_;
};

class NeverEvict : public Peer {
 public:
  explicit NeverEvict(const Scope& scope) : free_(scope.capacity), resident_(scope.keys) {}

  bool access(const Item& item) override {
    if (resident_[item.id]) return true;
    if (item.size > free_) {
      ++rejections_;
      return false;
    }
    free_ -= item.size;
    resident_[item.id] = true;
    return false;
  }

 private:
  std::uint64_t free_;
  std::vector<bool> resident_;
};

}  // namespace

std::unique_ptr<Peer> make_lru(const Scope& scope) { return std::make_unique<Lru>(scope); }

std::unique_ptr<Peer> make_never_evict(const Scope& scope) {
  return std::make_unique<NeverEvict>(scope);
}

}  // namespace tensorkey::internal
