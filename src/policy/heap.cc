#include "policy/heap.h"

#include <algorithm>

namespace tensorkey::internal {

void NodeHeap::push(PolicyNode& node, double rank) {
  items_.push_back({rank, &node});
  rise(items_.size() - 1, items_.back());
}

void NodeHeap::remove(PolicyNode& node) {
  const std::size_t slot = node.slot;
  const Item last = items_.back();
  items_.pop_back();
  if (last.node == &node) return;
  if (slot > 0 && last.rank < items_[(slot - 1) / kWays].rank) {
    rise(slot, last);
  } else {
    sink(slot, last);
  }
}

void NodeHeap::rise(std::size_t slot, Item item) {
  while (slot > 0) {
    const std::size_t parent = (slot - 1) / kWays;
    if (!(item.rank < items_[parent].rank)) break;
    put(slot, items_[parent]);
    slot = parent;
  }
  put(slot, item);
}

void NodeHeap::sink(std::size_t slot, Item item) {
  for (;;) {
    const std::size_t first = slot * kWays + 1;
    if (first >= items_.size()) break;
    const std::size_t last = std::min(first + kWays, items_.size());
    std::size_t least = first;
    for (std::size_t child = first + 1; child < last; ++child) {
      if (items_[child].rank < items_[least].rank) least = child;
    }
    if (!(items_[least].rank < item.rank)) break;
    put(slot, items_[least]);
    slot = least;
  }
  put(slot, item);
}

}  // namespace tensorkey::internal
