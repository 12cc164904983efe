#define TENSORKEY_XXH3_VARIANT kXxh3Avx512
#define XXH_VECTOR XXH_AVX512
#include "digest/xxh3_variant.inc"
