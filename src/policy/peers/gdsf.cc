// Greedy-Dual-Size-Frequency: Cherkasova, HP Labs HPL-98-69, 1998, with the cost that was measured.
// Who has the least frequency x cost by size leaves; what it had is added to all that come later.
#include <algorithm>
#include <set>
#include <utility>

#include "policy/peers/peer.h"

namespace tensorkey::internal {
namespace {

class Gdsf : public Peer {
 public:
  explicit Gdsf(const Scope& scope) : free_(scope.capacity), entries_(scope.keys) {
    capacity_ = scope.capacity;
  }

  bool access(const Item& item) override {
    Entry& entry = entries_[item.id];
    if (entry.frequency > 0) {
      order_.erase({entry.priority, item.id});
      ++entry.frequency;
      place(item.id);
      return true;
    }
    if (item.size > capacity_) {
      ++rejections_;
      return false;
    }
    while (free_ < item.size) {
      const auto [priority, id] = *order_.begin();
      order_.erase(order_.begin());
      age_ = priority;
      free_ += entries_[id].size;
      entries_[id].frequency = 0;
      ++evictions_;
    }
    free_ -= item.size;
    entry = {.frequency = 1, .size = item.size, .cost = item.cost};
    place(item.id);
    return false;
  }

 private:
  struct Entry {
    std::uint64_t frequency = 0;
    std::uint64_t size = 1;
    double cost = 1;
    double priority = 0;
  };

  void place(std::uint32_t id) {
    Entry& entry = entries_[id];
    const double density = entry.cost / static_cast<double>(std::max<std::uint64_t>(1, entry.size));
    entry.priority = age_ + static_cast<double>(entry.frequency) * density;
    order_.emplace(entry.priority, id);
  }

  std::uint64_t free_;
  std::uint64_t capacity_;
  std::vector<Entry> entries_;
  std::set<std::pair<double, std::uint32_t>> order_;
  double age_ = 0;
};

}  // namespace

std::unique_ptr<Peer> make_gdsf(const Scope& scope) { return std::make_unique<Gdsf>(scope); }

}  // namespace tensorkey::internal
