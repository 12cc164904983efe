// ARC: Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003, with
// bytes in place of counts. For sizes of 1 it is the figure of the paper line by line.
#include <algorithm>

#include "policy/peers/peer.h"
#include "policy/peers/queue.h"

namespace tensorkey::internal {
namespace {

enum : std::size_t { kRecent, kFrequent, kRecentGhost, kFrequentGhost };

class Arc : public Peer {
 public:
  explicit Arc(const Scope& scope) : capacity_(scope.capacity), queues_(4, scope.keys) {}

  bool access(const Item& item) override {
    const int place = queues_.where(item.id);
    if (place == kRecent || place == kFrequent) {
      queues_.move(kFrequent, item.id);
      return true;
    }
    if (item.size > capacity_) {
      ++rejections_;
      return false;
    }
    if (place == kRecentGhost || place == kFrequentGhost) {
      adapt(place == kRecentGhost, item.size);
      queues_.remove(item.id);
      make_room(item.size, place == kFrequentGhost);
      queues_.push(kFrequent, item.id, item.size);
      return false;
    }
    arrive(item.size);
    queues_.push(kRecent, item.id, item.size);
    return false;
  }

 private:
  [[nodiscard]] std::uint64_t resident() const {
    return queues_.bytes(kRecent) + queues_.bytes(kFrequent);
  }

  void adapt(bool recent, std::uint64_t size) {
    const auto b1 = static_cast<double>(queues_.bytes(kRecentGhost));
    const auto b2 = static_cast<double>(queues_.bytes(kFrequentGhost));
    const double step =
        (recent ? std::max(1.0, b2 / b1) : std::max(1.0, b1 / b2)) * static_cast<double>(size);
    target_ = std::clamp(target_ + (recent ? step : -step), 0.0, static_cast<double>(capacity_));
  }

  // Case IV of the paper: nobody remembers the new one.
  void arrive(std::uint64_t size) {
    while (queues_.bytes(kRecent) + queues_.bytes(kRecentGhost) + size > capacity_) {
      if (queues_.count(kRecentGhost) > 0) {
        queues_.remove(queues_.tail(kRecentGhost));
      } else {
        queues_.remove(queues_.tail(kRecent));
        ++evictions_;
      }
    }
    // The directory holds at most twice the capacity.
    while (resident() + queues_.bytes(kRecentGhost) + queues_.bytes(kFrequentGhost) + size >
               2 * capacity_ &&
           queues_.count(kFrequentGhost) > 0) {
      queues_.remove(queues_.tail(kFrequentGhost));
    }
    make_room(size, false);
  }

  // REPLACE of the paper.
  void make_room(std::uint64_t size, bool was_frequent_ghost) {
    while (resident() + size > capacity_) {
      const auto recent = static_cast<double>(queues_.bytes(kRecent));
      const bool from_recent = queues_.count(kRecent) > 0 &&
                               (recent > target_ || (was_frequent_ghost && recent >= target_) ||
                                queues_.count(kFrequent) == 0);
      const std::size_t from = from_recent ? kRecent : kFrequent;
      queues_.move(from_recent ? kRecentGhost : kFrequentGhost, queues_.tail(from));
      ++evictions_;
    }
  }

  std::uint64_t capacity_;
  QueueSet queues_;
  double target_ = 0;  // of kRecent, in bytes
};

}  // namespace

std::unique_ptr<Peer> make_arc(const Scope& scope) { return std::make_unique<Arc>(scope); }

}  // namespace tensorkey::internal
