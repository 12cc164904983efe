#include "digest/xxh3.h"

#include <errno.h>
#include <sys/auxv.h>
#include <sys/random.h>

#include <array>
#include <cstring>

#include <tensorkey/digest.h>

#include "digest/cpu.h"
#include "digest/xxh3_variant.h"

namespace tensorkey::internal {
namespace {

using Secret = std::array<std::byte, kXxh3SecretBytes>;

// Without getrandom(2) (a sandbox that refuses it): the 16 random bytes that the kernel gives
// every program at its start, stretched by BLAKE3.
void stretch_at_random(Secret& secret) noexcept {
  std::array<std::byte, 17> seed{};
  if (const unsigned long address = getauxval(AT_RANDOM); address != 0) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): that is how the kernel hands the address over
    std::memcpy(seed.data(), reinterpret_cast<const void*>(address), 16);
  }
  for (std::size_t at = 0; at < secret.size(); at += sizeof(Digest)) {
    seed[16] = static_cast<std::byte>(at);
    const Digest part = blake3(seed);
    std::memcpy(secret.data() + at, part.data(), part.size());
  }
}

Secret draw_secret() noexcept {
  Secret secret;
  std::size_t drawn = 0;
  while (drawn < secret.size()) {
    const ssize_t got = getrandom(secret.data() + drawn, secret.size() - drawn, 0);
    if (got > 0) {
      drawn += static_cast<std::size_t>(got);
    } else if (errno != EINTR) {
      stretch_at_random(secret);
      break;
    }
  }
  return secret;
}

const Secret& secret() noexcept {
  static const Secret kSecret = draw_secret();
  return kSecret;
}

const Xxh3Variant& variant() noexcept {
#ifdef __x86_64__
  switch (chosen_target()) {
    case Target::kAvx3: return kXxh3Avx512;
    case Target::kAvx2: return kXxh3Avx2;
    default: break;
  }
#endif
  return kXxh3Baseline;
}

}  // namespace

std::span<const std::byte, kXxh3SecretBytes> xxh3_secret() noexcept { return secret(); }

Hash128 xxh3(std::span<const std::byte> data) noexcept {
  const Secret& key = secret();
  const auto [low, high] = variant().hash(data.data(), data.size(), key.data(), key.size());
  return {low, high};
}

Hash128 xxh3_checksum(std::span<const std::byte> data) noexcept {
  const auto [low, high] = variant().checksum(data.data(), data.size());
  return {low, high};
}

Xxh3Stream::Xxh3Stream(Kind kind) noexcept : variant_(variant()) {
  static_assert(sizeof(Xxh3Stream::state_) == 576);
  const void* const own = kind == kSecret ? secret().data() : nullptr;
  variant_.reset(state_, own, kXxh3SecretBytes);
}

void Xxh3Stream::update(std::span<const std::byte> piece) noexcept {
  if (!piece.empty()) variant_.update(state_, piece.data(), piece.size());
}

Hash128 Xxh3Stream::finalize() const noexcept {
  const auto [low, high] = variant_.digest(state_);
  return {low, high};
}

}  // namespace tensorkey::internal
