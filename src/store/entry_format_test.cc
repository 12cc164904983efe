#include <tensorkey/entry_format.h>

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <tensorkey/codec.h>
#include <tensorkey/error.h>

#include "base/utf8.h"
#include "store/entry_golden.h"

namespace tensorkey {
namespace {

using internal::Bytes;
using internal::GoldenEntry;

constexpr std::array<std::int64_t, 2> kShape{2, 3};
const std::array<float, 6> kValues{0, 1, 2, 3, 4, 5};
constexpr std::array<std::uint8_t, 32> kSecretBytes{7};
const Secret kSecret = std::span(kSecretBytes);

TensorParts values(std::string_view name = {}) {
  return {.name = name,
          .dtype = DType::kFloat32,
          .shape = kShape,
          .data = std::as_bytes(std::span(kValues))};
}

EntryPtr entry_of(std::span<const TensorParts> tensors, double seconds = 0.5) {
  return make_entry({.key = Key(Digest{1, 2, 3}), .seconds = seconds, .tensors = tensors});
}

std::string refusal(const auto& call, ErrorCode expected) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), expected) << error.what();
    EXPECT_NE(std::string(error.what()).find("expected"), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return {};
}

TEST(EntryFormat, GoldenEntriesAreWhatTheTableSays) {
  const auto golden = internal::golden_entries(TENSORKEY_GOLDEN);
  ASSERT_GE(golden.size(), 15U);
  for (const GoldenEntry& g : golden) {
    SCOPED_TRACE(g.name);
    const EntryPtr entry = decode_entry(g.file, {.secret = g.secret_span(), .key = g.key});
    EXPECT_EQ(entry->key(), g.key);
    EXPECT_EQ(entry->input(), g.input);
    EXPECT_EQ(entry->seconds(), g.seconds);
    ASSERT_EQ(entry->tensor_count(), g.tensors.size());
    for (std::size_t i = 0; i < g.tensors.size(); ++i) {
      const TensorParts tensor = entry->tensor(i);
      const internal::GoldenTensor& wanted = g.tensors[i];
      EXPECT_EQ(tensor.name, wanted.name);
      EXPECT_EQ(tensor.dtype, wanted.dtype);
      EXPECT_TRUE(std::ranges::equal(tensor.shape, wanted.dims));
      EXPECT_EQ(tensor.strides, wanted.strides);
      EXPECT_EQ(tensor.codec, wanted.codec);
      Bytes elements(decoded_size(tensor));
      decode(tensor, elements);
      EXPECT_TRUE(is_lossy(tensor.codec) || elements == wanted.elements);
      // Our codec makes the same bytes, but for the version of zstd.
      Bytes stored;
      EXPECT_EQ(encode(wanted.codec, wanted.dtype, wanted.elements, stored), wanted.codec);
      if (tensor.codec != Codec::kLossless) {
        EXPECT_TRUE(std::ranges::equal(tensor.data, stored)) << wanted.name;
      }
    }
    EXPECT_EQ(encoded_size(*entry, g.secret_span().has_value()), g.file.size());
    EXPECT_EQ(encode_entry(*entry, g.secret_span()), g.file);
  }
}

TEST(EntryFormat, ReadsWhereItLiesAlsoUnaligned) {
  const EntryPtr entry = entry_of(std::array{values()});
  const Bytes bytes = encode_entry(*entry);
  for (std::size_t offset = 0; offset < 16; ++offset) {
    Bytes room(bytes.size() + offset);
    const auto part = std::span(room).subspan(offset);
    encode_entry(*entry, part);
    const EncodedEntry encoded(part);
    EXPECT_EQ(encoded.parts().key, entry->key());
    EXPECT_EQ(encoded.parts().tensors[0].data.data(), room.data() + offset + 96);  // no copy
    EXPECT_EQ(encode_entry(*make_entry(encoded.parts())), bytes);
  }
}

TEST(EntryFormat, OverheadIsWhatThePageSays) {
  const std::array<std::int64_t, 1> dims{16};
  const Bytes data(64);
  const TensorParts one{.dtype = DType::kFloat32, .shape = dims, .data = data};
  EXPECT_EQ(encoded_size(*entry_of(std::array{one})), 96U + 64);
  EXPECT_EQ(encoded_size(*entry_of(std::array{one}), true), 112U + 64);
  EXPECT_EQ(encoded_size(*entry_of(std::array{values()})), 112U + 32);
}

TEST(EntryFormat, OneEntryHasOneEncoding) {
  const EntryPtr zero = entry_of(std::array{values()}, 0.0);
  const EntryPtr minus_zero = entry_of(std::array{values()}, -0.0);
  EXPECT_EQ(encode_entry(*zero), encode_entry(*minus_zero));
  EXPECT_FALSE(std::signbit(decode_entry(encode_entry(*minus_zero))->seconds()));
}

TEST(EntryFormat, WhatItCannotHold) {
  const auto refused = [](std::span<const TensorParts> tensors, ErrorCode code) {
    const EntryPtr entry = entry_of(tensors);
    return refusal([&] { return encode_entry(*entry); }, code);
  };
  const std::string long_name(65'536, 'n');
  const auto invalid = ErrorCode::kInvalidArgument;
  refused(std::array{values("a"), values("a")}, invalid);
  refused(std::array{values(), values("b"), values()}, invalid);
  refused(std::array{values("\xC3\x28")}, invalid);
  refused(std::array{values(long_name)}, invalid);
  EXPECT_NO_THROW(
      encode_entry(*entry_of(std::array{values(std::string_view(long_name).substr(1))})));
  TensorParts wrong = values();
  wrong.codec = Codec::kFloat16;  // make_entry looks at raw data alone
  refused(std::array{wrong}, invalid);
  wrong.codec = Codec::kLossless;
  refused(std::array{wrong}, invalid);
  refused(std::vector<TensorParts>(65'536, TensorParts{.shape = std::span(kShape).first(0),
                                                       .data = std::as_bytes(std::span("x", 1))}),
          invalid);
  const std::array<std::int64_t, 1> three{3};
  const TensorParts date{
      .dtype = DType::kDateTime64, .shape = three, .data = std::as_bytes(std::span(kValues))};
  EXPECT_NE(refused(std::array{date}, ErrorCode::kUnsupported).find("datetime64"),
            std::string::npos);
  Bytes room(100);
  const EntryPtr entry = entry_of(std::array{values()});
  refusal([&] { encode_entry(*entry, room); }, invalid);
}

TEST(EntryFormat, SecretsDoNotMix) {
  const EntryPtr entry = entry_of(std::array{values()});
  const Bytes open = encode_entry(*entry);
  const Bytes sealed = encode_entry(*entry, kSecret);
  std::array<std::uint8_t, 32> other = kSecretBytes;
  other[31] ^= 1;
  const auto corrupt = [](const Bytes& bytes, const Secret& secret) {
    return refusal([&] { return decode_entry(bytes, {.secret = secret}); }, ErrorCode::kCorruption);
  };
  EXPECT_NO_THROW(decode_entry(open));
  EXPECT_NO_THROW(decode_entry(sealed, {.secret = kSecret}));
  EXPECT_NE(corrupt(sealed, std::nullopt).find("with a secret"), std::string::npos);
  EXPECT_NE(corrupt(open, kSecret).find("without a secret"), std::string::npos);
  EXPECT_NE(corrupt(sealed, Secret(std::span(other))).find("MAC"), std::string::npos);
}

TEST(EntryFormat, KeyAndLimits) {
  const EntryPtr entry = entry_of(std::array{values()});
  const Bytes bytes = encode_entry(*entry);
  const auto corrupt = [&](const Bytes& b, const DecodeOptions& options) {
    return refusal([&] { return decode_entry(b, options); }, ErrorCode::kCorruption);
  };
  EXPECT_NE(corrupt(bytes, {.key = Key()}).find(entry->key().hex()), std::string::npos);
  EXPECT_NO_THROW(decode_entry(bytes, {.max_bytes = bytes.size()}));
  corrupt(bytes, {.max_bytes = bytes.size() - 1});
  // A small frame of many zeros: what it decodes to counts.
  const std::array<std::int64_t, 1> dims{1 << 20};
  Bytes frame;
  ASSERT_EQ(encode(Codec::kLossless, DType::kUInt8, Bytes(1 << 20), frame), Codec::kLossless);
  const TensorParts zeros{
      .dtype = DType::kUInt8, .shape = dims, .codec = Codec::kLossless, .data = frame};
  const Bytes small = encode_entry(*entry_of(std::array{zeros}));
  EXPECT_LT(small.size(), 300U);
  EXPECT_NO_THROW(decode_entry(small, {.max_bytes = 1 << 20}));
  corrupt(small, {.max_bytes = (1 << 20) - 1});
}

TEST(EntryFormat, EveryBitAndEveryLength) {
  const std::array tensors{values("a"), values("bc")};
  const EntryPtr entry = entry_of(tensors);
  for (const Secret& secret : {Secret(), kSecret}) {
    const DecodeOptions options{.secret = secret};
    const Bytes good = encode_entry(*entry, secret);
    ASSERT_NO_THROW(decode_entry(good, options));
    const auto corrupt = [&](std::span<const std::byte> bytes) {
      refusal([&] { return decode_entry(bytes, options); }, ErrorCode::kCorruption);
    };
    for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
      Bytes flipped = good;
      flipped[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
      corrupt(flipped);
    }
    for (std::size_t size = 0; size < good.size(); ++size) corrupt(std::span(good).first(size));
    for (const std::size_t more : {1UL, 8UL, 16UL, 32UL, 1000UL}) {
      Bytes longer = good;
      longer.resize(good.size() + more);
      corrupt(longer);
    }
  }
}

TEST(EntryFormat, Utf8IsThatOfTheRfc) {
  using internal::is_utf8;
  for (const std::string_view good : {"", "a", "Größe", "\xED\x9F\xBF", "\xEE\x80\x80",
                                      "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF", "\xE0\xA0\x80"}) {
    EXPECT_TRUE(is_utf8(good)) << good;
  }
  for (const std::string_view bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xC3(", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xE2\x82",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "a\xF0\x90\x80"}) {
    EXPECT_FALSE(is_utf8(bad));
  }
}

}  // namespace
}  // namespace tensorkey
