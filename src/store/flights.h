// Single flight: one computation for each missing key at a time, over threads. Who claims a key
// that nobody computes leads its flight and must end it, by land, fail or give_up; the others wait
// for it. No thread waits in a circle: where it would, it is told so and computes on its own.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <unordered_map>
#include <vector>

#include <chrono>

#include <tensorkey/entry.h>
#include <tensorkey/key.h>

#include "base/fork.h"

namespace tensorkey::internal {

class Flights {
 public:
  // One computation. All but `key` is guarded by the mutex of Flights.
  struct Flight;
  using FlightPtr = std::shared_ptr<Flight>;
  using Deadline = std::optional<std::chrono::steady_clock::time_point>;

  enum class Role : std::uint8_t {
    kLeader,    // the caller computes, and ends the flight
    kFollower,  // another thread computes
    kNested,    // this thread itself computes it already, further up: no flight
  };
  struct Claim {
    FlightPtr flight;
    Role role = Role::kNested;
  };

  enum class Outcome : std::uint8_t {
    kLanded,    // entry is set
    kGaveUp,    // nobody computes it any more
    kCircle,    // its leader waits, perhaps through others, for this thread
    kDeadline,  // not yet
  };
  struct Result {
    Outcome outcome;
    EntryPtr entry;
  };

  Flights() = default;
  Flights(const Flights&) = delete;
  Flights& operator=(const Flights&) = delete;

  void claim(std::span<const Key> keys, std::vector<Claim>& out);

  // REQUIRES: the caller leads the flight, and it has not ended.
  void land(const FlightPtr& flight, EntryPtr entry);
  void fail(const FlightPtr& flight, std::exception_ptr error);
  void give_up(const FlightPtr& flight) noexcept;

  // What was removed from the cache must not be found in the air: who claims the key from now on
  // leads a flight of his own. The one under way ends as it would, for those who wait for it.
  void detach(const Key& key);
  void detach_all();

  // Throws what fail() was given.
  [[nodiscard]] Result wait(const FlightPtr& flight, const Deadline& deadline);

 private:
  enum class State : std::uint8_t { kFlying, kLanded, kFailed, kGaveUp };

  void end(const FlightPtr& flight, State state, EntryPtr entry, std::exception_ptr error) noexcept;
  [[nodiscard]] bool in_circle(const Flight& flight) const;
  void forget_other_threads();

  std::unordered_map<Key, FlightPtr> flights_;
  std::unordered_map<std::thread::id, const Flight*> waiting_;
  ForkMutex mutex_{[this] { forget_other_threads(); }};
};

}  // namespace tensorkey::internal
