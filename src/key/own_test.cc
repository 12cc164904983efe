#include <tensorkey/key.h>

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <tensorkey/error.h>

namespace tensorkey {
namespace {

using Type = OwnId::Type;

Key own_key(const OwnId& id, const KeyOptions& options = {}) {
  Key key;
  own_keys({&id, 1}, {&key, 1}, options);
  return key;
}

bool refused(Type type, std::string_view data) {
  try {
    static_cast<void>(own_key({.type = type, .data = data}));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("expected"), std::string::npos) << error.what();
    return true;
  }
  return false;
}

// The format of docs/key_format.md written out by hand.
TEST(OwnKeys, AreTheDigestOfTypeAndBytesUnderTheHeader) {
  const std::string scope = "s";
  const std::string header = std::string("TKEY\x01\x05", 6) + std::string(10, '\0') +
                             std::string("\x01\0\0\0\0\0\0\0", 8) + scope;
  const Digest digest = blake3(std::as_bytes(std::span(header)));
  const std::string data = "\x02name";
  EXPECT_EQ(own_key({.type = Type::kText, .data = "name"}, {.scope = scope}),
            Key(blake3(std::as_bytes(std::span(data)), {.key = &digest})));
}

TEST(OwnKeys, TypeScopeAndSecretCountAndTheCanonicalFlagDoesNot) {
  const std::array<std::uint8_t, 32> secret{1, 2, 3};
  const OwnId text{.type = Type::kText, .data = "1"};
  const std::set<Key> keys{own_key(text),
                           own_key({.type = Type::kInt, .data = "1"}),
                           own_key({.type = Type::kBytes, .data = "1"}),
                           own_key({.type = Type::kText, .data = ""}),
                           own_key({.type = Type::kBytes, .data = ""}),
                           own_key(text, {.scope = "s"}),
                           own_key(text, {.secret = secret})};
  EXPECT_EQ(keys.size(), 7U);
  EXPECT_EQ(own_key(text, {.canonical = true}), own_key(text));
}

// Ids of all lengths at once have the keys that they have alone.
TEST(OwnKeys, OfABatchEqualThoseOfEachId) {
  std::mt19937 random(3);
  std::vector<std::string> data(500);
  std::vector<OwnId> ids;
  for (std::size_t i = 0; i < data.size(); ++i) {
    data[i].assign(i % 7 == 0 ? random() % 3000 : random() % 140, 'a');
    for (char& c : data[i]) c = static_cast<char>('a' + random() % 26);
    ids.push_back({.type = i % 2 == 0 ? Type::kText : Type::kBytes, .data = data[i]});
  }
  ids.push_back({.type = Type::kInt, .data = "-12"});
  std::vector<Key> keys(ids.size());
  own_keys(ids, keys);
  for (std::size_t i = 0; i < ids.size(); ++i) ASSERT_EQ(keys[i], own_key(ids[i])) << i;
  own_keys({}, {});
}

TEST(OwnKeys, AnIntHasOneForm) {
  for (const char* const good :
       {"0", "7", "-1", "10", "-9223372036854775808", "340282366920938463463374607431768211456"}) {
    EXPECT_FALSE(refused(Type::kInt, good)) << good;
  }
  for (const char* const bad : {"", "-", "+1", "01", "-0", "-01", "00", " 1", "1 ", "1.0", "1e3",
                                "0x1", "--1", "\xD9\xA1"}) {
    EXPECT_TRUE(refused(Type::kInt, bad)) << bad;
  }
}

TEST(OwnKeys, BadInput) {
  EXPECT_TRUE(refused(Type::kText, "\xFF"));
  EXPECT_FALSE(refused(Type::kBytes, "\xFF"));
  EXPECT_TRUE(refused(static_cast<Type>(4), "x"));
  const std::array<OwnId, 2> ids{};
  std::array<Key, 1> room;
  EXPECT_THROW(own_keys(ids, room), Error);
}

}  // namespace
}  // namespace tensorkey
