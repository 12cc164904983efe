// Rows that were computed under weights that nobody has looked at yet: they are in memory alone,
// where this process may hit them, until it is known whether they are true. Thread-safe.
//
// A row is in memory only while it is listed here: both happen under one mutex, so that a drop
// misses none. Who asks for rows before a drop and computes them after it holds an old ticket, and
// keeps them for himself.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include <tensorkey/entry.h>
#include <tensorkey/key.h>

#include "base/fork.h"
#include "store/tiers.h"

namespace tensorkey::internal {

class PendingRows {
 public:
  using OwnSecret = std::optional<std::array<std::uint8_t, 32>>;

  // REQUIRES: the tiers outlive it.
  explicit PendingRows(Tiers& tiers) noexcept : tiers_(tiers) {}

  // Of rows that are looked up now: how many drops there were.
  [[nodiscard]] std::uint64_t ticket() const noexcept { return drops_; }

  // Puts a computed row into memory and lists it; null if the row is for its own batch alone. Not
  // null where there is a tier below memory, unless the ticket is old or too much is pending.
  [[nodiscard]] EntryPtr keep(const EntryParts& parts, std::uint64_t scope, const OwnSecret& secret,
                              std::uint64_t ticket);

  // See Memo::settle.
  std::size_t confirm();
  std::size_t drop();
  [[nodiscard]] std::size_t count() const;
  [[nodiscard]] bool full() const noexcept { return full_; }

 private:
  // Entries for a tier below memory that agree in what they are written with.
  struct Group {
    std::uint64_t scope;
    OwnSecret secret;
    std::vector<EntryPtr> entries;
  };

  void clear() noexcept;

  Tiers& tiers_;
  mutable ForkMutex mutex_;  // newer than those of the tiers, which are taken under it
  std::vector<Key> keys_;
  std::vector<Group> groups_;  // of the same rows; none where there is no tier below memory
  std::size_t size_ = 0;       // bytes of entries, or keys where there is none
  std::atomic<bool> full_{false};
  std::atomic<std::uint64_t> drops_{0};  // changed under the mutex
};

}  // namespace tensorkey::internal
