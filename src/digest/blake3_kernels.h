// The one operation that each target implements: several inputs of one length, at most a chunk
// each, compressed side by side. Chunks, parents and whole short messages all have this form, so
// the tree (blake3_tree.h) and the rows (blake3_rows.cc) are written once for every target.
// Internal; pure and thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "digest/blake3_constants.h"
#include "digest/cpu.h"

namespace tensorkey::internal {

inline constexpr std::size_t kMaxLanes = 16;

// The inputs of one call and where their 32 bytes go. An output may lie in an input: all are read
// before any is written. A call may change every member.
struct Lanes {
  const std::byte* in[kMaxLanes];
  std::byte* out[kMaxLanes];
  // The index of a chunk in its message, or 0; in halves, as the compression wants it.
  alignas(64) std::uint32_t counter_low[kMaxLanes];
  alignas(64) std::uint32_t counter_high[kMaxLanes];

  void set(std::size_t i, const std::byte* from, std::byte* to, std::uint64_t counter) noexcept {
    in[i] = from;
    out[i] = to;
    counter_low[i] = static_cast<std::uint32_t>(counter);
    counter_high[i] = static_cast<std::uint32_t>(counter >> 32);
  }
};

// What the lanes of one call share.
struct Batch {
  const Words8* key;
  std::size_t length;           // bytes of each input, 0..1024; the only bytes that are read
  std::uint32_t flags;          // of every block
  std::uint32_t first_flags;    // added to the first block's
  std::uint32_t last_flags;     // added to the last block's
  std::ptrdiff_t prefetch = 0;  // not 0: touch the bytes that far from those being read
};

struct Kernels {
  std::size_t width;  // most inputs of a call; that many are the fastest
  // REQUIRES: 1 <= count <= width.
  void (*compress)(const Batch& batch, Lanes& lanes, std::size_t count) noexcept;
};

// Null if the target was not compiled in.
[[nodiscard]] const Kernels* find_kernels(Target target) noexcept;

// Those of chosen_target().
[[nodiscard]] const Kernels& kernels() noexcept;

// One input alone.
inline void compress_one(const Batch& batch, const std::byte* in, std::byte* out,
                         std::uint64_t counter) noexcept {
  Lanes lanes;
  lanes.set(0, in, out, counter);
  kernels().compress(batch, lanes, 1);
}

// Implemented by blake3_portable.cc and blake3_simd.cc; find_kernels chooses.
[[nodiscard]] const Kernels& portable_kernels() noexcept;
[[nodiscard]] const Kernels* simd_kernels(Target target) noexcept;

// Collects lanes and compresses them, as many side by side as the target takes. The last ones
// wait for flush().
class LaneQueue {
 public:
  LaneQueue(const Kernels& kernels, const Batch& batch) noexcept
      : kernels_(kernels), batch_(batch) {}

  void push(const std::byte* in, std::byte* out, std::uint64_t counter) noexcept {
    lanes_.set(count_++, in, out, counter);
    if (count_ == kernels_.width) flush();
  }

  void flush() noexcept {
    if (count_ != 0) kernels_.compress(batch_, lanes_, count_);
    count_ = 0;
  }

 private:
  const Kernels& kernels_;
  const Batch batch_;
  std::size_t count_ = 0;
  Lanes lanes_;
};

}  // namespace tensorkey::internal
