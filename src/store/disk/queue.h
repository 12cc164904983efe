// Records on their way to the disk: encoded by whoever inserts, written by another thread in
// batches. They are found here until they are written. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include <tensorkey/entry_format.h>

#include "base/fork.h"
#include "base/function_ref.h"

namespace tensorkey::internal {

// Records one behind the other, their heads not yet filled in: where they will lie is not known.
struct Batch {
  struct Item {
    Key key;
    std::size_t at = 0;      // of the head in bytes
    std::size_t length = 0;  // head included
    std::uint64_t scope = 0;
    double cost = 0;
    bool cancelled = false;
    // Of one that is moved; 0: it is new.
    double hits = 0;
    std::int64_t stored = 0;
    std::int64_t used = 0;
  };
  std::vector<std::byte> bytes;
  std::vector<Item> items;

  // Throws as encode_entry does, and then has nothing of this entry.
  void add(const Entry& entry, std::uint64_t scope, const Secret& secret);
  [[nodiscard]] std::span<std::byte> record(const Item& item) noexcept {
    return std::span(bytes).subspan(item.at, item.length);
  }
  [[nodiscard]] std::span<const std::byte> encoded(const Item& item) const noexcept;
};

class WriteQueue {
 public:
  // capacity: bytes that may wait. The child of a fork begins with an empty queue: what its parent
  // accepted, its parent writes.
  explicit WriteQueue(std::size_t capacity);

  // Appends what is not yet there, waiting for room at most `patience` seconds; what does not fit
  // then is dropped. Returns the number dropped.
  std::size_t push(const Batch& batch, double patience);

  // Waits until there is something or `seconds` have passed, and takes all of it; null if there is
  // nothing. It stays findable until written().
  std::shared_ptr<Batch> take(double seconds);
  void written();
  void wake();  // take() returns at once

  // Whether everything was written, after at most `seconds`.
  bool drained(double seconds);

  // take(encoded, scope): the entry under a key, while it waits. False if there is none.
  bool find(const Key& key,
            FunctionRef<void(std::span<const std::byte>, std::uint64_t)> take) const;
  [[nodiscard]] bool contains(const Key& key) const;
  // Those for which which(item) are neither found nor, unless they are being written, written.
  std::size_t cancel(FunctionRef<bool(const Batch::Item&)> which);
  [[nodiscard]] bool empty() const noexcept { return count_.load(std::memory_order_relaxed) == 0; }

 private:
  struct Where {
    std::shared_ptr<Batch> batch;
    std::size_t item;
  };

  using Clock = std::chrono::steady_clock;

  static Clock::time_point deadline(double seconds);
  void forget() noexcept;

  const std::size_t capacity_;
  std::atomic<std::size_t> count_{0};  // of where_
  std::shared_ptr<Batch> pending_;
  std::shared_ptr<Batch> writing_;
  std::shared_ptr<Batch> spare_;  // empty, but for its memory
  std::unordered_map<Key, Where> where_;
  bool woken_ = false;
  // Never destroyed in the child of a fork: threads that it does not have may wait on them.
  std::unique_ptr<std::condition_variable> filled_;
  std::unique_ptr<std::condition_variable> emptied_;
  mutable ForkMutex mutex_;
};

}  // namespace tensorkey::internal
