#include "memo/memo_pending.h"

#include <algorithm>
#include <mutex>
#include <span>
#include <utility>

namespace tensorkey::internal {
namespace {

constexpr std::size_t kMostBytes = std::size_t{64} << 20;
constexpr std::size_t kMostKeys = std::size_t{1} << 20;
constexpr std::size_t kAtOnce = 64;  // entries that are encoded together

}  // namespace

EntryPtr PendingRows::keep(const EntryParts& parts, std::uint64_t scope, const OwnSecret& secret,
                           std::uint64_t ticket) {
  const bool stored = tiers_.store() != nullptr;
  const std::size_t most = stored ? kMostBytes : kMostKeys;
  const std::lock_guard lock(mutex_);
  if (ticket != drops_ || size_ >= 2 * most) return nullptr;
  keys_.push_back(parts.key);  // first: what is in memory is listed, whatever throws
  EntryPtr entry = tiers_.keep(parts, scope);
  if (!entry) {  // without room in memory it is for its own batch alone
    keys_.pop_back();
    return nullptr;
  }
  if (stored) {
    if (groups_.empty() || groups_.back().scope != scope || groups_.back().secret != secret) {
      groups_.push_back({.scope = scope, .secret = secret, .entries = {}});
    }
    groups_.back().entries.push_back(entry);
  }
  size_ += stored ? entry->footprint() : 1;
  full_ = size_ >= most;
  return entry;
}

std::size_t PendingRows::confirm() {
  std::vector<Group> groups;
  std::size_t count = 0;
  {
    const std::lock_guard lock(mutex_);
    groups = std::move(groups_);
    count = keys_.size();
    clear();
  }
  for (const Group& group : groups) {
    Secret own;
    if (group.secret) own = std::span<const std::uint8_t, 32>(*group.secret);
    for (std::size_t first = 0; first < group.entries.size(); first += kAtOnce) {
      const std::span entries = std::span(group.entries).subspan(first);
      const std::span some = entries.first(std::min(kAtOnce, entries.size()));
      double seconds = 0;
      for (const EntryPtr& entry : some) seconds += entry->seconds();
      tiers_.store()->put(some, group.scope, tiers_.secret(own), seconds);
    }
  }
  return count;
}

std::size_t PendingRows::drop() {
  const std::lock_guard lock(mutex_);
  ++drops_;
  // From memory alone: what is below was put there by somebody who knew it to be true.
  for (const Key& key : keys_) tiers_.memory.remove(key);
  const std::size_t count = keys_.size();
  clear();
  return count;
}

std::size_t PendingRows::count() const {
  const std::lock_guard lock(mutex_);
  return keys_.size();
}

void PendingRows::clear() noexcept {
  keys_.clear();
  groups_.clear();
  size_ = 0;
  full_ = false;
}

}  // namespace tensorkey::internal
