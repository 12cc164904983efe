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
HWY_INLINE hn::Vec<D> load_bytes([[maybe_unused]] D d, const std::byte* from) {
  const hn::Repartition<std::uint8_t, D> d8;
  return hn::BitCast(d, hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(from)));
}

template <class D>
HWY_INLINE void store_bytes([[maybe_unused]] D d, hn::Vec<D> v, std::byte* to) {
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

// The bytes at `low` in the lower half, those at `high` in the upper: an insert from memory costs
// no shuffle.
template <class D>
HWY_INLINE hn::Vec<D> load_halves(D d, const std::byte* low, const std::byte* high) {
  const hn::Half<D> half;
  return hn::Combine(d, load_bytes(half, high), load_bytes(half, low));
}

// m[i] = word i of the 64 bytes at in[lane] + at.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void load_words(D d, const std::byte* const* in, std::size_t at, V* HWY_RESTRICT m) {
  constexpr std::size_t kLanes = hn::MaxLanes(D());
  if constexpr (kLanes == 4) {
    for (std::size_t q = 0; q < 4; ++q) {
      for (std::size_t i = 0; i < 4; ++i) m[4 * q + i] = load_bytes(d, in[i] + at + 16 * q);
      transpose4(d, m + 4 * q);
    }
  } else if constexpr (kLanes == 8) {
    for (std::size_t q = 0; q < 4; ++q) {
      for (std::size_t i = 0; i < 4; ++i) {
        m[4 * q + i] = load_halves(d, in[i] + at + 16 * q, in[4 + i] + at + 16 * q);
      }
      transpose4(d, m + 4 * q);
    }
  } else {
    static_assert(kLanes == 16);
    for (std::size_t h = 0; h < 2; ++h) {
      V r[8];
      for (std::size_t i = 0; i < 8; ++i) {
        r[i] = load_halves(d, in[i] + at + 32 * h, in[8 + i] + at + 32 * h);
      }
      transpose4(d, r);
      transpose4(d, r + 4);
      for (std::size_t i = 0; i < 4; ++i) {
        // Blocks: r[i] = two word groups of inputs 0-3, then of 8-11; r[4 + i]: 4-7, 12-15.
        m[8 * h + i] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(r[4 + i]), r[i]);
        m[8 * h + 4 + i] = hn::OddEvenBlocks(r[4 + i], hn::SwapAdjacentBlocks(r[i]));
      }
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
