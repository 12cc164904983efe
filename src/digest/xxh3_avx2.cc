#define TENSORKEY_XXH3_VARIANT kXxh3Avx2
#define XXH_VECTOR XXH_AVX2
#include "digest/xxh3_variant.inc"
