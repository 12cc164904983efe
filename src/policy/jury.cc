#include "policy/jury.h"

#include <algorithm>
#include <array>

namespace tensorkey::internal {
namespace {

// Each is the best at something: skewed and steady, loops and epochs, slow change, fast change, new
// keys that come back soon, nothing but recency (docs/eviction.md has the figures, and what was
// tried beside them).
constexpr std::array kTunings = {
    Tuning{.window = 0.01, .margin = 1.5, .period = 20},  // where it begins
    Tuning{.window = 0.01, .margin = 2, .period = 80},
    Tuning{.window = 0.05, .margin = 1, .period = 5},
    Tuning{.window = 0.20, .margin = 1, .period = 2.5, .recency = 0.3},
    Tuning{.window = 0.20, .margin = 0, .period = 2.5},
    Tuning{.window = 0.99, .margin = 0, .period = 10},
};
constexpr std::size_t kFirst = 0;
constexpr std::uint64_t kAll = std::uint64_t{1} << 32;
constexpr double kRound = 0.5;    // turnovers of a shadow between two votes
constexpr double kMemory = 0.95;  // what a vote keeps of the scores before
constexpr double kLead = 0.005;   // share of all cost that another must save more

}  // namespace

Jury::Jury(std::uint64_t capacity, std::size_t entries)
    : capacity_(capacity), limit_(entries), threshold_(entries == 0 ? 0 : kAll), chosen_(kFirst) {
  if (entries == 0) return;
  for (const Tuning& tuning : kTunings) seats_.emplace_back(share(), tuning);
}

const Tuning& Jury::verdict() const noexcept { return kTunings[chosen_]; }

// Of the capacity, what the sample gets.
std::uint64_t Jury::share() const noexcept {
  const double part = static_cast<double>(threshold_) / static_cast<double>(kAll);
  return std::max<std::uint64_t>(1,
                                 static_cast<std::uint64_t>(static_cast<double>(capacity_) * part));
}

bool Jury::access(const Request& request) {
  std::size_t entries = 0;
  for (Seat& seat : seats_) {
    if (seat.shadow.access(request)) seat.saved += request.cost;
    entries = std::max(entries, seat.shadow.entries());
  }
  cost_ += request.cost;
  ++accesses_;
  if (entries > limit_) {
    thin();
    return false;
  }
  if (static_cast<double>(accesses_) < kRound * static_cast<double>(entries)) return false;
  return vote();
}

bool Jury::vote() {
  std::size_t best = chosen_;
  for (std::size_t i = 0; i < seats_.size(); ++i) {
    Seat& seat = seats_[i];
    seat.score = seat.score * kMemory + seat.saved;
    seat.saved = 0;
    if (seat.score > seats_[best].score) best = i;
  }
  total_ = total_ * kMemory + cost_;
  // Young scores are noisy: they are held to the lead that a full memory would ask for.
  const double total = std::max(total_, cost_ / (1 - kMemory));
  cost_ = 0;
  accesses_ = 0;
  // A little better is as good: changing has its price, and the scores are of a sample.
  if (seats_[best].score <= seats_[chosen_].score + kLead * total) return false;
  chosen_ = best;
  return true;
}

// The shadows hold more than they should: half as many keys from here.
void Jury::thin() {
  threshold_ /= 2;
  for (Seat& seat : seats_) {
    seat.shadow.thin([this](std::uint64_t hash) { return samples(hash); });
    seat.shadow.resize(share());
    seat.saved = 0;
    seat.score /= 2;
  }
  total_ /= 2;
  cost_ = 0;
  accesses_ = 0;
}

void Jury::resize(std::uint64_t capacity) {
  capacity_ = capacity;
  for (Seat& seat : seats_) seat.shadow.resize(share());
}

std::size_t Jury::memory() const noexcept {
  std::size_t bytes = seats_.size() * sizeof(Seat);
  for (const Seat& seat : seats_) bytes += seat.shadow.memory();
  return bytes;
}

}  // namespace tensorkey::internal
