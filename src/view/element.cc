#include "view/element.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/bytes.h"

namespace tensorkey::internal {
namespace {

// Each rule maps the bits of one number to its normal form; Number is what it reads.
struct AsIs {
  using Number = std::uint8_t;
  std::uint8_t operator()(std::uint8_t x) const noexcept { return x; }
};

struct Truth {
  using Number = std::uint8_t;
  std::uint8_t operator()(std::uint8_t x) const noexcept { return x == 0 ? 0 : 1; }
};

struct LowBits {
  using Number = std::uint8_t;
  std::uint8_t mask;
  std::uint8_t operator()(std::uint8_t x) const noexcept {
    return static_cast<std::uint8_t>(x & mask);
  }
};

// A float without NaN in the low bits of a byte.
struct SmallFloat {
  using Number = std::uint8_t;
  std::uint8_t mask;
  std::uint8_t minus_zero;
  std::uint8_t operator()(std::uint8_t x) const noexcept {
    const auto low = static_cast<std::uint8_t>(x & mask);
    return low == minus_zero ? std::uint8_t{0} : low;
  }
};

struct TwoSmallFloats {
  using Number = std::uint8_t;
  std::uint8_t operator()(std::uint8_t x) const noexcept {
    const unsigned low = x & 0x0FU;
    const unsigned high = x & 0xF0U;
    return static_cast<std::uint8_t>((low == 0x08 ? 0 : low) | (high == 0x80 ? 0 : high));
  }
};

template <class T>
struct Canonical {
  using Number = T;
  T largest;  // magnitude: what is above it is a NaN
  T nan;
  T operator()(T x) const noexcept {
    const T magnitude = static_cast<T>(x & static_cast<T>(static_cast<T>(~T{0}) >> 1));
    const T zeroed = magnitude == 0 ? T{0} : x;
    return magnitude > largest ? nan : zeroed;
  }
};

using Canonical8 = Canonical<std::uint8_t>;
using Canonical16 = Canonical<std::uint16_t>;
using Canonical32 = Canonical<std::uint32_t>;
using Canonical64 = Canonical<std::uint64_t>;

LowBits low_bits(DType dtype, DType first) noexcept {
  const unsigned bits = 1U + static_cast<unsigned>(dtype) - static_cast<unsigned>(first);
  return {static_cast<std::uint8_t>((1U << bits) - 1U)};
}

template <class Use>
auto with_rule(DType dtype, bool canonical, Use&& use) noexcept {
  if (dtype == DType::kBool) return use(Truth{});
  if (dtype >= DType::kInt1 && dtype <= DType::kInt7) return use(low_bits(dtype, DType::kInt1));
  if (dtype >= DType::kUInt1 && dtype <= DType::kUInt7) return use(low_bits(dtype, DType::kUInt1));
  if (!canonical) {
    if (dtype == DType::kFloat6E2M3FN || dtype == DType::kFloat6E3M2FN) return use(LowBits{0x3F});
    if (dtype == DType::kFloat4E2M1FN) return use(LowBits{0x0F});
    return use(AsIs{});
  }
  switch (dtype) {
    case DType::kFloat16:
    case DType::kComplex32: return use(Canonical16{0x7C00, 0x7E00});
    case DType::kBFloat16: return use(Canonical16{0x7F80, 0x7FC0});
    case DType::kFloat32:
    case DType::kComplex64: return use(Canonical32{0x7F800000, 0x7FC00000});
    case DType::kFloat64:
    case DType::kComplex128: return use(Canonical64{0x7FF0000000000000, 0x7FF8000000000000});
    case DType::kFloat8E3M4: return use(Canonical8{0x70, 0x78});
    case DType::kFloat8E4M3: return use(Canonical8{0x78, 0x7C});
    case DType::kFloat8E4M3FN: return use(Canonical8{0x7E, 0x7F});
    case DType::kFloat8E5M2: return use(Canonical8{0x7C, 0x7E});
    case DType::kFloat6E2M3FN:
    case DType::kFloat6E3M2FN: return use(SmallFloat{0x3F, 0x20});
    case DType::kFloat4E2M1FN: return use(SmallFloat{0x0F, 0x08});
    case DType::kFloat4E2M1FNx2: return use(TwoSmallFloats{});
    default: return use(AsIs{});
  }
}

template <class T>
T reversed(T x) noexcept {
  if constexpr (sizeof(T) == 2) return __builtin_bswap16(x);
  if constexpr (sizeof(T) == 4) return __builtin_bswap32(x);
  if constexpr (sizeof(T) == 8) return __builtin_bswap64(x);
}

template <class T>
void swap_all(std::byte* data, std::size_t bytes) noexcept {
  for (std::size_t i = 0; i < bytes; i += sizeof(T)) {
    store(data + i, reversed(load<T>(data + i)));
  }
}

}  // namespace

bool always_normal(DType dtype, bool canonical) noexcept {
  return with_rule(dtype, canonical,
                   [](auto rule) { return std::is_same_v<decltype(rule), AsIs>; });
}

bool is_normal(DType dtype, bool canonical, const std::byte* data, std::size_t bytes) noexcept {
  return with_rule(dtype, canonical, [=](auto rule) {
    using T = typename decltype(rule)::Number;
    if constexpr (!std::is_same_v<decltype(rule), AsIs>) {
      // Without a branch inside a block, so that it vectorises; between blocks it may stop early.
      constexpr std::size_t kBlock = 4096;
      for (std::size_t begin = 0; begin < bytes; begin += kBlock) {
        const std::size_t end = std::min(bytes, begin + kBlock);
        T changed = 0;
        for (std::size_t i = begin; i < end; i += sizeof(T)) {
          const T x = load<T>(data + i);
          changed = static_cast<T>(changed | static_cast<T>(rule(x) ^ x));
        }
        if (changed != 0) return false;
      }
    }
    return true;
  });
}

void normalize(DType dtype, bool canonical, std::byte* data, std::size_t bytes) noexcept {
  with_rule(dtype, canonical, [=](auto rule) {
    using T = typename decltype(rule)::Number;
    if constexpr (!std::is_same_v<decltype(rule), AsIs>) {
      for (std::size_t i = 0; i < bytes; i += sizeof(T)) store(data + i, rule(load<T>(data + i)));
    }
  });
}

void swap_bytes(DType dtype, std::byte* data, std::size_t bytes) noexcept {
  switch (find_dtype(dtype)->swap_size) {
    case 2: return swap_all<std::uint16_t>(data, bytes);
    case 4: return swap_all<std::uint32_t>(data, bytes);
    case 8: return swap_all<std::uint64_t>(data, bytes);
    default: return;
  }
}

}  // namespace tensorkey::internal
