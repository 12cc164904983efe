// BLAKE3's compression for each SIMD target, from one source by Highway's foreach_target.h.
// Headers alone: choosing the target is ours (cpu.h), so nothing of libhwy is linked.

// What the targets need beside their name would have to be asked of the CPU too; BLAKE3 uses none.
#define HWY_DISABLE_PCLMUL_AES
#define HWY_DISABLE_BMI2_FMA
#define HWY_DISABLE_F16C
// Vectors of unknown length do not fit this code; such CPUs have NEON as well.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "digest/blake3_simd.cc"
#include <hwy/foreach_target.h>
// foreach_target.h comes first.
#include <hwy/highway.h>

#include "digest/blake3_kernels.h"

#if HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
#include "digest/blake3_lanes-inl.h"
#include "digest/blake3_single-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tensorkey::internal {
namespace HWY_NAMESPACE {

inline constexpr std::size_t kWidest = HWY_LANES(std::uint32_t);

void compress(const Batch& batch, Lanes& lanes, std::size_t count) noexcept {
  if (count == 1) return compress_single(batch, lanes);
  if (count <= 4) return compress_lanes<4>(batch, lanes, count);
  if constexpr (kWidest > 8) {
    if (count > 8) return compress_lanes<16>(batch, lanes, count);
  }
  if constexpr (kWidest > 4) return compress_lanes<8>(batch, lanes, count);
}

inline constexpr Kernels kKernels = {.width = kWidest, .compress = compress};

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tensorkey::internal
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace tensorkey::internal {

const Kernels* simd_kernels(Target target) noexcept {
  switch (target) {
#if HWY_TARGETS & HWY_AVX3
    case Target::kAvx3: return &N_AVX3::kKernels;
#endif
#if HWY_TARGETS & HWY_AVX2
    case Target::kAvx2: return &N_AVX2::kKernels;
#endif
#if HWY_TARGETS & HWY_SSE4
    case Target::kSse4: return &N_SSE4::kKernels;
#endif
#if HWY_TARGETS & HWY_SSSE3
    case Target::kSsse3: return &N_SSSE3::kKernels;
#endif
#if HWY_TARGETS & HWY_NEON
    case Target::kNeon: return &N_NEON::kKernels;
#endif
    default: return nullptr;
  }
}

}  // namespace tensorkey::internal
#endif
