#include "memo/numbers.h"

#include <cmath>
#include <limits>

#include "base/bytes.h"

namespace tensorkey::internal {
namespace {

enum class Specials : std::uint8_t {
  kIeee,      // the largest exponent is infinity and NaN
  kLargest,   // NaN alone, where all bits but the sign are set
  kNegative,  // NaN alone, where -0.0 would be
  kNone,
};

// A float of 16 bits or less: sign, exponent, mantissa.
struct Format {
  int exponent_bits, mantissa_bits, bias;
  DType dtype;
  Specials specials;
};

constexpr Format kFormats[] = {
    {5, 10, 15, DType::kFloat16, Specials::kIeee},
    {8, 7, 127, DType::kBFloat16, Specials::kIeee},
    {3, 4, 3, DType::kFloat8E3M4, Specials::kIeee},
    {4, 3, 7, DType::kFloat8E4M3, Specials::kIeee},
    {4, 3, 11, DType::kFloat8E4M3B11FNUZ, Specials::kNegative},
    {4, 3, 7, DType::kFloat8E4M3FN, Specials::kLargest},
    {4, 3, 8, DType::kFloat8E4M3FNUZ, Specials::kNegative},
    {5, 2, 15, DType::kFloat8E5M2, Specials::kIeee},
    {5, 2, 16, DType::kFloat8E5M2FNUZ, Specials::kNegative},
    {2, 3, 1, DType::kFloat6E2M3FN, Specials::kNone},
    {3, 2, 3, DType::kFloat6E3M2FN, Specials::kNone},
    {2, 1, 1, DType::kFloat4E2M1FN, Specials::kNone},
};

const Format* find_format(DType dtype) noexcept {
  for (const Format& format : kFormats) {
    if (format.dtype == dtype) return &format;
  }
  return nullptr;
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double value(const Format& format, unsigned bits) noexcept {
  const unsigned sign = 1U << static_cast<unsigned>(format.exponent_bits + format.mantissa_bits);
  const unsigned mantissa_end = 1U << static_cast<unsigned>(format.mantissa_bits);
  const unsigned exponent = (bits & (sign - 1)) >> static_cast<unsigned>(format.mantissa_bits);
  const unsigned mantissa = bits & (mantissa_end - 1);
  const bool negative = (bits & sign) != 0;
  const bool top = exponent == (1U << static_cast<unsigned>(format.exponent_bits)) - 1;
  double magnitude = 0;
  const bool all_set = top && mantissa == mantissa_end - 1;
  if (format.specials == Specials::kIeee && top) {
    magnitude = mantissa == 0 ? std::numeric_limits<double>::infinity() : kNan;
  } else if ((format.specials == Specials::kLargest && all_set) ||
             (format.specials == Specials::kNegative && bits == sign)) {
    magnitude = kNan;
  } else {
    const unsigned whole = exponent == 0 ? mantissa : mantissa | mantissa_end;
    const int scale = (exponent == 0 ? 1 : static_cast<int>(exponent)) - format.bias;
    magnitude = std::ldexp(static_cast<double>(whole), scale - format.mantissa_bits);
  }
  return negative ? -magnitude : magnitude;
}

// The part of a complex dtype; any other as it is.
DType part_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::kComplex32: return DType::kFloat16;
    case DType::kComplex64: return DType::kFloat32;
    case DType::kComplex128: return DType::kFloat64;
    case DType::kFloat4E2M1FNx2: return DType::kFloat4E2M1FN;
    default: return dtype;
  }
}

template <class T>
void append_as(std::span<const std::byte> elements, std::vector<double>& out) {
  for (std::size_t at = 0; at < elements.size(); at += sizeof(T)) {
    out.push_back(static_cast<double>(load<T>(elements.data() + at)));
  }
}

bool is_between(DType dtype, DType first, DType last) noexcept {
  return first <= dtype && dtype <= last;
}

void append_small_integers(DType dtype, std::span<const std::byte> elements,
                           std::vector<double>& out) {
  const bool is_signed = dtype <= DType::kInt7;
  const auto first = static_cast<unsigned>(is_signed ? DType::kInt1 : DType::kUInt1);
  const unsigned bits = (static_cast<unsigned>(dtype) - first + 1) & 7U;
  for (const std::byte element : elements) {
    int number = static_cast<int>(static_cast<unsigned>(element) & ((1U << bits) - 1));
    if (is_signed && number >> (bits - 1) != 0) number -= 1 << bits;
    out.push_back(number);
  }
}

}  // namespace

NumberInfo number_info(DType dtype) noexcept {
  const DType part = part_of(dtype);
  if (part == DType::kFloat32) {
    return {.kind = NumberKind::kFloat, .epsilon = std::numeric_limits<float>::epsilon()};
  }
  if (part == DType::kFloat64) {
    return {.kind = NumberKind::kFloat, .epsilon = std::numeric_limits<double>::epsilon()};
  }
  if (part == DType::kFloat8E8M0FNU) return {.kind = NumberKind::kFloat, .epsilon = 1, .limit = 4};
  if (const Format* format = find_format(part)) {
    return {
        .kind = NumberKind::kFloat, .epsilon = std::ldexp(1, -format->mantissa_bits), .limit = 4};
  }
  if (is_between(part, DType::kInt8, DType::kUInt64) ||
      is_between(part, DType::kInt1, DType::kInt7) ||
      is_between(part, DType::kUInt1, DType::kUInt7)) {
    return {.kind = NumberKind::kInteger};
  }
  return {};
}

void append_numbers(DType dtype, std::span<const std::byte> elements, std::vector<double>& out) {
  const DType part = part_of(dtype);
  switch (part) {
    case DType::kFloat32: return append_as<float>(elements, out);
    case DType::kFloat64: return append_as<double>(elements, out);
    case DType::kInt8: return append_as<std::int8_t>(elements, out);
    case DType::kInt16: return append_as<std::int16_t>(elements, out);
    case DType::kInt32: return append_as<std::int32_t>(elements, out);
    case DType::kInt64: return append_as<std::int64_t>(elements, out);
    case DType::kUInt8: return append_as<std::uint8_t>(elements, out);
    case DType::kUInt16: return append_as<std::uint16_t>(elements, out);
    case DType::kUInt32: return append_as<std::uint32_t>(elements, out);
    case DType::kUInt64: return append_as<std::uint64_t>(elements, out);
    case DType::kFloat8E8M0FNU:
      for (const std::byte element : elements) {
        const int exponent = static_cast<int>(element);
        out.push_back(exponent == 0xFF ? kNan : std::ldexp(1, exponent - 127));
      }
      return;
    default: break;
  }
  const Format* const format = find_format(part);
  if (format == nullptr) return append_small_integers(part, elements, out);
  if (item_size(part) == 2) {
    for (std::size_t at = 0; at < elements.size(); at += 2) {
      out.push_back(value(*format, load<std::uint16_t>(elements.data() + at)));
    }
    return;
  }
  for (const std::byte element : elements) {
    const auto bits = static_cast<unsigned>(element);
    if (dtype == DType::kFloat4E2M1FNx2) {
      out.push_back(value(*format, bits & 0xFU));
      out.push_back(value(*format, bits >> 4U));
    } else {
      out.push_back(value(*format, bits));
    }
  }
}

}  // namespace tensorkey::internal
