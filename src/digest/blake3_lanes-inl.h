// Several inputs of one length, one in each lane of a vector: vector i holds word i of all of
// them. Included once for each target by foreach_target.h, hence the toggled guard.
#if defined(TENSORKEY_BLAKE3_LANES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TENSORKEY_BLAKE3_LANES_INL_H
#undef TENSORKEY_BLAKE3_LANES_INL_H
#else
#define TENSORKEY_BLAKE3_LANES_INL_H
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

// Four mixes of the compression function at once, statement by statement: what one waits for, the
// other three fill. x and y are the message words of each mix.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void mix4(D d, V& a0, V& a1, V& a2, V& a3, V& b0, V& b1, V& b2, V& b3, V& c0, V& c1,
                     V& c2, V& c3, V& d0, V& d1, V& d2, V& d3, const V& x0, const V& x1,
                     const V& x2, const V& x3, const V& y0, const V& y1, const V& y2, const V& y3) {
  add_words4(a0, a1, a2, a3, x0, x1, x2, x3);
  add4(a0, a1, a2, a3, b0, b1, b2, b3);
  xor_rotate4<16>(d, d0, d1, d2, d3, a0, a1, a2, a3);
  add4(c0, c1, c2, c3, d0, d1, d2, d3);
  xor_rotate4<12>(d, b0, b1, b2, b3, c0, c1, c2, c3);
  add_words4(a0, a1, a2, a3, y0, y1, y2, y3);
  add4(a0, a1, a2, a3, b0, b1, b2, b3);
  xor_rotate4<8>(d, d0, d1, d2, d3, a0, a1, a2, a3);
  add4(c0, c1, c2, c3, d0, d1, d2, d3);
  xor_rotate4<7>(d, b0, b1, b2, b3, c0, c1, c2, c3);
}

template <std::size_t kRound, class D, class V = hn::Vec<D>>
HWY_INLINE void round(D d, V* HWY_RESTRICT v, const V* HWY_RESTRICT m) {
  constexpr auto& s = kSchedule[kRound];
  mix4(d, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13],
       v[14], v[15], m[s[0]], m[s[2]], m[s[4]], m[s[6]], m[s[1]], m[s[3]], m[s[5]], m[s[7]]);
  mix4(d, v[0], v[1], v[2], v[3], v[5], v[6], v[7], v[4], v[10], v[11], v[8], v[9], v[15], v[12],
       v[13], v[14], m[s[8]], m[s[10]], m[s[12]], m[s[14]], m[s[9]], m[s[11]], m[s[13]], m[s[15]]);
}

// `count` inputs, at most kLanes; lanes without one repeat the first and write to nowhere.
template <std::size_t kLanes>
void compress_lanes(const Batch& batch, Lanes& lanes, std::size_t count) {
  const hn::FixedTag<std::uint32_t, kLanes> d;
  using V = hn::Vec<decltype(d)>;
  std::byte nowhere[kCvBytes];
  for (std::size_t i = count; i < kLanes; ++i) lanes.set(i, lanes.in[0], nowhere, 0);

  V h[8];
  for (std::size_t i = 0; i < 8; ++i) h[i] = hn::Set(d, (*batch.key)[i]);
  alignas(64) std::byte tail[kLanes][kBlockBytes];
  std::uint32_t flags = batch.flags | batch.first_flags;
  std::size_t at = 0;  // the same in each input: cheaper than moving so many pointers
  std::size_t left = batch.length;
  std::uint32_t block_length = kBlockBytes;
  while (true) {
    if (left <= kBlockBytes) flags |= batch.last_flags;
    if (left < kBlockBytes) {
      // Never read behind an input: its last bytes move to where zeros follow them.
      for (std::size_t i = 0; i < kLanes; ++i) {
        std::memset(tail[i], 0, kBlockBytes);
        if (left != 0) std::memcpy(tail[i], lanes.in[i] + at, left);
        lanes.in[i] = tail[i];
      }
      at = 0;
      block_length = static_cast<std::uint32_t>(left);
    } else if (batch.prefetch != 0) {
      for (std::size_t i = 0; i < kLanes; ++i) prefetch(lanes.in[i] + at, batch.prefetch);
    }
    V m[16];
    load_words(d, lanes.in, at, m);
    keep_in_memory(m);
    V v[16] = {h[0],
               h[1],
               h[2],
               h[3],
               h[4],
               h[5],
               h[6],
               h[7],
               hn::Set(d, kIv[0]),
               hn::Set(d, kIv[1]),
               hn::Set(d, kIv[2]),
               hn::Set(d, kIv[3]),
               hn::Load(d, lanes.counter_low),
               hn::Load(d, lanes.counter_high),
               hn::Set(d, block_length),
               hn::Set(d, flags)};
    round<0>(d, v, m);
    round<1>(d, v, m);
    round<2>(d, v, m);
    round<3>(d, v, m);
    round<4>(d, v, m);
    round<5>(d, v, m);
    round<6>(d, v, m);
    h[0] = hn::Xor(v[0], v[8]);
    h[1] = hn::Xor(v[1], v[9]);
    h[2] = hn::Xor(v[2], v[10]);
    h[3] = hn::Xor(v[3], v[11]);
    h[4] = hn::Xor(v[4], v[12]);
    h[5] = hn::Xor(v[5], v[13]);
    h[6] = hn::Xor(v[6], v[14]);
    h[7] = hn::Xor(v[7], v[15]);
    if (left <= kBlockBytes) break;
    left -= kBlockBytes;
    at += kBlockBytes;
    flags = batch.flags;
  }
  store_words(d, h, lanes.out);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tensorkey::internal
HWY_AFTER_NAMESPACE();

#endif
