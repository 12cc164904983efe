// What exists, and where: the reading side of a disk tier's index. It answers from the mirror,
// which it fills at first and keeps up with what other processes write; where the mirror may not
// know, it asks the index. Nothing here throws for what the index meets. Thread-safe; the
// connection is closed before a fork and opened anew by whoever needs it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/fork.h"
#include "store/disk/context.h"

namespace tensorkey::internal {

class Catalog {
 public:
  // Throws kUnavailable if the index can neither be opened nor made, unless it is only busy.
  explicit Catalog(DiskContext& context);
  ~Catalog();
  Catalog(const Catalog&) = delete;
  Catalog& operator=(const Catalog&) = delete;

  // places[i] = where keys[i] is; segment 0 if it is not there, or was committed by another process
  // a moment ago.
  void locate(std::span<const Key> keys, std::span<Place> places);
  // What the index itself says of a key; the mirror follows.
  std::optional<Place> look_up(const Key& key);

  // Fills a part of the mirror; false if all is done.
  bool load();
  // Takes over what others have committed, if anybody has.
  void refresh();

  [[nodiscard]] std::uint64_t entries();
  // Some entries with id > after, ascending; `after` becomes the last one's.
  // Throws kUnavailable if the index cannot be read.
  [[nodiscard]] std::vector<IndexEntry> next_entries(std::int64_t& after);
  [[nodiscard]] const Health& health() const noexcept { return health_; }

 private:
  using Clock = std::chrono::steady_clock;

  // All below: mutex_ is held.
  Index* index();
  template <typename Work>
  bool guarded(Work&& work);
  void synchronise(bool now);  // else at most every few milliseconds
  void forget();
  void remember(const IndexEntry& entry);
  void look_at_segments(Index& index);

  DiskContext& context_;
  Health health_;
  std::unique_ptr<Index> index_;
  Descriptor pin_;            // of the file that index_ has, or had before it was closed
  std::int64_t last_id_ = 0;  // the mirror has the entries up to this one, if they fitted
  std::int64_t version_ = -1;
  Clock::time_point looked_{};
  std::unordered_map<std::uint32_t, std::uint64_t> segments_;  // and their entries
  std::uint64_t gone_ = 0;  // entries of segments that are gone, in the mirror still
  std::atomic<bool> loading_{true};
  bool overflowed_ = false;  // the mirror did not take all
  ForkMutex mutex_;
};

}  // namespace tensorkey::internal
