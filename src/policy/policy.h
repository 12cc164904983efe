// The eviction policy of the memory tier: which entries are worth their bytes. It holds no values
// and makes no locks: the memory tier (src/store) and the simulator drive the same class, so what
// the simulator replays is what the cache does.
//
// A hit calls touch(), lock-free, on the entry's own node, and if sampled() says so hands the
// access to record() later, in a batch. Everything else is called under the owner's lock:
//
//   if (!policy.admit(request, bytes_to_free, victims)) return;   // not worth its room
//   for (PolicyNode* victim : victims) free(victim);              // already unlinked
//   policy.link(node);                                            // the new entry is in
//
// Everything is deterministic: the same calls give the same decisions, in every process.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "policy/node.h"
#include "policy/ranking.h"

namespace tensorkey::internal {

class Policy {
 public:
  // capacity: the bytes that the linked nodes may take together.
  explicit Policy(std::uint64_t capacity);
  Policy(const Policy&) = delete;
  Policy& operator=(const Policy&) = delete;

  // Lock-free, from any thread while the node is alive.
  void touch(PolicyNode& node) const noexcept { live_.touch(node); }
  // Lock-free: whether a hit on this key is also wanted by record().
  [[nodiscard]] bool sampled(std::uint64_t hash) const noexcept {
    return (hash >> 32) < threshold_.load(std::memory_order_relaxed);
  }

  void record(const Request& request);

  // An entry that was not there has been computed. Chooses and unlinks victims of at least
  // bytes_to_free bytes together, or returns false and leaves everything as it was: the new entry
  // is worth less. Counts as an access either way. victims is cleared first.
  bool admit(const Request& request, std::uint64_t bytes_to_free,
             std::vector<PolicyNode*>& victims);

  void link(PolicyNode& node);    // REQUIRES: not linked
  void unlink(PolicyNode& node);  // REQUIRES: linked
  void resize(std::uint64_t capacity);
  // Victims of at least `bytes` bytes, without a candidate: the bound shrank.
  void evict(std::uint64_t bytes, std::vector<PolicyNode*>& victims);

  // Whether this key has been seen lately and is not linked (may rarely be wrong).
  [[nodiscard]] bool seen(std::uint64_t hash) const noexcept { return live_.seen(hash); }

  // Bytes of the policy's own structures; they count in the owner's bound.
  [[nodiscard]] std::size_t memory() const noexcept;

 private:
  Ranking live_;
  // Of the upper half of a hash: which keys are in the sample. 2^32: all.
  std::atomic<std::uint64_t> threshold_{std::uint64_t{1} << 32};
};

}  // namespace tensorkey::internal
