#include "digest/blake3_kernels.h"

namespace tensorkey::internal {

const Kernels* find_kernels(Target target) noexcept {
  return target == Target::kPortable ? &portable_kernels() : simd_kernels(target);
}

const Kernels& kernels() noexcept { return *find_kernels(chosen_target()); }

}  // namespace tensorkey::internal
