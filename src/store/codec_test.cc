#include <tensorkey/codec.h>

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <tensorkey/error.h>

namespace tensorkey {
namespace {

using Bytes = std::vector<std::byte>;

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

ErrorCode code_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("expected"), std::string::npos) << error.what();
    EXPECT_EQ(error.what()[0], '[');
    return error.code();
  }
  ADD_FAILURE() << "no Error was thrown";
  return ErrorCode::kInternal;
}

// Encodes, decodes, and returns what came back.
Bytes there_and_back(Codec wanted, DType dtype, const Bytes& elements, Codec expected,
                     std::size_t* stored_size = nullptr) {
  Bytes stored{std::byte{1}};
  const Codec used = encode(wanted, dtype, elements, stored);
  EXPECT_EQ(used, expected) << to_string(wanted) << " of " << to_string(dtype);
  const std::array dims{static_cast<std::int64_t>(elements.size() / item_size(dtype))};
  const TensorParts parts{.dtype = dtype, .shape = dims, .codec = used, .data = stored};
  EXPECT_EQ(decoded_size(parts), elements.size());
  Bytes back(elements.size());
  decode(parts, back);
  if (stored_size != nullptr) *stored_size = stored.size();
  return back;
}

float as_half(float value, Codec codec) {
  const Bytes back = there_and_back(codec, DType::kFloat32, bytes_of<float>({value}), codec);
  float result = 0;
  std::memcpy(&result, back.data(), sizeof result);
  return result;
}

TEST(Codec, NamesAndNumbers) {
  for (const auto& [name, codec] : {std::pair{"raw", Codec::kRaw},
                                    {"lossless", Codec::kLossless},
                                    {"fp16", Codec::kFloat16},
                                    {"bf16", Codec::kBFloat16}}) {
    EXPECT_EQ(to_string(codec), name);
    EXPECT_EQ(codec_from_name(name), codec);
  }
  EXPECT_EQ(to_string(static_cast<Codec>(4)), "unknown");
  EXPECT_EQ(codec_from_name("unknown"), std::nullopt);
  EXPECT_EQ(codec_from_name(""), std::nullopt);
  EXPECT_FALSE(is_lossy(Codec::kRaw));
  EXPECT_FALSE(is_lossy(Codec::kLossless));
  EXPECT_TRUE(is_lossy(Codec::kFloat16));
  EXPECT_TRUE(is_lossy(Codec::kBFloat16));
}

TEST(Codec, LosslessGivesEveryDtypeBack) {
  std::mt19937_64 random;  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same in every run
  for (unsigned id = 1; id < 70; ++id) {
    const auto dtype = static_cast<DType>(id);
    if (item_size(dtype) == 0) continue;
    for (const std::size_t count : {200UL, 20'000UL}) {
      Bytes elements(count * item_size(dtype));
      // The last bytes of each element have few values, as exponents do.
      for (std::size_t i = 0; i < elements.size(); ++i) {
        elements[i] = static_cast<std::byte>(
            random() % (i % item_size(dtype) >= item_size(dtype) / 2 ? 3 : 256));
      }
      std::size_t stored = 0;
      EXPECT_EQ(there_and_back(Codec::kLossless, dtype, elements, Codec::kLossless, &stored),
                elements);
      EXPECT_LT(stored, count < 1000 ? elements.size() : elements.size() * 3 / 4);
    }
  }
}

TEST(Codec, LosslessFallsBackToRaw) {
  std::mt19937_64 random;  // NOLINT(cert-msc32-c,cert-msc51-cpp)
  for (const std::size_t size : {0UL, 1UL, 4UL, 16UL, 4096UL, 100'000UL}) {
    Bytes noise(size);
    for (std::byte& b : noise) b = static_cast<std::byte>(random());
    EXPECT_EQ(there_and_back(Codec::kLossless, DType::kUInt8, noise, Codec::kRaw), noise);
  }
}

TEST(Codec, HalvesAreForWideFloatsAlone) {
  const Bytes elements(240, std::byte{0x41});
  for (const Codec half : {Codec::kFloat16, Codec::kBFloat16}) {
    for (unsigned id = 1; id < 70; ++id) {
      const auto dtype = static_cast<DType>(id);
      if (item_size(dtype) == 0) continue;
      const bool wide = dtype == DType::kFloat32 || dtype == DType::kFloat64 ||
                        dtype == DType::kComplex64 || dtype == DType::kComplex128;
      std::size_t stored = 0;
      const Bytes back = there_and_back(half, dtype, elements, wide ? half : Codec::kRaw, &stored);
      if (!wide) {
        EXPECT_EQ(back, elements) << to_string(dtype);
      } else {
        EXPECT_EQ(stored, elements.size() * 2 / find_dtype(dtype)->swap_size);
      }
    }
    EXPECT_TRUE(there_and_back(half, DType::kFloat32, {}, Codec::kRaw).empty());
  }
}

TEST(Codec, HalvesRoundToNearestEven) {
  const auto fp16 = [](float value) { return as_half(value, Codec::kFloat16); };
  const auto bf16 = [](float value) { return as_half(value, Codec::kBFloat16); };
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(fp16(1 + 0x1p-11F), 1);               // a tie, down to even
  EXPECT_EQ(fp16(1 + 0x3p-11F), 1 + 0x1p-9F);     // a tie, up to even
  EXPECT_EQ(fp16(1 + 0x1.2p-11F), 1 + 0x1p-10F);  // above a tie
  EXPECT_EQ(fp16(65519), 65504);                  // the largest
  EXPECT_EQ(fp16(65520), kInfinity);              // half a step above it
  EXPECT_EQ(fp16(-1e30F), -kInfinity);
  EXPECT_EQ(fp16(kInfinity), kInfinity);
  EXPECT_EQ(fp16(0x1p-24F), 0x1p-24F);  // the least subnormal
  EXPECT_EQ(fp16(0x1p-25F), 0);         // half of it: a tie, to even
  EXPECT_EQ(fp16(0x1.8p-25F), 0x1p-24F);
  EXPECT_EQ(fp16(0x3p-25F), 0x1p-23F);      // a tie among subnormals
  EXPECT_EQ(fp16(0x1.FFFp-15F), 0x1p-14F);  // up to the least normal
  EXPECT_EQ(fp16(1e-45F), 0);
  EXPECT_TRUE(std::signbit(fp16(-0.0F)));
  EXPECT_TRUE(std::signbit(fp16(-1e-30F)));
  EXPECT_EQ(bf16(1 + 0x1p-8F), 1);
  EXPECT_EQ(bf16(1 + 0x3p-8F), 1 + 0x1p-6F);
  EXPECT_EQ(bf16(std::numeric_limits<float>::max()), kInfinity);
  EXPECT_EQ(bf16(0x1p-133F), 0x1p-133F);
  EXPECT_EQ(bf16(0x1p-134F), 0);
}

// 1 + 2^-11 + 2^-40 is just above a tie: by way of float32 it would be one, and go down.
TEST(Codec, DoublesAreRoundedOnce) {
  const Bytes back = there_and_back(Codec::kFloat16, DType::kFloat64,
                                    bytes_of<double>({1 + 0x1p-11 + 0x1p-40}), Codec::kFloat16);
  EXPECT_EQ(back, bytes_of<double>({1 + 0x1p-10}));
}

// All 2^16 halves: exact when widened, and unchanged by another rounding but for NaN made quiet.
template <class Wide, class Bits>
void check_all_halves(Codec codec, DType dtype, int exponent_bits) {
  const int mantissa = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  std::vector<std::uint16_t> halves(1 << 16);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  const std::array<std::int64_t, 1> dims{1 << 16};
  std::vector<Wide> wide(halves.size());
  decode({.dtype = dtype, .shape = dims, .codec = codec, .data = std::as_bytes(std::span(halves))},
         std::as_writable_bytes(std::span(wide)));
  Bytes again;
  ASSERT_EQ(encode(codec, dtype, std::as_bytes(std::span(wide)), again), codec);
  for (std::size_t i = 0; i < halves.size(); ++i) {
    const int exponent = static_cast<int>(i >> mantissa) & (2 * bias + 1);
    const int fraction = static_cast<int>(i) & ((1 << mantissa) - 1);
    std::uint16_t back = 0;
    std::memcpy(&back, again.data() + 2 * i, sizeof back);
    if (exponent == 2 * bias + 1 && fraction != 0) {
      ASSERT_TRUE(std::isnan(wide[i])) << i;
      ASSERT_EQ(std::bit_cast<Bits>(wide[i]) >> (8 * sizeof(Bits) - 1), i >> 15) << i;
      ASSERT_EQ(back, i | 1U << (mantissa - 1));
      continue;
    }
    const double value = exponent == 2 * bias + 1
                             ? std::numeric_limits<double>::infinity()
                             : std::ldexp(exponent == 0 ? fraction : fraction + (1 << mantissa),
                                          (exponent == 0 ? 1 : exponent) - bias - mantissa);
    ASSERT_EQ(wide[i], static_cast<Wide>((i >> 15) != 0 ? -value : value)) << i;
    ASSERT_EQ(back, i);
  }
}

TEST(Codec, AllHalvesThereAndBack) {
  check_all_halves<float, std::uint32_t>(Codec::kFloat16, DType::kFloat32, 5);
  check_all_halves<float, std::uint32_t>(Codec::kBFloat16, DType::kFloat32, 8);
  check_all_halves<double, std::uint64_t>(Codec::kFloat16, DType::kFloat64, 5);
  check_all_halves<double, std::uint64_t>(Codec::kBFloat16, DType::kFloat64, 8);
}

TEST(Codec, NanStaysNan) {
  for (const std::uint32_t bits : {0x7F800001U, 0xFF800001U, 0x7FC00000U, 0x7FFFFFFFU}) {
    for (const Codec codec : {Codec::kFloat16, Codec::kBFloat16}) {
      const float back = as_half(std::bit_cast<float>(bits), codec);
      EXPECT_TRUE(std::isnan(back)) << std::hex << bits;
      EXPECT_EQ(std::bit_cast<std::uint32_t>(back) >> 31, bits >> 31);
    }
  }
}

TEST(Codec, TheThreadsRoundingModeDoesNotCount) {
  const int before = std::fegetround();
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(mode);
    EXPECT_EQ(as_half(1 + 0x1.2p-11F, Codec::kFloat16), 1 + 0x1p-10F);
    EXPECT_EQ(as_half(0x1p-24F, Codec::kFloat16), 0x1p-24F);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(as_half(0.0F, Codec::kFloat16)), 0U);
  }
  std::fesetround(before);
}

TEST(Codec, WrongArgumentsOfEncode) {
  Bytes out;
  const Bytes seven(7);
  EXPECT_EQ(code_of([&] { encode(Codec::kRaw, DType::kFloat32, seven, out); }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { encode(Codec::kRaw, DType{}, seven, out); }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { encode(static_cast<Codec>(9), DType::kUInt8, seven, out); }),
            ErrorCode::kInvalidArgument);
}

TEST(Codec, DecodeRefusesWhatDoesNotGoTogether) {
  const std::array<std::int64_t, 1> four{4};
  const std::array<std::int64_t, 1> negative{-1};
  const std::array<std::int64_t, 2> huge{std::int64_t{1} << 40, std::int64_t{1} << 40};
  const std::array<std::int64_t, 3> hidden{std::int64_t{1} << 40, std::int64_t{1} << 40, 0};
  const std::vector<std::int64_t> deep(65, 1);
  const Bytes bytes(16);
  Bytes out(16);
  const auto refused = [&](const TensorParts& parts) {
    EXPECT_EQ(code_of([&] { decode(parts, out); }), ErrorCode::kCorruption);
  };
  const TensorParts good{.dtype = DType::kFloat32, .shape = four, .data = bytes};
  EXPECT_NO_THROW(decode(good, out));
  const auto with = [&](auto change) {
    TensorParts parts = good;
    change(parts);
    return parts;
  };
  refused(with([&](auto& p) { p.data = p.data.first(12); }));
  refused(with([&](auto& p) { p.dtype = DType::kFloat64; }));
  refused(with([&](auto& p) { p.dtype = DType{99}; }));
  refused(with([&](auto& p) { p.codec = Codec{4}; }));
  refused(with([&](auto& p) { p.strides = Strides{2}; }));
  refused(with([&](auto& p) { p.shape = negative; }));
  refused(with([&](auto& p) { p.shape = huge; }));
  refused(with([&](auto& p) { p.shape = hidden; }));
  refused(with([&](auto& p) { p.shape = deep; }));
  refused(with([&](auto& p) { p.codec = Codec::kFloat16; }));  // 16 bytes where 8 would be
  refused(with([&](auto& p) { p.codec = Codec::kLossless; }));
  refused(with([&](auto& p) {
    p.codec = Codec::kFloat16;
    p.dtype = DType::kInt32;
  }));
  out.resize(15);
  refused(good);
}

TEST(Codec, DecodeRefusesWrongFrames) {
  const Bytes elements(4096);
  Bytes frame;
  ASSERT_EQ(encode(Codec::kLossless, DType::kUInt8, elements, frame), Codec::kLossless);
  const auto decoded = [&](const Bytes& data, std::int64_t size) {
    const std::array<std::int64_t, 1> shape{size};
    Bytes out(static_cast<std::size_t>(size));
    decode({.dtype = DType::kUInt8, .shape = shape, .codec = Codec::kLossless, .data = data}, out);
  };
  EXPECT_NO_THROW(decoded(frame, 4096));
  EXPECT_EQ(code_of([&] { decoded(frame, 4095); }), ErrorCode::kCorruption);  // declares another
  Bytes longer = frame;
  longer.push_back(std::byte{0});
  EXPECT_EQ(code_of([&] { decoded(longer, 4096); }), ErrorCode::kCorruption);
  Bytes twice = frame;
  twice.insert(twice.end(), frame.begin(), frame.end());
  EXPECT_EQ(code_of([&] { decoded(twice, 4096); }), ErrorCode::kCorruption);
  EXPECT_EQ(code_of([&] { decoded(twice, 8192); }), ErrorCode::kCorruption);
  for (std::size_t size = 0; size < frame.size(); ++size) {
    const Bytes shorter(frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_EQ(code_of([&] { decoded(shorter, 4096); }), ErrorCode::kCorruption);
  }
  Bytes legacy = frame;  // the magic of zstd 0.7, whose decoder libzstd may still have
  legacy[0] = std::byte{0x27};
  EXPECT_EQ(code_of([&] { decoded(legacy, 4096); }), ErrorCode::kCorruption);
  // Declares 2^62 bytes: refused by its shape's owner before anything is allocated.
  const std::array<std::int64_t, 1> vast{std::int64_t{1} << 62};
  EXPECT_EQ(
      code_of([&] {
        return decoded_size(
            {.dtype = DType::kUInt8, .shape = vast, .codec = Codec::kLossless, .data = frame});
      }),
      ErrorCode::kCorruption);
}

}  // namespace
}  // namespace tensorkey
