// The steps of BLAKE3's mix on vectors of 32-bit words. Included once for each target.
#if defined(TENSORKEY_BLAKE3_VECTOR_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TENSORKEY_BLAKE3_VECTOR_INL_H
#undef TENSORKEY_BLAKE3_VECTOR_INL_H
#else
#define TENSORKEY_BLAKE3_VECTOR_INL_H
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace tensorkey::internal {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// An empty statement that claims to change v, so that GCC computes it here and as written.
// Clang needs none of this.
template <class V>
HWY_INLINE void pin_always([[maybe_unused]] V& v) {
#if HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_X86
  asm volatile("" : "+v"(v.raw));
#elif HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_ARM
  asm("" : "+w"(v.raw));
#endif
}

// GCC 12 reorders the four mixes of a half round until the 16 registers of AVX2 do not hold them
// (180 moves a block, 0.65 of the speed). AVX-512 has 32 registers and is slower when pinned.
template <class V>
HWY_INLINE void pin([[maybe_unused]] V& v) {
#if HWY_TARGET != HWY_AVX3
  pin_always(v);
#endif
}

// Likewise for the message words: with few registers they are operands from memory, and a copy of
// one in a register costs another register (0.75 of the speed with vectors of 128 bits).
template <class V>
HWY_INLINE void keep_in_memory([[maybe_unused]] V (&m)[16]) {
#if HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_X86 && HWY_TARGET != HWY_AVX3
  asm("" : "+m"(m));
#endif
}

template <int kBits, class D, class V = hn::Vec<D>>
HWY_INLINE V rotate_right([[maybe_unused]] D d, V v) {
#if HWY_TARGET == HWY_AVX3
  return hn::RotateRight<kBits>(v);
#else
  if constexpr (kBits == 16 || kBits == 8) {
    // Whole bytes: one shuffle in place of two shifts and an or.
    alignas(16) static constexpr std::uint8_t kTwoBytes[16] = {2,  3,  0, 1, 6,  7,  4,  5,
                                                               10, 11, 8, 9, 14, 15, 12, 13};
    alignas(16) static constexpr std::uint8_t kOneByte[16] = {1, 2,  3,  0, 5,  6,  7,  4,
                                                              9, 10, 11, 8, 13, 14, 15, 12};
    const hn::Repartition<std::uint8_t, D> d8;
    const auto bytes = hn::LoadDup128(d8, kBits == 16 ? kTwoBytes : kOneByte);
    return hn::BitCast(d, hn::TableLookupBytes(hn::BitCast(d8, v), bytes));
  } else {
    V low = hn::ShiftRight<kBits>(v);
    pin(low);
    v = hn::ShiftLeft<32 - kBits>(v);
    pin(v);
    return hn::Or(v, low);
  }
#endif
}

// a += x, the message word, before a += b, for which all wait: without the pin GCC adds x to b.
template <class V>
HWY_INLINE void add_words4(V& a0, V& a1, V& a2, V& a3, const V& x0, const V& x1, const V& x2,
                           const V& x3) {
  a0 = hn::Add(a0, x0);
  pin_always(a0);
  a1 = hn::Add(a1, x1);
  pin_always(a1);
  a2 = hn::Add(a2, x2);
  pin_always(a2);
  a3 = hn::Add(a3, x3);
  pin_always(a3);
}

template <class V>
HWY_INLINE void add4(V& a0, V& a1, V& a2, V& a3, const V& b0, const V& b1, const V& b2,
                     const V& b3) {
  a0 = hn::Add(a0, b0);
  pin(a0);
  a1 = hn::Add(a1, b1);
  pin(a1);
  a2 = hn::Add(a2, b2);
  pin(a2);
  a3 = hn::Add(a3, b3);
  pin(a3);
}

template <int kBits, class D, class V = hn::Vec<D>>
HWY_INLINE void xor_rotate4(D d, V& a0, V& a1, V& a2, V& a3, const V& b0, const V& b1, const V& b2,
                            const V& b3) {
  a0 = hn::Xor(a0, b0);
  pin(a0);
  a1 = hn::Xor(a1, b1);
  pin(a1);
  a2 = hn::Xor(a2, b2);
  pin(a2);
  a3 = hn::Xor(a3, b3);
  pin(a3);
  a0 = rotate_right<kBits>(d, a0);
  pin(a0);
  a1 = rotate_right<kBits>(d, a1);
  pin(a1);
  a2 = rotate_right<kBits>(d, a2);
  pin(a2);
  a3 = rotate_right<kBits>(d, a3);
  pin(a3);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tensorkey::internal
HWY_AFTER_NAMESPACE();

#endif
