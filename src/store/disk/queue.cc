#include "store/disk/queue.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

#include "store/disk/segment.h"

namespace tensorkey::internal {

void Batch::add(const Entry& entry, std::uint64_t scope, const Secret& secret) {
  const std::size_t at = bytes.size();
  const std::size_t length = kRecordHead + encoded_size(entry, secret.has_value());
  bytes.resize(at + length);
  try {
    encode_entry(entry, std::span(bytes).subspan(at + kRecordHead), secret);
    items.push_back(
        {.key = entry.key(), .at = at, .length = length, .scope = scope, .cost = entry.seconds()});
  } catch (...) {
    bytes.resize(at);
    throw;
  }
}

std::span<const std::byte> Batch::encoded(const Item& item) const noexcept {
  return std::span(bytes).subspan(item.at + kRecordHead, item.length - kRecordHead);
}

WriteQueue::WriteQueue(std::size_t capacity)
    : capacity_(capacity),
      pending_(std::make_shared<Batch>()),
      filled_(std::make_unique<std::condition_variable>()),
      emptied_(std::make_unique<std::condition_variable>()),
      mutex_([this] { forget(); }) {}

void WriteQueue::forget() noexcept {
  pending_ = std::make_shared<Batch>();
  writing_ = spare_ = nullptr;
  where_.clear();
  count_ = 0;
  static_cast<void>(filled_.release());
  static_cast<void>(emptied_.release());
  filled_ = std::make_unique<std::condition_variable>();
  emptied_ = std::make_unique<std::condition_variable>();
}

WriteQueue::Clock::time_point WriteQueue::deadline(double seconds) {
  const std::chrono::duration<double> patience(std::clamp(seconds, 0.0, 1e6));
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(patience);
}

std::size_t WriteQueue::push(const Batch& batch, double patience) {
  std::size_t dropped = 0;
  const Clock::time_point until = deadline(patience);
  std::unique_lock lock(mutex_.plain());
  for (const Batch::Item& item : batch.items) {
    if (where_.contains(item.key)) continue;
    // One that is larger than the queue goes alone.
    const auto fits = [&] {
      return pending_->bytes.empty() || pending_->bytes.size() + item.length <= capacity_;
    };
    if (!emptied_->wait_until(lock, until, fits)) {
      ++dropped;
      continue;
    }
    Batch& pending = *pending_;
    Batch::Item copy = item;
    copy.at = pending.bytes.size();
    const auto from = batch.bytes.begin() + static_cast<std::ptrdiff_t>(item.at);
    pending.bytes.insert(pending.bytes.end(), from,
                         from + static_cast<std::ptrdiff_t>(item.length));
    pending.items.push_back(copy);
    where_[item.key] = {.batch = pending_, .item = pending.items.size() - 1};
    count_ = where_.size();
    if (pending.items.size() == 1) filled_->notify_one();
  }
  return dropped;
}

std::shared_ptr<Batch> WriteQueue::take(double seconds) {
  std::unique_lock lock(mutex_.plain());
  filled_->wait_until(lock, deadline(seconds), [&] { return woken_ || !pending_->items.empty(); });
  woken_ = false;
  if (pending_->items.empty()) {
    spare_ = nullptr;
    return nullptr;
  }
  writing_ = std::exchange(pending_, spare_ ? std::move(spare_) : std::make_shared<Batch>());
  spare_ = nullptr;
  emptied_->notify_all();
  return writing_;
}

void WriteQueue::written() {
  const std::lock_guard lock(mutex_);
  if (writing_ == nullptr) return;
  for (const Batch::Item& item : writing_->items) {
    const auto found = where_.find(item.key);
    if (found != where_.end() && found->second.batch == writing_) where_.erase(found);
  }
  // The next but one takes its memory, which would be mapped anew for each.
  if (writing_->bytes.capacity() <= 2 * capacity_) {
    writing_->bytes.clear();
    writing_->items.clear();
    spare_ = std::move(writing_);
  }
  writing_ = nullptr;
  count_ = where_.size();
  emptied_->notify_all();
}

void WriteQueue::wake() {
  const std::lock_guard lock(mutex_);
  woken_ = true;
  filled_->notify_all();
}

bool WriteQueue::drained(double seconds) {
  std::unique_lock lock(mutex_.plain());
  return emptied_->wait_until(lock, deadline(seconds),
                              [&] { return writing_ == nullptr && pending_->items.empty(); });
}

bool WriteQueue::find(const Key& key,
                      FunctionRef<void(std::span<const std::byte>, std::uint64_t)> take) const {
  if (empty()) return false;
  const std::lock_guard lock(mutex_);
  const auto found = where_.find(key);
  if (found == where_.end()) return false;
  // Under the lock, since bytes may move while more are added, and are used again when written.
  const Batch& batch = *found->second.batch;
  const Batch::Item& item = batch.items[found->second.item];
  take(batch.encoded(item), item.scope);
  return true;
}

bool WriteQueue::contains(const Key& key) const {
  if (empty()) return false;
  const std::lock_guard lock(mutex_);
  return where_.contains(key);
}

std::size_t WriteQueue::cancel(FunctionRef<bool(const Batch::Item&)> which) {
  if (empty()) return 0;
  const std::lock_guard lock(mutex_);
  const std::size_t cancelled = std::erase_if(where_, [&](const auto& each) {
    const Where& where = each.second;
    Batch::Item& item = where.batch->items[where.item];
    if (!which(item)) return false;
    // The batch that is being written belongs to its writer: whoever cancels waits for him, and
    // then removes what he wrote.
    if (where.batch == pending_) item.cancelled = true;
    return true;
  });
  count_ = where_.size();
  return cancelled;
}

}  // namespace tensorkey::internal
