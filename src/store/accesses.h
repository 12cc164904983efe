// Hits on their way to the policy. A hit is written down without waiting: in a stripe that threads
// rarely share, dropped if another thread is writing there or the stripe is full. The owner drains
// the stripes under its lock, in the order of each thread, so that one thread alone loses nothing.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>

#include "policy/policy.h"

namespace tensorkey::internal {

class Accesses {
 public:
  // False if the stripe of this thread has become full: the owner should drain when it can.
  bool add(const Request& request) noexcept;

  // Calls take(request) for all that was written down. REQUIRES: the owner's lock.
  template <typename Take>
  void drain(Take&& take) {
    if (!pending_.exchange(false, std::memory_order_acquire)) return;
    for (Stripe& stripe : stripes_) {
      if (stripe.busy.test_and_set(std::memory_order_acquire)) continue;
      for (std::size_t i = 0; i < stripe.count; ++i) take(stripe.requests[i]);
      stripe.count = 0;
      stripe.busy.clear(std::memory_order_release);
    }
  }

 private:
  static constexpr std::size_t kStripes = 4;
  static constexpr std::size_t kRequests = 40;  // a stripe takes 1 KiB

  struct alignas(64) Stripe {
    std::atomic_flag busy;
    std::size_t count = 0;
    std::array<Request, kRequests> requests;
  };

  std::atomic<bool> pending_{false};
  std::array<Stripe, kStripes> stripes_;
};

}  // namespace tensorkey::internal
