// The eviction policy of the memory tier: which entries are worth their bytes. It holds no values
// and makes no locks: the memory tier (src/store) and the simulator drive the same class, so what
// the simulator replays is what the cache does. docs/eviction.md explains it.
//
// A hit calls touch(), lock-free, on the entry's own node, and if sampled() says so hands the
// access to record() later, in a batch; now and then, count() says how many hits there have been.
// Everything else is called under the owner's lock:
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

#include "policy/jury.h"
#include "policy/node.h"
#include "policy/ranking.h"

namespace tensorkey::internal {

class Policy {
 public:
  enum class Unit {
    kBytes,    // memory() stays below about a sixteenth of the capacity, or 4 KiB
    kEntries,  // sizes are 1, so that the capacity says nothing about bytes
  };

  // capacity: what the linked nodes may take together.
  explicit Policy(std::uint64_t capacity, Unit unit = Unit::kBytes);
  Policy(const Policy&) = delete;
  Policy& operator=(const Policy&) = delete;

  // Lock-free, from any thread while the node is alive.
  void touch(PolicyNode& node) const noexcept { live_.touch(node); }
  // Lock-free: whether a hit on this key is also wanted by record().
  [[nodiscard]] bool sampled(std::uint64_t hash) const noexcept {
    return (hash >> 32) < threshold_.load(std::memory_order_relaxed);
  }
  // Lock-free: there have been so many hits, sampled or not. It is the clock by which frequencies
  // age; each thread may well save up some tens.
  void count(std::uint64_t hits) noexcept { hits_.fetch_add(hits, std::memory_order_relaxed); }

  void record(const Request& request);

  // An entry that was not there has been computed. Chooses and unlinks victims of at least
  // bytes_to_free bytes together, or returns false and leaves everything as it was: the new entry
  // is worth less, or so much is not linked. Counts as an access either way. victims is cleared
  // first.
  bool admit(const Request& request, std::uint64_t bytes_to_free,
             std::vector<PolicyNode*>& victims);

  void link(PolicyNode& node);    // REQUIRES: not linked
  void unlink(PolicyNode& node);  // REQUIRES: linked
  // `copy` takes the place of `node`, which is unlinked; they have the same request.
  void move(PolicyNode& node, PolicyNode& copy) noexcept { live_.move(node, copy); }
  void resize(std::uint64_t capacity);
  // Victims of at least `bytes` bytes, without a candidate: the bound shrank. All, if that is less.
  void evict(std::uint64_t bytes, std::vector<PolicyNode*>& victims);

  // Whether this key has been seen lately and is not linked (may rarely be wrong).
  [[nodiscard]] bool seen(std::uint64_t hash) const noexcept { return live_.seen(hash); }

  // Bytes of the policy's own structures; they count in the owner's bound.
  [[nodiscard]] std::size_t memory() const noexcept;
  // By how much that may grow when one more entry comes.
  [[nodiscard]] std::size_t growth() const noexcept { return live_.growth(); }
  // Under which the cache runs now; for tests and the curious.
  [[nodiscard]] const Tuning& tuning() const noexcept { return live_.tuning(); }

 private:
  void consider(const Request& request);

  Jury jury_;
  Ranking live_;
  Unit unit_;
  std::atomic<std::uint64_t> threshold_;  // the jury's
  std::atomic<std::uint64_t> hits_{0};    // that the clock has not seen
};

}  // namespace tensorkey::internal
