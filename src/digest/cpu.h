// Which instructions the digests use: the widest that the CPU and the operating system support,
// found once. Every target computes the same digests. Thread-safe; nothing here fails.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace tensorkey::internal {

// From plain C++ to the widest. kAvx3 is AVX-512 with F, VL, DQ and BW.
enum class Target : unsigned char { kPortable, kSsse3, kSse4, kAvx2, kAvx3, kNeon };
inline constexpr std::size_t kTargetCount = 6;

// "portable", "ssse3", "sse4", "avx2", "avx3", "neon".
[[nodiscard]] std::string_view target_name(Target target) noexcept;

// What was compiled in and runs here, the best first; the last is kPortable.
[[nodiscard]] std::vector<Target> available_targets();

// The target that digests use from now on.
[[nodiscard]] Target chosen_target() noexcept;

// For tests and benchmarks: uses `target` until the next call; nullopt: the best again.
// REQUIRES: target is one of available_targets().
void force_target(std::optional<Target> target) noexcept;

}  // namespace tensorkey::internal
