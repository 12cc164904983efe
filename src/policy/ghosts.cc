#include "policy/ghosts.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace tensorkey::internal {
namespace {

constexpr double kSteps = 256;

// Other bits than those that choose the sample of the shadows.
std::uint64_t mix(std::uint64_t hash) {
  hash *= 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 32);
}

std::uint16_t tag_of(std::uint64_t mixed) {
  const auto tag = static_cast<std::uint16_t>(mixed >> 48);
  return tag == 0 ? std::uint16_t{1} : tag;
}

std::uint16_t pack(double heat) {
  return static_cast<std::uint16_t>(static_cast<std::int64_t>(std::lround(heat * kSteps)));
}

// The heat relative to now, in steps: the difference is small, so that modulo 2^16 says it.
int relative(std::uint16_t heat, std::uint16_t now) {
  return static_cast<std::int16_t>(static_cast<std::uint16_t>(heat - now));
}

}  // namespace

std::optional<double> GhostTable::find(std::uint64_t hash, double now) const noexcept {
  if (buckets_.empty()) return std::nullopt;
  const std::uint64_t mixed = mix(hash);
  const Bucket& bucket = buckets_[index(mixed)];
  const std::uint16_t tag = tag_of(mixed);
  for (std::size_t way = 0; way < kWays; ++way) {
    if (bucket.tags[way] == tag) return now + relative(bucket.heats[way], pack(now)) / kSteps;
  }
  return std::nullopt;
}

void GhostTable::put(std::uint64_t hash, double heat, double now) noexcept {
  if (buckets_.empty()) return;
  const std::uint64_t mixed = mix(hash);
  Bucket& bucket = buckets_[index(mixed)];
  const std::uint16_t tag = tag_of(mixed);
  const std::uint16_t base = pack(now);
  std::size_t least = 0;
  int coldest = 1 << 30;
  for (std::size_t way = 0; way < kWays; ++way) {
    if (bucket.tags[way] == tag) {
      least = way;
      break;
    }
    const int cold = bucket.tags[way] == 0 ? -(1 << 30) : relative(bucket.heats[way], base);
    if (cold < coldest) {
      coldest = cold;
      least = way;
    }
  }
  bucket.tags[least] = tag;
  bucket.heats[least] = pack(heat);
}

void GhostTable::erase(std::uint64_t hash) noexcept {
  if (buckets_.empty()) return;
  const std::uint64_t mixed = mix(hash);
  Bucket& bucket = buckets_[index(mixed)];
  const auto found = std::ranges::find(bucket.tags, tag_of(mixed));
  if (found != bucket.tags.end()) *found = 0;
}

void GhostTable::reserve(std::size_t keys) {
  const std::size_t wanted = std::bit_ceil(std::max<std::size_t>(1, keys / kWays));
  if (wanted == buckets_.size()) return;
  std::vector<Bucket> fresh(wanted, Bucket{});
  // Growing, a key may stand in either half now: it is kept in both. Shrinking, half is forgotten.
  for (std::size_t i = 0; i < wanted && !buckets_.empty(); ++i) {
    fresh[i] = buckets_[i & (buckets_.size() - 1)];
  }
  buckets_.swap(fresh);
}

}  // namespace tensorkey::internal
