// W-TinyLFU: Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy",
// ACM Transactions on Storage 2017: an LRU window, a segmented main part, and a sketch of
// frequencies that decides which of the two victims stays. Sizes by aggregated victims: Einziger et
// al., "Lightweight Robust Size Aware Cache Management", ACM TOS 2022. The window moves by hill
// climbing: Einziger et al., "Adaptive Software Cache Management", Middleware 2018.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "policy/peers/peer.h"
#include "policy/peers/queue.h"

namespace tensorkey::internal {
namespace {

// A count-min sketch with counters of four bits: sixteen counters an entry in four rows; all halve
// after ten increments an entry.
class Sketch {
 public:
  explicit Sketch(std::uint64_t entries)
      : width_(std::bit_ceil(std::max<std::uint64_t>(16, entries * 4))),
        limit_(10 * std::max<std::uint64_t>(1, entries)),
        counters_(4 * width_) {}

  [[nodiscard]] int estimate(std::uint64_t key) const {
    int least = 15;
    for (std::size_t row = 0; row < 4; ++row) {
      least = std::min<int>(least, counters_[place(key, row)]);
    }
    return least;
  }

  void add(std::uint64_t key) {
    bool added = false;
    for (std::size_t row = 0; row < 4; ++row) {
      std::uint8_t& counter = counters_[place(key, row)];
      if (counter < 15) {
        ++counter;
        added = true;
      }
    }
    if (added && ++additions_ >= limit_) {
      for (std::uint8_t& counter : counters_) counter /= 2;
      additions_ /= 2;
    }
  }

 private:
  [[nodiscard]] std::size_t place(std::uint64_t key, std::size_t row) const {
    constexpr std::array<std::uint64_t, 4> kSeeds = {0xc3a5c85c97cb3127u, 0xb492b66fbe98f273u,
                                                     0x9ae16a3b2f90404fu, 0xcbf29ce484222325u};
    std::uint64_t hash = (key + kSeeds[row]) * kSeeds[row];
    hash = (hash ^ (hash >> 32)) * 0x9e3779b97f4a7c15u;
    return row * width_ + ((hash >> 32) & (width_ - 1));
  }

  std::uint64_t width_;
  std::uint64_t limit_;
  std::uint64_t additions_ = 0;
  std::vector<std::uint8_t> counters_;
};

enum : std::size_t { kWindow, kProbation, kProtected };

class WTinyLfu : public Peer {
 public:
  WTinyLfu(const Scope& scope, TinyLfu kind)
      : kind_(kind),
        capacity_(scope.capacity),
        sketch_(scope.entries),
        queues_(3, scope.keys),
        keys_(scope.keys),
        costs_(scope.keys),
        sample_(10 * std::max<std::uint64_t>(1, scope.entries)) {
    set_window(0.01 * static_cast<double>(capacity_));
    step_ = -0.0625 * static_cast<double>(capacity_);
  }

  bool access(const Item& item) override {
    keys_[item.id] = item.key;
    sketch_.add(item.key);
    const bool hit = queues_.where(item.id) >= 0;
    if (hit) {
      promote(item.id);
    } else if (item.size > capacity_) {
      ++rejections_;
    } else {
      costs_[item.id] = item.cost;
      queues_.push(kWindow, item.id, item.size);
      settle();
    }
    if (kind_ == TinyLfu::kClimber) climb(hit);
    return hit;
  }

 private:
  [[nodiscard]] double worth(std::uint32_t id) const {
    return sketch_.estimate(keys_[id]) * (kind_ == TinyLfu::kCost ? costs_[id] : 1.0);
  }
  [[nodiscard]] std::uint64_t main_bytes() const {
    return queues_.bytes(kProbation) + queues_.bytes(kProtected);
  }

  void promote(std::uint32_t id) {
    if (queues_.where(id) == kWindow) {
      queues_.move(kWindow, id);
      return;
    }
    queues_.move(kProtected, id);
    demote();
  }

  void demote() {
    const std::uint64_t limit = (capacity_ - window_) / 5 * 4 + (capacity_ - window_) % 5 * 4 / 5;
    while (queues_.bytes(kProtected) > limit && queues_.count(kProtected) > 1) {
      queues_.move(kProbation, queues_.tail(kProtected));
    }
  }

  // What the window has too much of must win its place in the main part.
  void settle() {
    while (queues_.bytes(kWindow) > window_ && queues_.count(kWindow) > 0) {
      const std::uint32_t candidate = queues_.tail(kWindow);
      if (admit(candidate)) {
        queues_.move(kProbation, candidate);
      } else {
        queues_.remove(candidate);
        ++evictions_;
      }
    }
    while (main_bytes() + queues_.bytes(kWindow) > capacity_) evict_main();
  }

  void evict_main() {
    const std::size_t from = queues_.count(kProbation) > 0 ? kProbation : kProtected;
    queues_.remove(queues_.tail(from));
    ++evictions_;
  }

  bool admit(std::uint32_t candidate) {
    const std::uint64_t size = queues_.size(candidate);
    const std::uint64_t main = capacity_ - window_;
    if (size > main) return false;
    const std::uint64_t needed = main_bytes() + size > main ? main_bytes() + size - main : 0;
    const double gain = worth(candidate);
    victims_.clear();
    double loss = 0;
    std::uint64_t freed = 0;
    for (const std::size_t segment : {kProbation, kProtected}) {
      for (std::uint32_t id = queues_.tail(segment); freed < needed && id != QueueSet::kEnd;
           id = queues_.ahead(id)) {
        loss += worth(id);
        if (!(gain > loss)) return false;
        freed += queues_.size(id);
        victims_.push_back(id);
      }
    }
    for (const std::uint32_t id : victims_) queues_.remove(id);
    evictions_ += victims_.size();
    return true;
  }

  void set_window(double bytes) {
    const auto limit = static_cast<double>(capacity_);
    window_ = static_cast<std::uint64_t>(std::clamp(bytes, std::min(1.0, limit), limit * 0.99));
  }

  // After each sample: goes on if the hit rate rose, turns if it fell, starts anew if it jumped.
  void climb(bool hit) {
    hits_ += hit;
    if (++requests_ < sample_) return;
    const double rate = static_cast<double>(hits_) / static_cast<double>(requests_);
    const double change = rate - rate_;
    const double amount = change >= 0 ? step_ : -step_;
    const double fresh = 0.0625 * static_cast<double>(capacity_);
    step_ = std::abs(change) >= 0.05 ? std::copysign(fresh, amount) : 0.98 * amount;
    rate_ = rate;
    hits_ = requests_ = 0;
    set_window(static_cast<double>(window_) + amount);
    // The window takes from the main part's victims, or gives its own.
    demote();
    while (queues_.bytes(kWindow) > window_ && queues_.count(kWindow) > 0) {
      queues_.move(kProbation, queues_.tail(kWindow));
    }
    while (main_bytes() > capacity_ - window_ && queues_.count(kProbation) > 0) {
      queues_.move(kWindow, queues_.tail(kProbation));
    }
  }

  TinyLfu kind_;
  std::uint64_t capacity_;
  std::uint64_t window_ = 1;
  Sketch sketch_;
  QueueSet queues_;
  std::vector<std::uint64_t> keys_;
  std::vector<double> costs_;
  std::vector<std::uint32_t> victims_;
  std::uint64_t sample_;
  std::uint64_t requests_ = 0;
  std::uint64_t hits_ = 0;
  double rate_ = 0;
  double step_ = 0;
};

}  // namespace

std::unique_ptr<Peer> make_w_tinylfu(const Scope& scope, TinyLfu kind) {
  return std::make_unique<WTinyLfu>(scope, kind);
}

}  // namespace tensorkey::internal
