// What an ActivationCache is made of, for the memo engine, which leads flights of many keys.
#pragma once

#include <algorithm>
#include <chrono>
#include <exception>
#include <functional>
#include <utility>

#include <tensorkey/cache.h>

#include "store/flights.h"
#include "store/tiers.h"

namespace tensorkey {

namespace internal {

// A flight that this thread leads, or none, with the lease of its key, or none. Unless it was ended
// the flight is given up; the lease is released in any case.
class Lead {
 public:
  Lead(Flights& flights, Flights::FlightPtr flight)
      : flights_(&flights), flight_(std::move(flight)) {}
  Lead(Lead&& other) noexcept
      : flights_(other.flights_),
        flight_(std::move(other.flight_)),
        store_(std::exchange(other.store_, nullptr)),
        key_(other.key_) {}
  Lead& operator=(Lead&&) = delete;
  ~Lead() {
    if (flight_ != nullptr) flights_->give_up(flight_);
    release();
  }

  // The store has given the lease of this key.
  void hold(Store& store, const Key& key) noexcept {
    store_ = &store;
    key_ = key;
  }
  [[nodiscard]] bool leased() const noexcept { return store_ != nullptr; }

  void land(EntryPtr entry) const {
    release();
    if (flight_ != nullptr) flights_->land(std::exchange(flight_, nullptr), std::move(entry));
  }
  void fail(const std::exception_ptr& error) const {
    release();
    if (flight_ != nullptr) flights_->fail(std::exchange(flight_, nullptr), error);
  }

 private:
  void release() const noexcept {
    if (Store* const store = std::exchange(store_, nullptr)) store->release({&key_, 1});
  }

  Flights* flights_;
  mutable Flights::FlightPtr flight_;
  mutable Store* store_ = nullptr;
  Key key_;
};

// How long to wait between looks at what another process does.
inline constexpr std::chrono::microseconds kFirstPoll{500};
[[nodiscard]] inline std::chrono::microseconds next_poll(std::chrono::microseconds pause) {
  return std::min(2 * pause, std::chrono::microseconds(16'000));
}

}  // namespace internal

struct ActivationCache::Impl {
  explicit Impl(const CacheOptions& options) : tiers(options) {}

  EntryPtr await_process(const Key& key, internal::Lead& lead, const std::function<void()>& poll);
  void write(const EntryPtr& entry, std::uint64_t scope, double patience, bool now = false);

  internal::Tiers tiers;
  internal::Flights flights;
};

}  // namespace tensorkey
