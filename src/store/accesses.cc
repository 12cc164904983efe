#include "store/accesses.h"

#include "base/epoch.h"

namespace tensorkey::internal {

bool Accesses::add(const Request& request) noexcept {
  Stripe& stripe = stripes_[thread_number() % kStripes];
  if (stripe.busy.test_and_set(std::memory_order_acquire)) return true;
  bool room = stripe.count < kRequests;
  if (room) {
    stripe.requests[stripe.count++] = request;
    room = stripe.count < kRequests;
    if (!pending_.load(std::memory_order_relaxed)) pending_.store(true, std::memory_order_release);
  }
  stripe.busy.clear(std::memory_order_release);
  return room;
}

}  // namespace tensorkey::internal
