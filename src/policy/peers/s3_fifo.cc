// S3-FIFO: Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023. A small queue
// of a tenth of the bytes, a main queue with second chances, and a queue of ghosts.
#include <algorithm>

#include "policy/peers/peer.h"
#include "policy/peers/queue.h"

namespace tensorkey::internal {
namespace {

enum : std::size_t { kSmall, kMain, kGhost };

class S3Fifo : public Peer {
 public:
  explicit S3Fifo(const Scope& scope)
      : capacity_(scope.capacity),
        small_(std::max<std::uint64_t>(1, scope.capacity / 10)),
        queues_(3, scope.keys),
        hits_(scope.keys) {}

  bool access(const Item& item) override {
    const int place = queues_.where(item.id);
    if (place == kSmall || place == kMain) {
      hits_[item.id] = std::min(hits_[item.id] + 1, 3);
      return true;
    }
    if (item.size > capacity_) {
      ++rejections_;
      return false;
    }
    while (queues_.bytes(kSmall) + queues_.bytes(kMain) + item.size > capacity_) evict();
    const bool ghost = queues_.where(item.id) == kGhost;
    if (ghost) queues_.remove(item.id);
    queues_.push(ghost ? kMain : kSmall, item.id, item.size);
    hits_[item.id] = 0;
    return false;
  }

 private:
  void evict() {
    if (queues_.bytes(kSmall) >= small_ || queues_.count(kMain) == 0) {
      evict_small();
    } else {
      evict_main();
    }
  }

  // Who was asked for more than once moves to the main queue; the next one leaves.
  void evict_small() {
    while (queues_.count(kSmall) > 0) {
      const std::uint32_t id = queues_.tail(kSmall);
      if (hits_[id] > 1) {
        hits_[id] = 0;
        queues_.move(kMain, id);
        continue;
      }
      queues_.move(kGhost, id);
      // As many bytes of ghosts as the main queue may hold.
      while (queues_.bytes(kGhost) > capacity_ - small_ && queues_.count(kGhost) > 1) {
        queues_.remove(queues_.tail(kGhost));
      }
      ++evictions_;
      return;
    }
  }

  void evict_main() {
    for (;;) {
      const std::uint32_t id = queues_.tail(kMain);
      if (hits_[id] == 0) {
        queues_.remove(id);
        ++evictions_;
        return;
      }
      --hits_[id];
      queues_.move(kMain, id);
    }
  }

  std::uint64_t capacity_;
  std::uint64_t small_;
  QueueSet queues_;
  std::vector<int> hits_;
};

}  // namespace

std::unique_ptr<Peer> make_s3_fifo(const Scope& scope) { return std::make_unique<S3Fifo>(scope); }

}  // namespace tensorkey::internal
