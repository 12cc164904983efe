#include "store/flights.h"

#include <mutex>
#include <utility>

namespace tensorkey::internal {

struct Flights::Flight {
  Key key;
  std::thread::id leader;
  State state = State::kFlying;
  EntryPtr entry;
  std::exception_ptr error;
  std::condition_variable ended;
};

void Flights::claim(std::span<const Key> keys, std::vector<Claim>& out) {
  const std::thread::id self = std::this_thread::get_id();
  out.clear();
  out.reserve(keys.size());
  const std::lock_guard lock(mutex_);
  for (const Key& key : keys) {
    const auto [place, is_new] = flights_.try_emplace(key);
    if (is_new) {
      try {
        place->second = std::make_shared<Flight>();
      } catch (...) {
        flights_.erase(place);
        for (const Claim& claim : out) {
          if (claim.role == Role::kLeader) flights_.erase(claim.flight->key);
        }
        throw;
      }
      place->second->key = key;
      place->second->leader = self;
      out.push_back({place->second, Role::kLeader});
    } else if (place->second->leader == self) {
      out.push_back({nullptr, Role::kNested});
    } else {
      out.push_back({place->second, Role::kFollower});
    }
  }
}

void Flights::end(const FlightPtr& flight, State state, EntryPtr entry,
                  std::exception_ptr error) noexcept {
  {
    const std::lock_guard lock(mutex_);
    flight->state = state;
    flight->entry = std::move(entry);
    flight->error = std::move(error);
    const auto place = flights_.find(flight->key);
    if (place != flights_.end() && place->second == flight) flights_.erase(place);
  }
  flight->ended.notify_all();
}

void Flights::land(const FlightPtr& flight, EntryPtr entry) {
  end(flight, State::kLanded, std::move(entry), nullptr);
}

void Flights::fail(const FlightPtr& flight, std::exception_ptr error) {
  end(flight, State::kFailed, nullptr, std::move(error));
}

void Flights::give_up(const FlightPtr& flight) noexcept {
  end(flight, State::kGaveUp, nullptr, nullptr);
}

void Flights::detach(const Key& key) {
  const std::lock_guard lock(mutex_);
  flights_.erase(key);
}

void Flights::detach_all() {
  const std::lock_guard lock(mutex_);
  flights_.clear();
}

// Whether the leader waits for a flight whose leader waits ... for a flight of this thread. Each
// thread waits for one flight, so this is a walk along a list, and it ends: the list had no circle
// before.
bool Flights::in_circle(const Flight& flight) const {
  const std::thread::id self = std::this_thread::get_id();
  const Flight* each = &flight;
  while (each->leader != self) {
    const auto next = waiting_.find(each->leader);
    if (next == waiting_.end()) return false;
    each = next->second;
  }
  return true;
}

Flights::Result Flights::wait(const FlightPtr& flight, const Deadline& deadline) {
  std::unique_lock lock(mutex_.plain());
  if (flight->state == State::kFlying) {
    if (in_circle(*flight)) return {Outcome::kCircle, nullptr};
    const std::thread::id self = std::this_thread::get_id();
    waiting_.emplace(self, flight.get());
    const auto ended = [&] { return flight->state != State::kFlying; };
    if (deadline) {
      flight->ended.wait_until(lock, *deadline, ended);
    } else {
      flight->ended.wait(lock, ended);
    }
    waiting_.erase(self);
  }
  switch (flight->state) {
    case State::kFlying: return {Outcome::kDeadline, nullptr};
    case State::kLanded: return {Outcome::kLanded, flight->entry};
    case State::kGaveUp: return {Outcome::kGaveUp, nullptr};
    case State::kFailed: break;
  }
  const std::exception_ptr error = flight->error;
  lock.unlock();
  std::rethrow_exception(error);
}

// In the child of a fork: the other threads, and so their computations and waits, are gone. Flights
// that somebody waited for are never destroyed: those who wait hold references for ever.
void Flights::forget_other_threads() {
  const std::thread::id self = std::this_thread::get_id();
  waiting_.clear();
  std::erase_if(flights_, [&](const auto& item) { return item.second->leader != self; });
}

}  // namespace tensorkey::internal
