// SIEVE: Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024. A queue of arrivals, one bit an
// entry, and a hand that moves from the tail to the head, clears bits and evicts who has none.
#include "policy/peers/peer.h"
#include "policy/peers/queue.h"

namespace tensorkey::internal {
namespace {

class Sieve : public Peer {
 public:
  explicit Sieve(const Scope& scope)
      : capacity_(scope.capacity), queue_(1, scope.keys), visited_(scope.keys) {}

  bool access(const Item& item) override {
    if (queue_.where(item.id) == 0) {
      visited_[item.id] = true;
      return true;
    }
    if (item.size > capacity_) {
      ++rejections_;
      return false;
    }
    while (queue_.bytes(0) + item.size > capacity_) evict();
    queue_.push(0, item.id, item.size);
    visited_[item.id] = false;
    return false;
  }

 private:
  void evict() {
    if (hand_ == QueueSet::kEnd) hand_ = queue_.tail(0);
    while (visited_[hand_]) {
      visited_[hand_] = false;
      hand_ = queue_.ahead(hand_);
      if (hand_ == QueueSet::kEnd) hand_ = queue_.tail(0);
    }
    const std::uint32_t victim = hand_;
    hand_ = queue_.ahead(victim);
    queue_.remove(victim);
    ++evictions_;
  }

  std::uint64_t capacity_;
  QueueSet queue_;
  std::vector<bool> visited_;
  std::uint32_t hand_ = QueueSet::kEnd;
};

}  // namespace

std::unique_ptr<Peer> make_sieve(const Scope& scope) { return std::make_unique<Sieve>(scope); }

}  // namespace tensorkey::internal
