#include "policy/ranking.h"

#include <algorithm>
#include <cmath>

namespace tensorkey::internal {
namespace {

constexpr double kTicks = 64;         // in one turnover: as many accesses as there are entries
constexpr double kMaxFrequency = 15;  // more only makes a change of phase slower to see
constexpr int kMaxExamined = 64;      // entries hit since that one search puts back
// A candidate's frequency counts at least this much: what is cheap to keep and dear to compute gets
// its chance at the first sight. With equal costs and sizes it changes nothing.
constexpr double kFloor = 0.1;
constexpr std::size_t kGhostsPerEntry = 4;  // at least; twice as many at most
constexpr double kLeastCost = 1e-12;  // an entry that costs nothing is still told from no entry

double cost_of(const Request& request) {
  return request.cost > kLeastCost ? std::min(request.cost, 1e18) : kLeastCost;
}

}  // namespace

Ranking::Ranking(std::uint64_t capacity, const Tuning& tuning, std::size_t ghost_limit)
    : capacity_(capacity), ghost_limit_(ghost_limit), tuning_(tuning) {
  resize(capacity);
  ghosts_.reserve(1);
}

void Ranking::resize(std::uint64_t capacity) {
  capacity_ = capacity;
  window_capacity_ = static_cast<std::uint64_t>(tuning_.window * static_cast<double>(capacity));
  window_capacity_ =
      std::clamp<std::uint64_t>(window_capacity_, 1, std::max<std::uint64_t>(1, capacity));
}

void Ranking::tune(const Tuning& tuning) {
  // What is stored goes on to mean what it means now: only the pace changes from here.
  const double now = this->now();
  era_ = now;
  era_tick_ = tick_;
  tuning_ = tuning;
  resize(capacity_);
  main_.rerank([&](PolicyNode& node) { return main_rank(node); });
}

double Ranking::now() const noexcept {
  const double turns = static_cast<double>(tick_ - era_tick_) / kTicks;
  return era_ + std::floor(turns / tuning_.period);
}

void Ranking::advance(double accesses) noexcept {
  pending_ += accesses;
  const double length = std::max(1.0, static_cast<double>(entries()) * (1 / kTicks));
  if (pending_ < length) return;
  const double ticks = pending_ < 2 * length ? 1 : std::floor(pending_ / length);
  pending_ -= ticks * length;
  tick_ += static_cast<std::uint64_t>(ticks);
  clock_.store(static_cast<std::uint32_t>(tick_), std::memory_order_relaxed);
}

// --- What an entry is worth

std::uint64_t Ranking::last_hit(const PolicyNode& node) const noexcept {
  const std::uint32_t stamp = node.marks.load(std::memory_order_relaxed) >> kCountBits;
  const auto low = static_cast<std::uint32_t>(tick_);
  const std::uint32_t ago = (low - stamp) & (~std::uint32_t{0} >> kCountBits);
  return tick_ - std::min<std::uint64_t>(ago, tick_);
}

double Ranking::frequency(const PolicyNode& node) const noexcept {
  return std::exp2(node.heat - now());
}

double Ranking::worth(double frequency, const Request& request) const noexcept {
  return frequency * cost_of(request);
}

double Ranking::window_rank(const PolicyNode& node) const noexcept {
  return static_cast<double>(last_hit(node));
}

double Ranking::main_rank(const PolicyNode& node) const noexcept {
  const double density =
      cost_of(node.request) / static_cast<double>(std::max<std::uint64_t>(1, node.request.size));
  return node.heat + std::log2(density) +
         tuning_.recency / kTicks * static_cast<double>(last_hit(node));
}

// Adds the hits since the last look; false if there were none.
bool Ranking::fold(PolicyNode& node) noexcept {
  const std::uint32_t marks = node.marks.load(std::memory_order_relaxed);
  const std::uint32_t hits = marks & kCountMask;
  if (hits == 0) return false;
  // A hit in between is lost, which changes nothing worth a locked instruction.
  node.marks.store(marks & ~kCountMask, std::memory_order_relaxed);
  const double now = this->now();
  const double frequency = std::min(std::exp2(node.heat - now) + hits, kMaxFrequency);
  node.heat = std::log2(frequency) + now;
  return true;
}

// The entry that leaves next, all hits considered.
PolicyNode* Ranking::least(NodeHeap& heap) {
  if (heap.empty()) return nullptr;
  for (int examined = 0; examined < kMaxExamined; ++examined) {
    PolicyNode& node = heap.top();
    if (!fold(node)) break;
    heap.update_top(&heap == &window_ ? window_rank(node) : main_rank(node));
  }
  return &heap.top();
}

// --- Entries come and go

bool Ranking::seen(std::uint64_t hash) const noexcept {
  return ghosts_.find(hash, now()).has_value();
}

void Ranking::grow_ghosts() {
  if (ghosts_.keys() < entries() * kGhostsPerEntry && ghosts_.memory() * 2 <= ghost_limit_) {
    ghosts_.reserve(ghosts_.keys() * 2);
  }
}

void Ranking::link(PolicyNode& node) {
  const double now = this->now();
  node.heat = ghosts_.find(node.request.hash, now).value_or(now);
  ghosts_.erase(node.request.hash);
  node.marks.store(static_cast<std::uint32_t>(tick_) << kCountBits, std::memory_order_relaxed);
  if (node.request.size <= window_capacity_) {
    node.place = PolicyNode::kWindow;
    window_.push(node, window_rank(node));
    window_bytes_ += node.request.size;
  } else {
    enter_main(node);
  }
  // While the main part has room, what the window has over its share moves there unexamined.
  while (window_bytes_ > window_capacity_) {
    PolicyNode* oldest = least(window_);
    if (main_bytes_ + oldest->request.size > capacity_ - window_capacity_) break;
    unlink(*oldest);
    enter_main(*oldest);
  }
  grow_ghosts();
}

void Ranking::enter_main(PolicyNode& node) {
  node.place = PolicyNode::kMain;
  main_.push(node, main_rank(node));
  main_bytes_ += node.request.size;
}

void Ranking::unlink(PolicyNode& node) {
  if (node.place == PolicyNode::kWindow) {
    window_.remove(node);
    window_bytes_ -= node.request.size;
  } else {
    main_.remove(node);
    main_bytes_ -= node.request.size;
  }
  node.place = PolicyNode::kNone;
}

void Ranking::move(PolicyNode& node, PolicyNode& copy) noexcept {
  copy.marks.store(node.marks.load(std::memory_order_relaxed), std::memory_order_relaxed);
  copy.heat = node.heat;
  copy.place = node.place;
  (node.place == PolicyNode::kWindow ? window_ : main_).replace(node, copy);
  node.place = PolicyNode::kNone;
}

void Ranking::drop(PolicyNode& node, std::vector<PolicyNode*>& victims) {
  fold(node);
  ghosts_.put(node.request.hash, node.heat, now());
  unlink(node);
  victims.push_back(&node);
}

// Takes the least valuable entries of the main part, `bytes` together, unless they are worth more.
bool Ranking::displace(double worth, std::uint64_t bytes, std::vector<PolicyNode*>& victims) {
  taken_.clear();
  std::uint64_t freed = 0;
  double lost = 0;
  bool won = true;
  while (freed < bytes) {
    PolicyNode* victim = least(main_.empty() ? window_ : main_);
    if (victim == nullptr) {
      won = false;
      break;
    }
    lost += this->worth(frequency(*victim), victim->request);
    won = lost < worth;
    if (!won) break;
    freed += victim->request.size;
    unlink(*victim);
    taken_.push_back(victim);
  }
  for (PolicyNode* node : taken_) {
    if (won) {
      ghosts_.put(node->request.hash, node->heat, now());
      victims.push_back(node);
    } else {
      enter_main(*node);
    }
  }
  return won;
}

// Moves what the window has over its share to the main part, or drops it.
void Ranking::spill(std::vector<PolicyNode*>& victims, std::uint64_t& freed, std::uint64_t wanted) {
  while (freed < wanted) {
    PolicyNode* candidate = least(window_);
    if (candidate == nullptr) return;
    fold(*candidate);
    const std::uint64_t size = candidate->request.size;
    const double gain =
        worth(std::max(frequency(*candidate) - tuning_.margin, kFloor), candidate->request);
    if (displace(gain, size, victims)) {
      unlink(*candidate);
      enter_main(*candidate);
    } else {
      drop(*candidate, victims);
    }
    freed += size;
  }
}

bool Ranking::admit(const Request& request, std::uint64_t bytes_to_free,
                    std::vector<PolicyNode*>& victims) {
  victims.clear();
  advance(1);
  const double now = this->now();
  const double before = ghosts_.find(request.hash, now).value_or(now - 60);
  const double frequency = std::min(std::exp2(before - now) + 1, kMaxFrequency);
  ghosts_.put(request.hash, std::log2(frequency) + now, now);
  if (request.size > capacity_ || bytes_to_free > window_bytes_ + main_bytes_) return false;
  if (bytes_to_free == 0) return true;
  if (request.size > window_capacity_) {
    return displace(worth(std::max(frequency - tuning_.margin, kFloor), request), bytes_to_free,
                    victims);
  }
  std::uint64_t freed = 0;
  if (window_bytes_ + request.size > window_capacity_) {
    const std::uint64_t over = window_bytes_ + request.size - window_capacity_;
    spill(victims, freed, std::min(bytes_to_free, over));
  }
  while (freed < bytes_to_free && entries() > 0) {
    PolicyNode* victim = least(main_.empty() ? window_ : main_);
    freed += victim->request.size;
    drop(*victim, victims);
  }
  return freed >= bytes_to_free;
}

void Ranking::evict(std::uint64_t bytes, std::vector<PolicyNode*>& victims) {
  victims.clear();
  for (std::uint64_t freed = 0; freed < bytes && entries() > 0;) {
    const bool window = main_.empty() || window_bytes_ > window_capacity_;
    PolicyNode* victim = least(window ? window_ : main_);
    freed += victim->request.size;
    drop(*victim, victims);
  }
}

std::size_t Ranking::growth() const noexcept {
  const std::size_t ghosts = ghosts_.memory() * 2 <= ghost_limit_ ? ghosts_.memory() : 0;
  return window_.growth() + main_.growth() + ghosts;
}

std::size_t Ranking::memory() const noexcept {
  return window_.memory() + main_.memory() + ghosts_.memory() + taken_.capacity() * sizeof(void*);
}

}  // namespace tensorkey::internal
