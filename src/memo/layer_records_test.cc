#include "memo/layer_records.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include <tensorkey/canonical.h>

namespace tensorkey::internal {
namespace {

std::shared_ptr<ActivationCache> cache() {
  return std::make_shared<ActivationCache>(CacheOptions{.memory = 1 << 20});
}

KnownVerdict verdict() {
  return {.verdict = {.chunk = 64, .refused = true, .complete = false, .text = "slot: na\u00efve"},
          .by_row = {1, 0, 1},
          .slot_accepted = true};
}

Form form() {
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const auto bytes = std::as_bytes(std::span(values));
  return {.bytes = std::string("a\0b", 3),
          .by_row = {0, 1, 0},
          .constants = {
              {.dtype = DType::kFloat32, .shape = {2, 3}, .data = {bytes.begin(), bytes.end()}},
              {.dtype = DType::kInt8, .shape = {0, 4}}}};
}

RecordPlace form_place() { return Records::form_place(Digest{1}, canonical::tuple({}), {}); }

TEST(Records, AVerdictIsReadAsItWasWritten) {
  Records records(cache());
  const RecordPlace place = Records::verdict_place(Digest{7}, canonical::tuple({}), {});
  EXPECT_FALSE(records.verdict(place));
  records.store(place, verdict(), 0.5);
  const std::optional<KnownVerdict> known = records.verdict(place);
  ASSERT_TRUE(known);
  EXPECT_EQ(known->verdict.chunk, 64U);
  EXPECT_TRUE(known->verdict.refused);
  EXPECT_FALSE(known->verdict.complete);
  EXPECT_EQ(known->verdict.text, "slot: na\u00efve");
  EXPECT_EQ(known->by_row, (std::vector<std::uint8_t>{1, 0, 1}));
  EXPECT_TRUE(known->slot_accepted);
}

TEST(Records, ALaterVerdictTakesThePlaceOfAnEarlierOne) {
  Records records(cache());
  const RecordPlace place = Records::verdict_place(Digest{7}, canonical::tuple({}), {});
  records.store(place, verdict(), 0.5);
  KnownVerdict later = verdict();
  later.verdict.chunk = 1;
  records.store(place, later, 0.5);
  EXPECT_EQ(records.verdict(place)->verdict.chunk, 1U);
}

TEST(Records, AFormIsReadAsItWasWritten) {
  Records records(cache());
  records.store(form_place(), form(), 0.5, Keep::kNow);
  const std::optional<Form> known = records.form(form_place());
  ASSERT_TRUE(known);
  EXPECT_EQ(known->bytes, form().bytes);
  EXPECT_EQ(known->by_row, form().by_row);
  ASSERT_EQ(known->constants.size(), 2U);
  EXPECT_EQ(known->constants[0].data, form().constants[0].data);
  EXPECT_EQ(known->constants[0].shape, form().constants[0].shape);
  EXPECT_EQ(known->constants[1].shape, (std::vector<std::int64_t>{0, 4}));
}

TEST(Records, PlacesDifferByLayerRowsAndSecret) {
  const std::array<std::uint8_t, 32> secret{5};
  const std::string one = canonical::tuple({canonical::integer(1)});
  const std::vector<Key> keys{
      Records::form_place(Digest{1}, one, {}).key,
      Records::form_place(Digest{2}, one, {}).key,
      Records::form_place(Digest{1}, canonical::tuple({}), {}).key,
      Records::form_place(Digest{1}, one, Secret(secret)).key,
      Records::verdict_place(Digest{1}, one, {}).key,
  };
  for (std::size_t i = 0; i < keys.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(keys[i], keys[j]);
  }
}

TEST(Records, ALeafThatCannotBeStoredIsUnsupported) {
  Records records(cache());
  Form dates = form();
  dates.constants[1] = {.dtype = DType::kDateTime64, .params = "ns", .shape = {0}};
  EXPECT_THROW(records.store(form_place(), dates, 0.5, Keep::kNow), Error);
}

TEST(Records, PendingFormsGoWhenTheyAreDropped) {
  Records records(cache());
  records.store(form_place(), form(), 0.5, Keep::kPending);
  EXPECT_TRUE(records.form(form_place()));
  records.settle(false);
  EXPECT_FALSE(records.form(form_place()));
}

// Whoever may write the store may write anything.
TEST(Records, WhatIsNotWholeIsNone) {
  const std::vector<std::byte> good = encode_verdict(verdict());
  ASSERT_TRUE(decode_verdict(good));
  for (std::size_t size = 0; size < 6 + 4 + 3; ++size) {
    EXPECT_FALSE(decode_verdict(std::span(good).first(size))) << size;
  }
  const auto with = [&](std::size_t at, int value) {
    std::vector<std::byte> bad = good;
    bad[at] = static_cast<std::byte>(value);
    return decode_verdict(bad);
  };
  EXPECT_FALSE(with(0, 2));      // version
  EXPECT_FALSE(with(1, 8));      // flags
  EXPECT_FALSE(with(2, 65));     // chunk: neither 1 nor a multiple of 32
  EXPECT_FALSE(with(5, 0x40));   // chunk: 2^30
  EXPECT_FALSE(with(9, 0xFF));   // leaves: 2^32 or so
  EXPECT_FALSE(with(10, 2));     // a flag of a leaf
  EXPECT_FALSE(with(13, 0xFF));  // text: not UTF-8
  std::vector<std::byte> endless = good;
  endless.resize(1 << 16, std::byte{'x'});
  EXPECT_FALSE(decode_verdict(endless));
}

TEST(Records, RandomBytesAreNoVerdictThatBreaksABound) {
  std::mt19937 random(3);
  const std::vector<std::byte> good = encode_verdict(verdict());
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::byte> bad = good;
    for (int flips = 0; flips < 3; ++flips) {
      bad[random() % bad.size()] = static_cast<std::byte>(random());
    }
    bad.resize(random() % (bad.size() + 1));
    const std::optional<KnownVerdict> known = decode_verdict(bad);
    if (!known) continue;
    EXPECT_TRUE(is_chunk(known->verdict.chunk));
    EXPECT_LE(known->by_row.size(), bad.size());
  }
}

EntryPtr entry(const std::vector<std::byte>& record, std::size_t constants,
               DType dtype = DType::kUInt8) {
  const std::int64_t size[] = {static_cast<std::int64_t>(record.size())};
  std::vector<TensorParts> tensors{{.dtype = dtype, .shape = size, .data = record}};
  for (std::size_t i = 0; i < constants; ++i) tensors.push_back({.shape = size, .data = record});
  return make_entry({.key = Key(), .tensors = tensors});
}

TEST(Records, AFormWithoutItsLeavesIsNone) {
  const std::vector<std::byte> good = encode_form(form());
  EXPECT_TRUE(decode_form(*entry(good, 2)));
  EXPECT_FALSE(decode_form(*entry(good, 1)));
  EXPECT_FALSE(decode_form(*entry(good, 3)));
  EXPECT_FALSE(decode_form(*entry(good, 2, DType::kInt8)));
  EXPECT_FALSE(decode_form(*make_entry({})));
  std::vector<std::byte> bad = good;
  bad[0] = std::byte{9};
  EXPECT_FALSE(decode_form(*entry(bad, 2)));
  bad = good;
  bad[4] = std::byte{0xFF};
  EXPECT_FALSE(decode_form(*entry(bad, 2)));
  const std::int64_t size[] = {static_cast<std::int64_t>(good.size())};
  const std::int64_t one[] = {1};
  const std::vector<std::byte> eight(8);
  const std::vector<TensorParts> dates{{.shape = size, .data = good},
                                       {.dtype = DType::kDateTime64, .shape = one, .data = eight},
                                       {.dtype = DType::kDateTime64, .shape = one, .data = eight}};
  EXPECT_FALSE(decode_form(*make_entry({.key = Key(), .tensors = dates})));
}

}  // namespace
}  // namespace tensorkey::internal
