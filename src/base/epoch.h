// Epochs: readers use what a writer may take away at any time, without a lock (K. Fraser,
// "Practical lock-freedom", 2004, section 5.2.3). A reader holds an EpochGuard while it looks at
// shared structures; a writer first unlinks an object, then asks retire_epoch() for a tag, and may
// free the object as soon as epoch_passed(tag): every reader that could have seen it is gone.
//
// What a guard protects must be published and unlinked by seq_cst stores and loaded by seq_cst
// loads. Guards are for moments: nothing that waits or calls foreign code happens under one. They
// nest. One domain for the process; after fork() the child forgets the readers that it does not
// have.
#pragma once

#include <atomic>
#include <cstdint>

namespace tensorkey::internal {

class EpochGuard {
 public:
  EpochGuard() noexcept;
  ~EpochGuard();
  EpochGuard(const EpochGuard&) = delete;
  EpochGuard& operator=(const EpochGuard&) = delete;

 private:
  struct Slot* slot_;
};

[[nodiscard]] std::uint64_t retire_epoch() noexcept;
[[nodiscard]] bool epoch_passed(std::uint64_t tag) noexcept;

// A small number of the calling thread, to spread counters over cache lines: threads alive at the
// same time have different ones.
[[nodiscard]] unsigned thread_number() noexcept;

}  // namespace tensorkey::internal
