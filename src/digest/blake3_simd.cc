#include "digest/blake3_kernels.h"

namespace tensorkey::internal {

const Kernels* simd_kernels(Target /*target*/) noexcept { return nullptr; }

}  // namespace tensorkey::internal
