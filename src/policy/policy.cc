#include "policy/policy.h"

namespace tensorkey::internal {

Policy::Policy(std::uint64_t capacity) : live_(capacity, Tuning{}) {}

void Policy::record(const Request& /*request*/) { live_.advance(1); }

bool Policy::admit(const Request& request, std::uint64_t bytes_to_free,
                   std::vector<PolicyNode*>& victims) {
  return live_.admit(request, bytes_to_free, victims);
}

void Policy::link(PolicyNode& node) { live_.link(node); }

void Policy::unlink(PolicyNode& node) { live_.unlink(node); }

void Policy::resize(std::uint64_t capacity) { live_.resize(capacity); }

void Policy::evict(std::uint64_t bytes, std::vector<PolicyNode*>& victims) {
  live_.evict(bytes, victims);
}

std::size_t Policy::memory() const noexcept { return live_.memory(); }

}  // namespace tensorkey::internal
