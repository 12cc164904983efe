// What an ActivationCache is made of, for the memo engine, which leads flights of many keys.
#pragma once

#include <exception>
#include <utility>

#include <tensorkey/cache.h>

#include "store/flights.h"
#include "store/memory.h"

namespace tensorkey {

struct ActivationCache::Impl {
  explicit Impl(const CacheOptions& options) : memory(options) {}

  internal::MemoryTier memory;
  internal::Flights flights;
};

namespace internal {

// A flight that this thread leads, or none; given up unless it was ended.
class Lead {
 public:
  Lead(Flights& flights, Flights::FlightPtr flight)
      : flights_(&flights), flight_(std::move(flight)) {}
  Lead(Lead&& other) noexcept : flights_(other.flights_), flight_(std::move(other.flight_)) {}
  Lead& operator=(Lead&&) = delete;
  ~Lead() {
    if (flight_ != nullptr) flights_->give_up(flight_);
  }

  void land(EntryPtr entry) const {
    if (flight_ != nullptr) flights_->land(std::exchange(flight_, nullptr), std::move(entry));
  }
  void fail(const std::exception_ptr& error) const {
    if (flight_ != nullptr) flights_->fail(std::exchange(flight_, nullptr), error);
  }

 private:
  Flights* flights_;
  mutable Flights::FlightPtr flight_;
};

}  // namespace internal
}  // namespace tensorkey
