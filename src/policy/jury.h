// The jury: a few shadow caches, each under a tuning of its own, which say under what tuning most
// cost would have been saved lately. No fixed tuning is good at everything: a large window wins on
// bursts and loses on epochs (docs/eviction.md has the figures).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "policy/shadow.h"

namespace tensorkey::internal {

class Jury {
 public:
  // capacity: of the cache. entries: that a shadow may hold; 0: no jury, one tuning for ever.
  Jury(std::uint64_t capacity, std::size_t entries);

  // Which keys are in the sample: those whose upper half is below this. 2^32: all, 0: none.
  [[nodiscard]] std::uint64_t threshold() const noexcept { return threshold_; }
  [[nodiscard]] bool samples(std::uint64_t hash) const noexcept {
    return (hash >> 32) < threshold_;
  }

  // REQUIRES: samples(request.hash). True if the verdict has changed.
  bool access(const Request& request);
  [[nodiscard]] const Tuning& verdict() const noexcept;

  void resize(std::uint64_t capacity);
  [[nodiscard]] std::size_t memory() const noexcept;

 private:
  struct Seat {
    Seat(std::uint64_t capacity, const Tuning& tuning) : shadow(capacity, tuning) {}

    Shadow shadow;
    double saved = 0;  // this round
    double score = 0;  // saved, the older the less
  };

  [[nodiscard]] std::uint64_t share() const noexcept;
  void thin();
  bool vote();

  std::uint64_t capacity_;
  std::size_t limit_;
  std::uint64_t threshold_;
  std::deque<Seat> seats_;  // they do not move
  std::size_t chosen_;
  std::size_t accesses_ = 0;  // this round
  double cost_ = 0;           // this round, of all accesses
  double total_ = 0;          // the same, the older the less
};

}  // namespace tensorkey::internal
