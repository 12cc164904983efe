#include "store/disk/usage.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>
#include <utility>

namespace tensorkey::internal {
namespace {

constexpr std::size_t kFewestGhosts = std::size_t{1} << 12;
constexpr std::size_t kMostGhosts = std::size_t{4} << 20;  // 16 MiB
constexpr std::size_t kMostNoted = 8192;

std::uint64_t hash_of(const Key& key) { return std::hash<Key>{}(key); }

}  // namespace

Usage::Usage()
    : mutex_([this] {
        hits_.clear();
        worth_.clear();
      }) {
  ghosts_.reserve(kFewestGhosts);
}

void Usage::add(std::span<const Hit> found, std::span<const Key> missed) {
  const std::lock_guard lock(mutex_);
  accesses_ += static_cast<double>(missed.size());
  for (const Hit& hit : found) {
    accesses_ += hit.count;
    worth_[hit.segment] += hit.count * std::max(hit.cost, kLeastCost);
    // An even spread, of which every share_ is a fair sample.
    const double place = static_cast<double>((++turn_ * 0x9e3779b97f4a7c15u) >> 11) * 0x1p-53;
    if (place >= share_) continue;
    if (hits_.size() < kMostNoted || hits_.contains(hit.key)) hits_[hit.key] += hit.count / share_;
  }
  const auto now = static_cast<double>(period_);
  for (const Key& key : missed) {
    const std::optional<double> heat = ghosts_.find(hash_of(key), now);
    const double frequency = heat ? std::exp2(*heat - now) : 0;
    ghosts_.put(hash_of(key), std::log2(frequency + 1) + now, now);
  }
}

double Usage::unreported(const Key& key) const {
  const std::lock_guard lock(mutex_);
  const auto found = hits_.find(key);
  return found == hits_.end() ? 0 : found->second;
}

double Usage::unreported(std::uint32_t segment) const {
  const std::lock_guard lock(mutex_);
  const auto found = worth_.find(segment);
  return found == worth_.end() ? 0 : found->second;
}

double Usage::frequency(const Key& key) const {
  const std::lock_guard lock(mutex_);
  const auto now = static_cast<double>(period_);
  const std::optional<double> heat = ghosts_.find(hash_of(key), now);
  return heat ? std::max(1.0, std::exp2(*heat - now)) : 1;
}

Usage::Report Usage::report(std::size_t rows) {
  Report report;
  const std::lock_guard lock(mutex_);
  report.accesses = std::exchange(accesses_, 0);
  const auto most = static_cast<double>(std::clamp<std::size_t>(rows, 1, kMostNoted / 8));
  const auto noted = static_cast<double>(hits_.size());
  const double scale = std::max(1.0, noted / most);
  double sum = 0;  // each scale-th is reported, for scale times its hits
  for (const auto& [key, hits] : hits_) {
    if ((sum += 1) < scale) continue;
    sum -= scale;
    report.hits.push_back({.key = key, .hits = hits * scale});
  }
  if (noted > most) {
    share_ = std::max(1e-6, share_ / scale);
  } else if (noted < most / 2) {
    share_ = std::min(1.0, share_ * 2);
  }
  for (const auto& [segment, worth] : worth_) {
    report.worth.push_back({.segment = segment, .worth = worth});
  }
  hits_.clear();
  worth_.clear();
  return report;
}

void Usage::set(std::int64_t period, std::uint64_t entries) {
  const std::lock_guard lock(mutex_);
  if (period < period_) {  // another index, or one whose periods were counted anew
    ghosts_ = {};
    ghosts_.reserve(kFewestGhosts);
  }
  period_ = period;
  // Twice as many keys as fit: those of a data set of three times the size.
  const std::size_t keys =
      std::clamp(static_cast<std::size_t>(2 * entries), kFewestGhosts, kMostGhosts);
  if (keys > ghosts_.keys()) ghosts_.reserve(keys);
}

}  // namespace tensorkey::internal
