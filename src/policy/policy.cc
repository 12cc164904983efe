#include "policy/policy.h"

#include <algorithm>
#include <limits>

namespace tensorkey::internal {
namespace {

// More entries in a shadow make no better choices; fewer than the least make bad ones.
constexpr std::size_t kMostShadowed = 1024;
constexpr std::size_t kLeastShadowed = 64;
constexpr std::size_t kShadowedBytes = 1024;  // an entry, in all shadows together

std::size_t memory_limit(std::uint64_t capacity, Policy::Unit unit) {
  if (unit == Policy::Unit::kEntries) return std::numeric_limits<std::size_t>::max();
  return static_cast<std::size_t>(capacity / 16);
}

std::size_t shadowed(std::size_t limit) {
  const std::size_t entries = std::min(kMostShadowed, limit / 2 / kShadowedBytes);
  return entries < kLeastShadowed ? 0 : entries;
}

}  // namespace

Policy::Policy(std::uint64_t capacity, Unit unit)
    : jury_(capacity, shadowed(memory_limit(capacity, unit))),
      live_(capacity, jury_.verdict(), memory_limit(capacity, unit) / 2),
      unit_(unit),
      threshold_(jury_.threshold()) {}

void Policy::consider(const Request& request) {
  // Neither is written unless it changes: every hit reads the line they are on.
  if (hits_.load(std::memory_order_relaxed) != 0) {
    live_.advance(static_cast<double>(hits_.exchange(0, std::memory_order_relaxed)));
  }
  // The sample may have become smaller since the hit.
  if (!jury_.samples(request.hash)) return;
  if (jury_.access(request)) live_.tune(jury_.verdict());
  if (const std::uint64_t threshold = jury_.threshold();
      threshold != threshold_.load(std::memory_order_relaxed)) {
    threshold_.store(threshold, std::memory_order_relaxed);
  }
}

void Policy::record(const Request& request) { consider(request); }

bool Policy::admit(const Request& request, std::uint64_t bytes_to_free,
                   std::vector<PolicyNode*>& victims) {
  consider(request);
  return live_.admit(request, bytes_to_free, victims);
}

void Policy::link(PolicyNode& node) { live_.link(node); }

void Policy::unlink(PolicyNode& node) { live_.unlink(node); }

void Policy::resize(std::uint64_t capacity) {
  live_.resize(capacity);
  live_.limit_ghosts(memory_limit(capacity, unit_) / 2);
  jury_.resize(capacity);
}

void Policy::evict(std::uint64_t bytes, std::vector<PolicyNode*>& victims) {
  live_.evict(bytes, victims);
}

std::size_t Policy::memory() const noexcept { return live_.memory() + jury_.memory(); }

}  // namespace tensorkey::internal
