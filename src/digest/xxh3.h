// XXH3-128 with the random 192-byte secret of this process: finds buckets and sees changes inside
// one process. Never stored, never shared: another process gets other bits. Without a secret,
// collisions of XXH3 can be written down at no cost; with one that nobody knows they cannot, and
// even so whoever uses this compares bytes before he believes it.
//
// xxh3_checksum alone has no secret: the same bits everywhere, stored with entries, good against
// accidents and nothing else.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>

namespace tensorkey::internal {

struct Xxh3Variant;

struct Hash128 {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

// Uses the widest instructions that the CPU has, chosen at run time. Thread-safe.
[[nodiscard]] Hash128 xxh3(std::span<const std::byte> data) noexcept;

// XXH3_128bits of the xxHash specification: seed 0, its default secret. Thread-safe.
[[nodiscard]] Hash128 xxh3_checksum(std::span<const std::byte> data) noexcept;

// For data in pieces: the same result as xxh3, or xxh3_checksum, of the pieces joined. Not
// thread-safe.
class Xxh3Stream {
 public:
  enum Kind : std::uint8_t { kSecret, kChecksum };
  explicit Xxh3Stream(Kind kind = kSecret) noexcept;
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;
  void update(std::span<const std::byte> piece) noexcept;
  [[nodiscard]] Hash128 finalize() const noexcept;

 private:
  const Xxh3Variant& variant_;
  alignas(64) std::byte state_[576];  // an XXH3_state_t
};

// The secret itself, for tests that compute the same by other means.
inline constexpr std::size_t kXxh3SecretBytes = 192;
[[nodiscard]] std::span<const std::byte, kXxh3SecretBytes> xxh3_secret() noexcept;

}  // namespace tensorkey::internal
