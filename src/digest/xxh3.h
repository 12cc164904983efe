// XXH3-128 with the random 192-byte secret of this process: finds buckets and sees changes inside
// one process. Never stored, never shared: another process gets other bits. Without a secret,
// collisions of XXH3 can be written down at no cost; with one that nobody knows they cannot, and
// even so whoever uses this compares bytes before he believes it.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>

namespace tensorkey::internal {

struct Hash128 {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

// Uses the widest instructions that the CPU has, chosen at run time.
[[nodiscard]] Hash128 xxh3(std::span<const std::byte> data) noexcept;

// For data in pieces: the same result as xxh3 of the pieces joined.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;
  void update(std::span<const std::byte> piece) noexcept;
  [[nodiscard]] Hash128 finalize() const noexcept;

 private:
  void* state_;
};

}  // namespace tensorkey::internal
