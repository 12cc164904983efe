// What xxh3_variant.inc offers for each instruction set. Plain C types: the sources that
// implement it are compiled for CPUs that may not be this one, so they must not instantiate any
// inline function that other sources share.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace tensorkey::internal {

struct Xxh3Result {
  uint64_t low;
  uint64_t high;
};

// A state is 576 bytes, aligned to 64, and keeps a pointer to the secret.
struct Xxh3Variant {
  Xxh3Result (*hash)(const void* data, size_t bytes, const void* secret, size_t secret_bytes);
  Xxh3Result (*checksum)(const void* data, size_t bytes);  // seed 0, xxHash's own secret
  // Without a secret: seed 0, xxHash's own.
  void (*reset)(void* state, const void* secret, size_t secret_bytes);
  void (*update)(void* state, const void* data, size_t bytes);
  Xxh3Result (*digest)(const void* state);
};

extern const Xxh3Variant kXxh3Baseline;  // SSE2, NEON or plain C
#ifdef __x86_64__
extern const Xxh3Variant kXxh3Avx2;
extern const Xxh3Variant kXxh3Avx512;
#endif

}  // namespace tensorkey::internal
