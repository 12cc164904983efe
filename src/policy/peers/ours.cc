// Our own policy, driven as the memory tier drives it: hits are handed over in batches.
#include <algorithm>
#include <memory>
#include <utility>

#include "policy/peers/peer.h"
#include "policy/policy.h"

namespace tensorkey::internal {
namespace {

constexpr std::size_t kBatch = 64;

// Keys of a trace may be consecutive numbers; the policy wants uniform bits (splitmix64).
std::uint64_t spread(std::uint64_t key) {
  key += 0x9e3779b97f4a7c15u;
  key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9u;
  key = (key ^ (key >> 27)) * 0x94d049bb133111ebu;
  return key ^ (key >> 31);
}

// Entries of a few bytes cannot be meant: the capacity is a number of entries then.
Policy::Unit unit_of(const Scope& scope) {
  const bool bytes = scope.capacity / std::max<std::uint64_t>(1, scope.entries) >= 64;
  return bytes ? Policy::Unit::kBytes : Policy::Unit::kEntries;
}

class Ours : public Peer {
 public:
  explicit Ours(const Scope& scope)

      : policy_(scope.capacity, unit_of(scope)),
        free_(scope.capacity),
        nodes_(new PolicyNode[scope.keys]) {}

  bool access(const Item& item) override {
    PolicyNode& node = nodes_[item.id];
    if (node.place != PolicyNode::kNone) {
      policy_.touch(node);
      ++hits_;
      if (policy_.sampled(node.request.hash)) {
        batch_.push_back(node.request);
        if (batch_.size() == kBatch) flush();
      }
      return true;
    }
    flush();
    const Request request{.hash = spread(item.key), .size = item.size, .cost = item.cost};
    const std::uint64_t needed = item.size > free_ ? item.size - free_ : 0;
    if (!policy_.admit(request, needed, victims_)) {
      ++rejections_;
      return false;
    }
    for (const PolicyNode* victim : victims_) free_ += victim->request.size;
    evictions_ += victims_.size();
    free_ -= item.size;
    node.request = request;
    policy_.link(node);
    return false;
  }

 private:
  void flush() {
    policy_.count(std::exchange(hits_, 0));
    for (const Request& request : batch_) policy_.record(request);
    batch_.clear();
  }

  Policy policy_;
  std::uint64_t free_;
  std::unique_ptr<PolicyNode[]> nodes_;
  std::uint64_t hits_ = 0;  // not yet counted
  std::vector<Request> batch_;
  std::vector<PolicyNode*> victims_;
};

}  // namespace

std::unique_ptr<Peer> make_ours(const Scope& scope) { return std::make_unique<Ours>(scope); }

}  // namespace tensorkey::internal
