// The body of xxh3_baseline.cc, xxh3_avx2.cc and xxh3_avx512.cc, which differ in their compiler
// flags (CMakeLists.txt) and in these two macros:
//   TENSORKEY_XXH3_VARIANT  the name of the Xxh3Variant to define
//   XXH_VECTOR              xxhash.h's choice of instructions (absent: what the flags allow)
// Everything of xxhash.h is static here (XXH_INLINE_ALL). No header of the C++ library: an inline
// function of theirs compiled with AVX-512 might be the copy that the linker keeps for everyone.

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "digest/xxh3_variant.h"

static_assert(sizeof(XXH3_state_t) == 576 && alignof(XXH3_state_t) == 64);

namespace tensorkey::internal {

static Xxh3Result hash(const void* data, size_t bytes, const void* secret, size_t secret_bytes) {
  const XXH128_hash_t h = XXH3_128bits_withSecret(data, bytes, secret, secret_bytes);
  return {h.low64, h.high64};
}

static void reset(void* state, const void* secret, size_t secret_bytes) {
  XXH3_state_t* const s = static_cast<XXH3_state_t*>(state);
  XXH3_INITSTATE(s);
  XXH3_128bits_reset_withSecret(s, secret, secret_bytes);
}

static void update(void* state, const void* data, size_t bytes) {
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state), data, bytes);
}

static Xxh3Result digest(const void* state) {
  const XXH128_hash_t h = XXH3_128bits_digest(static_cast<const XXH3_state_t*>(state));
  return {h.low64, h.high64};
}

const Xxh3Variant TENSORKEY_XXH3_VARIANT = {hash, reset, update, digest};

}  // namespace tensorkey::internal
