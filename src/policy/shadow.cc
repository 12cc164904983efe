#include "policy/shadow.h"

#include <limits>

namespace tensorkey::internal {

Shadow::Shadow(std::uint64_t capacity, const Tuning& tuning)
    : capacity_(capacity),
      ranking_(capacity, tuning, std::numeric_limits<std::size_t>::max()),
      table_(16) {}

std::size_t Shadow::home(std::uint64_t hash) const noexcept {
  return static_cast<std::size_t>((hash * 0xd6e8feb86659fd93u) >> 32) & (table_.size() - 1);
}

// The slot of the key, or the free slot where it would stand.
std::size_t Shadow::find(std::uint64_t hash) const noexcept {
  std::size_t slot = home(hash);
  while (table_[slot] != nullptr && table_[slot]->request.hash != hash) {
    slot = (slot + 1) & (table_.size() - 1);
  }
  return slot;
}

bool Shadow::access(const Request& request) {
  if (PolicyNode* node = table_[find(request.hash)]; node != nullptr) {
    ranking_.touch(*node);
    ranking_.advance(1);
    return true;
  }
  const std::uint64_t room = capacity_ > bytes_ ? capacity_ - bytes_ : 0;
  const std::uint64_t needed = request.size > room ? request.size - room : 0;
  if (ranking_.admit(request, needed, victims_)) {
    for (PolicyNode* victim : victims_) forget(*victim);
    insert(request);
  }
  return false;
}

void Shadow::insert(const Request& request) {
  if (2 * (entries() + 1) > table_.size()) grow();
  if (free_.empty()) free_.push_back(&nodes_.emplace_back());
  PolicyNode* node = free_.back();
  free_.pop_back();
  node->request = request;
  table_[find(request.hash)] = node;
  bytes_ += request.size;
  ranking_.link(*node);
}

// Takes a node that is unlinked already out of the table, and closes the gap.
void Shadow::forget(PolicyNode& node) {
  bytes_ -= node.request.size;
  const std::size_t mask = table_.size() - 1;
  std::size_t gap = find(node.request.hash);
  table_[gap] = nullptr;
  for (std::size_t slot = (gap + 1) & mask; table_[slot] != nullptr; slot = (slot + 1) & mask) {
    // It may move to the gap unless its home lies behind the gap.
    const std::size_t start = home(table_[slot]->request.hash);
    if (((slot - start) & mask) >= ((slot - gap) & mask)) {
      std::swap(table_[gap], table_[slot]);
      gap = slot;
    }
  }
  free_.push_back(&node);
}

void Shadow::grow() {
  std::vector<PolicyNode*> old(table_.size() * 2);
  old.swap(table_);
  for (PolicyNode* node : old) {
    if (node != nullptr) table_[find(node->request.hash)] = node;
  }
}

void Shadow::resize(std::uint64_t capacity) {
  capacity_ = capacity;
  ranking_.resize(capacity);
  if (bytes_ <= capacity) return;
  ranking_.evict(bytes_ - capacity, victims_);
  for (PolicyNode* victim : victims_) forget(*victim);
}

std::size_t Shadow::memory() const noexcept {
  return ranking_.memory() + nodes_.size() * sizeof(PolicyNode) +
         (free_.capacity() + table_.capacity() + victims_.capacity()) * sizeof(void*);
}

}  // namespace tensorkey::internal
