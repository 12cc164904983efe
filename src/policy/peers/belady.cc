// Belady's MIN with bypass: who is needed last leaves, which may be the newcomer itself. (Belady,
// IBM Systems Journal 1966.) The optimum if all sizes and costs are equal; else only a reference.
#include <set>
#include <utility>

#include "policy/peers/peer.h"

namespace tensorkey::internal {
namespace {

class Belady : public Peer {
 public:
  explicit Belady(const Scope& scope)
      : capacity_(scope.capacity), free_(scope.capacity), next_(scope.keys), sizes_(scope.keys) {}

  bool access(const Item& item) override {
    if (next_[item.id] != 0) {
      order_.erase({next_[item.id], item.id});
      order_.emplace(item.next, item.id);
      next_[item.id] = item.next;
      return true;
    }
    if (item.size > capacity_) {
      ++rejections_;
      return false;
    }
    next_[item.id] = item.next;
    sizes_[item.id] = item.size;
    order_.emplace(item.next, item.id);
    std::uint64_t needed = item.size;
    while (free_ < needed) {
      const auto last = std::prev(order_.end());
      const std::uint32_t id = last->second;
      order_.erase(last);
      next_[id] = 0;
      if (id == item.id) {
        ++rejections_;
        return false;
      }
      free_ += sizes_[id];
      ++evictions_;
    }
    free_ -= needed;
    return false;
  }

 private:
  std::uint64_t capacity_;
  std::uint64_t free_;
  std::vector<std::uint64_t> next_;  // 0: not resident, since position 0 is nobody's next
  std::vector<std::uint64_t> sizes_;
  std::set<std::pair<std::uint64_t, std::uint32_t>> order_;
};

}  // namespace

std::unique_ptr<Peer> make_belady(const Scope& scope) { return std::make_unique<Belady>(scope); }

}  // namespace tensorkey::internal
