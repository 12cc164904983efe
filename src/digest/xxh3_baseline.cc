#define TENSORKEY_XXH3_VARIANT kXxh3Baseline
#include "digest/xxh3_variant.inc"
