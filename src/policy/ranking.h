// Entries in the order of what they are worth, under one setting: a window, from which the least
// recently used entry leaves, and a main part, from which the least valuable does. The value of an
// entry is its frequency times its cost by its size. An entry that leaves the window must be worth
// more than the victims that make room for it in the main part. (W-TinyLFU, Einziger et al., ACM
// Transactions on Storage 2017, with another order in the main part; docs/eviction.md has the
// reasons.)
//
// Frequencies halve once in a period. So a frequency f, last changed in period p, stays as it is
// stored, as log2(f) + p, and the order of two entries changes by hits only. Nothing moves on a
// hit: an entry that was hit since is examined, and put where it belongs, when it comes up as a
// victim.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "policy/ghosts.h"
#include "policy/heap.h"
#include "policy/node.h"

namespace tensorkey::internal {

struct Tuning {
  double window = 0.01;   // share of the capacity
  double margin = 1;      // what a candidate's frequency must be more than its victims'
  double period = 10;     // of ageing: accesses by resident entries
  double recency = 1e-4;  // octaves that an entry loses against others in one turnover, unless hit
};

class Ranking {
 public:
  // ghost_limit: bytes for the table of those that are not there.
  Ranking(std::uint64_t capacity, const Tuning& tuning, std::size_t ghost_limit);

  // Lock-free.
  void touch(PolicyNode& node) const noexcept {
    const std::uint32_t stamp = clock_.load(std::memory_order_relaxed) << kCountBits;
    const std::uint32_t marks = node.marks.load(std::memory_order_relaxed);
    const std::uint32_t count = marks & kCountMask;
    const std::uint32_t next = stamp | (count == kCountMask ? count : count + 1);
    // A hot entry is written once a tick, so that it stays in the caches of all cores.
    if (next != marks) node.marks.store(next, std::memory_order_relaxed);
  }

  // Accesses have happened.
  void advance(double accesses) noexcept;

  bool admit(const Request& request, std::uint64_t bytes_to_free,
             std::vector<PolicyNode*>& victims);
  void link(PolicyNode& node);
  void unlink(PolicyNode& node);
  void move(PolicyNode& node, PolicyNode& copy) noexcept;
  void evict(std::uint64_t bytes, std::vector<PolicyNode*>& victims);
  void resize(std::uint64_t capacity);
  void tune(const Tuning& tuning);

  void limit_ghosts(std::size_t bytes) noexcept { ghost_limit_ = bytes; }

  [[nodiscard]] bool seen(std::uint64_t hash) const noexcept;
  [[nodiscard]] std::size_t entries() const noexcept { return window_.size() + main_.size(); }
  [[nodiscard]] std::size_t memory() const noexcept;
  [[nodiscard]] std::size_t growth() const noexcept;  // of it, by one more entry, at most
  [[nodiscard]] const Tuning& tuning() const noexcept { return tuning_; }

 private:
  static constexpr std::uint32_t kCountBits = 4;
  static constexpr std::uint32_t kCountMask = (1u << kCountBits) - 1;

  [[nodiscard]] double now() const noexcept;
  [[nodiscard]] double frequency(const PolicyNode& node) const noexcept;
  [[nodiscard]] std::uint64_t last_hit(const PolicyNode& node) const noexcept;
  [[nodiscard]] double window_rank(const PolicyNode& node) const noexcept;
  [[nodiscard]] double main_rank(const PolicyNode& node) const noexcept;
  bool fold(PolicyNode& node) noexcept;
  PolicyNode* least(NodeHeap& heap);
  void enter_main(PolicyNode& node);
  void drop(PolicyNode& node, std::vector<PolicyNode*>& victims);
  bool displace(double worth, std::uint64_t bytes, std::vector<PolicyNode*>& victims);
  void spill(std::vector<PolicyNode*>& victims, std::uint64_t& freed, std::uint64_t wanted);
  [[nodiscard]] double worth(double frequency, const Request& request) const noexcept;
  void grow_ghosts();

  std::uint64_t capacity_;
  std::size_t ghost_limit_;
  Tuning tuning_;
  std::uint64_t window_capacity_ = 0;
  std::uint64_t window_bytes_ = 0;
  std::uint64_t main_bytes_ = 0;
  NodeHeap window_;
  NodeHeap main_;
  GhostTable ghosts_;
  std::atomic<std::uint32_t> clock_{1};  // the low bits of tick_
  std::uint64_t tick_ = 1;               // a sixty-fourth of a turnover
  double pending_ = 0;                   // accesses since the last tick
  double era_ = 0;                       // periods so far, at tick era_tick_
  std::uint64_t era_tick_ = 0;
  std::vector<PolicyNode*> taken_;  // scratch of displace()
};

}  // namespace tensorkey::internal
