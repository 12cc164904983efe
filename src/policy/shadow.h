// A shadow cache: how the cache would fare under another tuning. It sees the accesses to a hashed
// sample of the keys, has the same share of the capacity, and holds no values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "policy/ranking.h"

namespace tensorkey::internal {

class Shadow {
 public:
  Shadow(std::uint64_t capacity, const Tuning& tuning);

  // Whether it would have been a hit.
  bool access(const Request& request);
  void resize(std::uint64_t capacity);

  // Forgets the keys that `keep` refuses: the sample has become smaller.
  template <class F>
  void thin(F&& keep) {
    std::vector<PolicyNode*> gone;
    for (PolicyNode* node : table_) {
      if (node != nullptr && !keep(node->request.hash)) gone.push_back(node);
    }
    for (PolicyNode* node : gone) {
      ranking_.unlink(*node);
      forget(*node);
    }
  }

  [[nodiscard]] const Tuning& tuning() const noexcept { return ranking_.tuning(); }
  [[nodiscard]] std::size_t entries() const noexcept { return ranking_.entries(); }
  [[nodiscard]] std::size_t memory() const noexcept;

 private:
  [[nodiscard]] std::size_t home(std::uint64_t hash) const noexcept;
  [[nodiscard]] std::size_t find(std::uint64_t hash) const noexcept;
  void insert(const Request& request);
  void forget(PolicyNode& node);
  void grow();

  std::uint64_t capacity_;
  std::uint64_t bytes_ = 0;
  Ranking ranking_;
  std::deque<PolicyNode> nodes_;  // where they are stays
  std::vector<PolicyNode*> free_;
  std::vector<PolicyNode*> table_;  // by hash, linear probing, at most half full
  std::vector<PolicyNode*> victims_;
};

}  // namespace tensorkey::internal
