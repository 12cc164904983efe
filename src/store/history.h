// What threads did to one key of a cache, and whether an order of their operations explains what
// they were told: each at one instant between its call and its return (M. Herlihy, J. Wing,
// "Linearizability", TOPLAS 1990). The search is that of J. Wing and C. Gong, "Testing and
// verifying concurrent objects", JPDC 1993, with the states it has seen.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <utility>
#include <vector>

namespace tensorkey::test {

inline constexpr std::uint32_t kAbsent = 0;

enum class Kind : std::uint8_t { kFind, kInsert, kRemove, kClear };

struct Event {
  Kind kind;
  std::uint32_t given = kAbsent;   // the version that an insert brings
  std::uint32_t result = kAbsent;  // the version it was told; of a remove: 1 if it was there
  std::uint64_t call = 0;
  std::uint64_t done = 0;
};

// The state after the operation, if its answer fits the state before: an insert on a key that is
// there keeps and returns the old entry.
inline std::pair<bool, std::uint32_t> apply(const Event& event, std::uint32_t state) {
  switch (event.kind) {
    case Kind::kFind: return {event.result == state, state};
    case Kind::kInsert: {
      const std::uint32_t after = state == kAbsent ? event.given : state;
      return {event.result == after, after};
    }
    case Kind::kRemove: return {event.result == (state != kAbsent ? 1U : 0U), kAbsent};
    case Kind::kClear: return {true, kAbsent};
  }
  return {false, state};
}

// Whether an entry may be evicted between any two operations, and an insert be refused.
enum class Room : std::uint8_t { kForAll, kForSome };

class Checker {
 public:
  // REQUIRES: at most 64 events.
  Checker(const std::vector<Event>& events, Room room) : events_(events), room_(room) {}

  bool linearizable() { return search(0, kAbsent); }

 private:
  bool search(std::uint64_t taken, std::uint32_t state) {
    const std::uint64_t all =
        events_.size() == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << events_.size()) - 1;
    if (taken == all) return true;
    if (!seen_.insert({taken, state}).second) return false;
    std::uint64_t first_done = std::numeric_limits<std::uint64_t>::max();
    for (std::size_t i = 0; i < events_.size(); ++i) {
      if ((taken >> i & 1) == 0) first_done = std::min(first_done, events_[i].done);
    }
    for (std::size_t i = 0; i < events_.size(); ++i) {
      // What was called after another had returned cannot come before it.
      if ((taken >> i & 1) != 0 || events_[i].call > first_done) continue;
      const auto [fits, after] = apply(events_[i], state);
      if (fits && search(taken | std::uint64_t{1} << i, after)) return true;
      // A refused insert returns nothing and leaves nothing.
      const bool refused = room_ == Room::kForSome && events_[i].kind == Kind::kInsert &&
                           events_[i].result == kAbsent && state == kAbsent;
      if (refused && search(taken | std::uint64_t{1} << i, kAbsent)) return true;
    }
    return room_ == Room::kForSome && state != kAbsent && search(taken, kAbsent);
  }

  const std::vector<Event>& events_;
  const Room room_;
  std::set<std::pair<std::uint64_t, std::uint32_t>> seen_;
};

inline bool linearizable(const std::vector<Event>& events, Room room = Room::kForAll) {
  return Checker(events, room).linearizable();
}

}  // namespace tensorkey::test
