#include "store/half.h"

#include <bit>
#include <cstdint>
#include <cstring>

namespace tensorkey::internal {
namespace {

// A binary interchange format: its bits, and how they are divided.
template <class BitsType, int kExponentBits, class FloatType = void>
struct Format {
  using Bits = BitsType;
  using Float = FloatType;  // the C++ type, if there is one
  static constexpr int kMantissa = 8 * static_cast<int>(sizeof(Bits)) - 1 - kExponentBits;
  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  static constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  static constexpr Bits kMantissaMask = static_cast<Bits>((Bits{1} << kMantissa) - 1);
  static constexpr Bits kInfinity = static_cast<Bits>((Bits{1} << kExponentBits) - 1) << kMantissa;
  static constexpr Bits kQuiet = static_cast<Bits>(Bits{1} << (kMantissa - 1));
};
using Float16 = Format<std::uint16_t, 5>;
using BFloat16 = Format<std::uint16_t, 8>;
using Float32 = Format<std::uint32_t, 8, float>;
using Float64 = Format<std::uint64_t, 11, double>;

// value / 2^shift, to the nearest, ties to even. REQUIRES: 0 < shift < bits of T.
template <class T>
T round_shift(T value, int shift) noexcept {
  const T half_less_one = static_cast<T>((T{1} << (shift - 1)) - 1);
  return static_cast<T>((value + half_less_one + ((value >> shift) & 1)) >> shift);
}

// Said by masks, because compilers make branches of ?: and std::min.
template <class T>
T select(bool condition, T yes, T no) noexcept {
  const T mask = static_cast<T>(T{0} - static_cast<T>(condition));
  return static_cast<T>((yes & mask) | (no & static_cast<T>(~mask)));
}
int at_least_zero(int value) noexcept { return value & ~(value >> 31); }
int at_most(int value, int most) noexcept {
  return most + ((value - most) & ((value - most) >> 31));
}

// Without branches: activations behind a ReLU are zero as often as not, in no order.
template <class From, class To>
typename To::Bits narrow(typename From::Bits bits) noexcept {
  using Wide = typename From::Bits;
  using Bits = typename To::Bits;
  constexpr int kShift = From::kMantissa - To::kMantissa;
  constexpr int kRebias = From::kBias - To::kBias;
  constexpr int kSignShift = 8 * static_cast<int>(sizeof(Wide) - sizeof(Bits));
  const Wide sign = (bits & From::kSign) >> kSignShift;
  const Wide magnitude = bits & static_cast<Wide>(~From::kSign);
  // NaN: the sign and the upper payload stay, and it is made quiet.
  const Wide nan =
      (Wide{To::kInfinity | To::kQuiet}) | ((magnitude & From::kMantissaMask) >> kShift);

  Wide rounded;
  if constexpr (kRebias == 0) {
    rounded = round_shift(magnitude, kShift);  // the same exponents; infinity stays what it is
  } else {
    // The significand with its implicit bit. A number that is subnormal in the narrow format, or
    // zero, is shifted further; from some point on nothing is left of it.
    const int exponent = static_cast<int>(magnitude >> From::kMantissa);
    const int above = at_least_zero(exponent - kRebias - 1);
    const int below = at_least_zero(kRebias + 1 - exponent);
    const Wide significand = (magnitude & From::kMantissaMask) | (From::kMantissaMask + 1);
    rounded = round_shift(significand, at_most(kShift + below, From::kMantissa + 2));
    rounded += static_cast<Wide>(above) << To::kMantissa;
    rounded = select<Wide>(rounded > To::kInfinity, To::kInfinity, rounded);
  }
  return static_cast<Bits>(sign | select<Wide>(magnitude > From::kInfinity, nan, rounded));
}

// Exact, and again without branches.
template <class From, class To>
typename To::Bits widen(typename From::Bits bits) noexcept {
  using Wide = typename To::Bits;
  constexpr int kShift = To::kMantissa - From::kMantissa;
  constexpr int kRebias = To::kBias - From::kBias;
  constexpr int kSignShift = 8 * static_cast<int>(sizeof(Wide) - sizeof(bits));
  const Wide sign = static_cast<Wide>(bits & From::kSign) << kSignShift;
  const Wide magnitude = bits & static_cast<typename From::Bits>(~From::kSign);
  const Wide shifted = magnitude << kShift;
  if constexpr (kRebias == 0) {
    return sign | shifted;
  } else {
    // A subnormal or zero is an integer times a power of two, and so is what it becomes: the
    // product is exact and normal, whatever the thread's rounding and denormal modes are.
    constexpr Wide kUnit = static_cast<Wide>(kRebias + 1 - From::kMantissa) << To::kMantissa;
    const auto small =
        std::bit_cast<Wide>(static_cast<typename To::Float>(static_cast<std::int32_t>(magnitude)) *
                            std::bit_cast<typename To::Float>(kUnit));
    const Wide normal = shifted + (static_cast<Wide>(kRebias) << To::kMantissa);
    const Wide special = shifted | To::kInfinity;
    const Wide large = select<Wide>(magnitude >= From::kInfinity, special, normal);
    return sign | select<Wide>(magnitude > From::kMantissaMask, large, small);
  }
}

template <class From, class To, typename To::Bits (*kConvert)(typename From::Bits) noexcept>
void convert(std::span<const std::byte> from, std::span<std::byte> to) noexcept {
  const std::size_t count = from.size() / sizeof(typename From::Bits);
  for (std::size_t i = 0; i < count; ++i) {
    typename From::Bits in;
    std::memcpy(&in, from.data() + i * sizeof in, sizeof in);
    const typename To::Bits out = kConvert(in);
    std::memcpy(to.data() + i * sizeof out, &out, sizeof out);
  }
}

template <class Wide>
void narrow_all(Codec codec, std::span<const std::byte> from, std::span<std::byte> to) noexcept {
  if (codec == Codec::kFloat16) return convert<Wide, Float16, narrow<Wide, Float16>>(from, to);
  convert<Wide, BFloat16, narrow<Wide, BFloat16>>(from, to);
}

template <class Wide>
void widen_all(Codec codec, std::span<const std::byte> from, std::span<std::byte> to) noexcept {
  if (codec == Codec::kFloat16) return convert<Float16, Wide, widen<Float16, Wide>>(from, to);
  convert<BFloat16, Wide, widen<BFloat16, Wide>>(from, to);
}

// Bytes of one float: 4 or 8.
std::size_t part_size(DType dtype) noexcept { return find_dtype(dtype)->swap_size; }

}  // namespace

bool can_halve(DType dtype) noexcept {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kComplex64 ||
         dtype == DType::kComplex128;
}

std::size_t halved_size(DType dtype, std::size_t bytes) noexcept {
  return bytes / part_size(dtype) * sizeof(std::uint16_t);
}

void to_halves(Codec codec, DType dtype, std::span<const std::byte> elements,
               std::span<std::byte> halves) noexcept {
  if (part_size(dtype) == 4) return narrow_all<Float32>(codec, elements, halves);
  narrow_all<Float64>(codec, elements, halves);
}

void from_halves(Codec codec, DType dtype, std::span<const std::byte> halves,
                 std::span<std::byte> elements) noexcept {
  if (part_size(dtype) == 4) return widen_all<Float32>(codec, halves, elements);
  widen_all<Float64>(codec, halves, elements);
}

}  // namespace tensorkey::internal
