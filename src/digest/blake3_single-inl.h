// One input alone: the 16 words of the state are four vectors, so four mixes still go together,
// and the message words are permuted from round to round by shuffles in registers. Included once
// for each target.
#if defined(TENSORKEY_BLAKE3_SINGLE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TENSORKEY_BLAKE3_SINGLE_INL_H
#undef TENSORKEY_BLAKE3_SINGLE_INL_H
#else
#define TENSORKEY_BLAKE3_SINGLE_INL_H
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "digest/blake3_kernels.h"
#include "digest/blake3_transpose-inl.h"
#include "digest/blake3_vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tensorkey::internal {
namespace HWY_NAMESPACE {

using D4 = hn::FixedTag<std::uint32_t, 4>;
using V4 = hn::Vec<D4>;

// The byte indices that put word w of a vector into a lane; kNone: zero.
inline constexpr std::uint8_t kNone = 32;
struct WordIndices {
  alignas(16) std::uint8_t bytes[16];
};
constexpr WordIndices word_indices(std::uint8_t w0, std::uint8_t w1, std::uint8_t w2,
                                   std::uint8_t w3) {
  WordIndices indices{};
  const std::uint8_t words[4] = {w0, w1, w2, w3};
  for (std::uint8_t i = 0; i < 16; ++i) {
    const std::uint8_t word = words[i / 4];
    indices.bytes[i] =
        word == kNone ? std::uint8_t{0x80} : static_cast<std::uint8_t>(4 * word + i % 4);
  }
  return indices;
}

HWY_INLINE V4 shuffle(V4 v, const WordIndices& indices) {
  const hn::Repartition<std::uint8_t, D4> d8;
  return hn::BitCast(D4(),
                     hn::TableLookupBytesOr0(hn::BitCast(d8, v), hn::Load(d8, indices.bytes)));
}

// The words of a message in the order of a round: the four column mixes take (a0, b0), (a1, b1)
// .., the four diagonal ones (c0, d0) ..; that is words 0,2,4,6 1,3,5,7 8,10,12,14 9,11,13,15.
struct Message {
  V4 a, b, c, d;
};

HWY_INLINE Message load_message(const std::byte* in) {
  const D4 d;
  const V4 w0 = load_bytes(d, in);
  const V4 w1 = load_bytes(d, in + 16);
  const V4 w2 = load_bytes(d, in + 32);
  const V4 w3 = load_bytes(d, in + 48);
  return {hn::ConcatEven(d, w1, w0), hn::ConcatOdd(d, w1, w0), hn::ConcatEven(d, w3, w2),
          hn::ConcatOdd(d, w3, w2)};
}

// BLAKE3's permutation of the words between rounds, in that order:
//   a = a1 b1 b3 a2   b = a3 c1 a0 d2   c = b0 c2 d0 d3   d = d1 b2 c3 c0
HWY_INLINE Message permute(const Message& m) {
  static constexpr WordIndices kFromA = word_indices(1, kNone, kNone, 2);
  static constexpr WordIndices kFromB = word_indices(kNone, 1, 3, kNone);
  static constexpr WordIndices kOrderB = word_indices(3, 1, 0, 2);
  static constexpr WordIndices kOrderC = word_indices(0, 2, 1, 3);
  alignas(16) static constexpr std::uint32_t kOuterLanes[4] = {~0U, 0, 0, ~0U};
  const D4 d;
  const auto outer = hn::MaskFromVec(hn::Load(d, kOuterLanes));
  const V4 a = hn::Or(shuffle(m.a, kFromA), shuffle(m.b, kFromB));
  const V4 a0_c1_d2_a3 = hn::IfThenElse(outer, m.a, hn::ConcatUpperLower(d, m.d, m.c));
  const V4 b0_d0_c2_d3 =
      hn::ConcatUpperLower(d, hn::OddEven(m.d, m.c), hn::InterleaveLower(d, m.b, m.d));
  const V4 c0_d1_b2_c3 = hn::IfThenElse(outer, m.c, hn::OddEven(m.d, m.b));
  return {a, shuffle(a0_c1_d2_a3, kOrderB), shuffle(b0_d0_c2_d3, kOrderC),
          hn::Shuffle0321(c0_d1_b2_c3)};
}

// The rows of the state: words 0-3, 4-7, 8-11, 12-15.
struct Rows {
  V4 a, b, c, d;
};

HWY_INLINE void mix(Rows& v, V4 x, V4 y) {
  const D4 d;
  v.a = hn::Add(v.a, x);
  pin_always(v.a);  // else GCC adds x to b, for which all wait
  v.a = hn::Add(v.a, v.b);
  v.d = rotate_right<16>(d, hn::Xor(v.d, v.a));
  v.c = hn::Add(v.c, v.d);
  v.b = rotate_right<12>(d, hn::Xor(v.b, v.c));
  v.a = hn::Add(v.a, y);
  pin_always(v.a);
  v.a = hn::Add(v.a, v.b);
  v.d = rotate_right<8>(d, hn::Xor(v.d, v.a));
  v.c = hn::Add(v.c, v.d);
  v.b = rotate_right<7>(d, hn::Xor(v.b, v.c));
}

HWY_INLINE void round(Rows& v, const Message& m) {
  mix(v, m.a, m.b);
  // Diagonals become columns by turning all rows but b, for which the next mix waits: so the
  // message words turn as well.
  v.a = hn::Shuffle2103(v.a);
  v.c = hn::Shuffle0321(v.c);
  v.d = hn::Shuffle1032(v.d);
  mix(v, hn::Shuffle2103(m.c), hn::Shuffle2103(m.d));
  v.a = hn::Shuffle0321(v.a);
  v.c = hn::Shuffle2103(v.c);
  v.d = hn::Shuffle1032(v.d);
}

inline void compress_single(const Batch& batch, const Lanes& lanes) {
  const D4 d;
  const std::byte* in = lanes.in[0];
  V4 low = hn::LoadU(d, batch.key->data());
  V4 high = hn::LoadU(d, batch.key->data() + 4);
  alignas(16) std::uint32_t fourth[4] = {lanes.counter_low[0], lanes.counter_high[0],

                                         kBlockBytes, batch.flags | batch.first_flags};
  alignas(16) std::byte tail[kBlockBytes];
  std::size_t left = batch.length;
  while (true) {
    if (left <= kBlockBytes) fourth[3] |= batch.last_flags;
    if (left < kBlockBytes) {
      std::memset(tail, 0, kBlockBytes);
      if (left != 0) std::memcpy(tail, in, left);
      in = tail;
      fourth[2] = static_cast<std::uint32_t>(left);
    }
    Message m = load_message(in);
    Rows v = {low, high, hn::LoadU(d, kIv.data()), hn::Load(d, fourth)};
    round(v, m);
    for (int i = 1; i < 7; ++i) {
      m = permute(m);
      round(v, m);
    }
    low = hn::Xor(v.a, v.c);
    high = hn::Xor(v.b, v.d);
    if (left <= kBlockBytes) break;
    left -= kBlockBytes;
    in += kBlockBytes;
    fourth[3] = batch.flags;
  }
  store_bytes(d, low, lanes.out[0]);
  store_bytes(d, high, lanes.out[0] + 16);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tensorkey::internal
HWY_AFTER_NAMESPACE();

#endif
