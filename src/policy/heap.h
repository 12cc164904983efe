// A heap of entries, the least first. Each entry knows its slot, so that any can be taken out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "policy/node.h"

namespace tensorkey::internal {

class NodeHeap {
 public:
  [[nodiscard]] bool empty() const noexcept { return items_.empty(); }
  [[nodiscard]] std::size_t size() const noexcept { return items_.size(); }
  [[nodiscard]] PolicyNode& top() const noexcept { return *items_.front().node; }
  [[nodiscard]] double top_rank() const noexcept { return items_.front().rank; }
  [[nodiscard]] std::size_t memory() const noexcept { return items_.capacity() * sizeof(Item); }
  // By how much that grows with the next node.
  [[nodiscard]] std::size_t growth() const noexcept {
    return items_.size() < items_.capacity() ? 0 : std::max(memory(), sizeof(Item));
  }

  void push(PolicyNode& node, double rank);
  void remove(PolicyNode& node);  // REQUIRES: it is in this heap
  // Puts another node in the place of one.
  void replace(const PolicyNode& node, PolicyNode& copy) noexcept {
    items_[node.slot].node = &copy;
    copy.slot = node.slot;
  }
  void update_top(double rank) { sink(0, {rank, items_.front().node}); }

  // Gives each entry the rank that f(node) says.
  template <class F>
  void rerank(F&& f) {
    for (Item& item : items_) item.rank = f(*item.node);
    for (std::size_t i = items_.size(); i-- > 0;) sink(i, items_[i]);
  }

 private:
  struct Item {
    double rank;
    PolicyNode* node;
  };

  // Four children share a cache line; half the depth of a binary heap.
  static constexpr std::size_t kWays = 4;

  void put(std::size_t slot, Item item) {
    items_[slot] = item;
    item.node->slot = static_cast<std::uint32_t>(slot);
  }
  void rise(std::size_t slot, Item item);
  void sink(std::size_t slot, Item item);

  std::vector<Item> items_;
};

}  // namespace tensorkey::internal
