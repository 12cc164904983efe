// Between inputs (16 words in a row each) and vectors (word i of all inputs). Highway's shuffles
// stay inside blocks of 128 bits, four words: a block is transposed for each four inputs first,
// then whole blocks change places. Included once for each target.
#if defined(TENSORKEY_BLAKE3_TRANSPOSE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TENSORKEY_BLAKE3_TRANSPOSE_INL_H
#undef TENSORKEY_BLAKE3_TRANSPOSE_INL_H
#else
#define TENSORKEY_BLAKE3_TRANSPOSE_INL_H
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace tensorkey::internal {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Never faults and reads nothing, so the address may lie outside of everything.
HWY_INLINE void prefetch(const std::byte* from, std::ptrdiff_t distance) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(from) +
                                                   static_cast<std::uintptr_t>(distance)));
}

template <class D>
HWY_INLINE hn::Vec<D> load_bytes(D d, const std::byte* from) {
  const hn::Repartition<std::uint8_t, D> d8;
  return hn::BitCast(d, hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(from)));
}

template <class D>
HWY_INLINE void store_bytes(D d, hn::Vec<D> v, std::byte* to) {
  const hn::Repartition<std::uint8_t, D> d8;
  hn::StoreU(hn::BitCast(d8, v), d8, reinterpret_cast<std::uint8_t*>(to));
}

// Each block of r[i] holds four words of one input; afterwards word i of four inputs.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void transpose4(D d, V* r) {
  const hn::Repartition<std::uint64_t, D> d64;
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, r[0], r[1]));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, r[2], r[3]));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, r[0], r[1]));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, r[2], r[3]));
  r[0] = hn::BitCast(d, hn::InterleaveLower(d64, low01, low23));
  r[1] = hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23));
  r[2] = hn::BitCast(d, hn::InterleaveLower(d64, high01, high23));
  r[3] = hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23));
}

// m[i] = word i of the 64 bytes at each in[lane].
template <class D, class V = hn::Vec<D>>
HWY_INLINE void load_words(D d, const std::byte* const* in, V* HWY_RESTRICT m) {
  constexpr std::size_t kLanes = hn::MaxLanes(D());
  if constexpr (kLanes == 4) {
    for (std::size_t q = 0; q < 4; ++q) {
      for (std::size_t i = 0; i < 4; ++i) m[4 * q + i] = load_bytes(d, in[i] + 16 * q);
      transpose4(d, m + 4 * q);
    }
  } else if constexpr (kLanes == 8) {
    for (std::size_t half = 0; half < 2; ++half) {
      V r[8];
      for (std::size_t i = 0; i < 8; ++i) r[i] = load_bytes(d, in[i] + 32 * half);
      transpose4(d, r);
      transpose4(d, r + 4);
      for (std::size_t i = 0; i < 4; ++i) {
        m[8 * half + i] = hn::ConcatLowerLower(d, r[4 + i], r[i]);
        m[8 * half + 4 + i] = hn::ConcatUpperUpper(d, r[4 + i], r[i]);
      }
    }
  } else {
    static_assert(kLanes == 16);
    V r[16];
    for (std::size_t i = 0; i < 16; ++i) r[i] = load_bytes(d, in[i]);
    for (std::size_t i = 0; i < 16; i += 4) transpose4(d, r + i);
    for (std::size_t i = 0; i < 4; ++i) {
      // Blocks: r[i] = a0 a1 a2 a3, r[4 + i] = b0.., r[8 + i] = c0.., r[12 + i] = d0..
      const V ac01 = hn::ConcatLowerLower(d, r[8 + i], r[i]);
      const V bd01 = hn::ConcatLowerLower(d, r[12 + i], r[4 + i]);
      const V ac23 = hn::ConcatUpperUpper(d, r[8 + i], r[i]);
      const V bd23 = hn::ConcatUpperUpper(d, r[12 + i], r[4 + i]);
      m[i] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(bd01), ac01);
      m[4 + i] = hn::OddEvenBlocks(bd01, hn::SwapAdjacentBlocks(ac01));
      m[8 + i] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(bd23), ac23);
      m[12 + i] = hn::OddEvenBlocks(bd23, hn::SwapAdjacentBlocks(ac23));
    }
  }
}

// Writes the eight words h[0..7] of each lane to out[lane].
template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_words(D d, V* HWY_RESTRICT h, std::byte* const* out) {
  constexpr std::size_t kLanes = hn::MaxLanes(D());
  transpose4(d, h);
  transpose4(d, h + 4);
  for (std::size_t i = 0; i < 4; ++i) {
    // Blocks: h[i] = words 0-3 of the lanes i, 4 + i, ..; h[4 + i] = their words 4-7.
    if constexpr (kLanes == 4) {
      store_bytes(d, h[i], out[i]);
      store_bytes(d, h[4 + i], out[i] + 16);
    } else if constexpr (kLanes == 8) {
      store_bytes(d, hn::ConcatLowerLower(d, h[4 + i], h[i]), out[i]);
      store_bytes(d, hn::ConcatUpperUpper(d, h[4 + i], h[i]), out[4 + i]);
    } else {
      const hn::Half<D> half;
      const V even = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(h[4 + i]), h[i]);
      const V odd = hn::OddEvenBlocks(h[4 + i], hn::SwapAdjacentBlocks(h[i]));
      store_bytes(half, hn::LowerHalf(half, even), out[i]);
      store_bytes(half, hn::LowerHalf(half, odd), out[4 + i]);
      store_bytes(half, hn::UpperHalf(half, even), out[8 + i]);
      store_bytes(half, hn::UpperHalf(half, odd), out[12 + i]);
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tensorkey::internal
HWY_AFTER_NAMESPACE();

#endif
