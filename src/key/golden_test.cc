// The golden vectors of docs/key_format.md.
#include <tensorkey/key.h>

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace tensorkey {
namespace {

using Shape = std::vector<std::int64_t>;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  if (!text.empty() && text.back() == separator) parts.emplace_back();
  return parts;
}

std::string unhex(const std::string& text) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

// One tensor of tests/golden/keys.tsv: dtype, params, shape, data. The page docs/key_format.md and
// the program tests/key_format_test.py describe the columns.
struct GoldenTensor {
  explicit GoldenTensor(const std::string& text) {
    const auto fields = split(text, '|');
    dtype = dtype_from_name(fields.at(0)).value();
    params = fields.at(1);
    for (const auto& dim : split(fields.at(2), ',')) shape.push_back(std::stoll(dim));
    data = unhex(fields.at(3));
  }
  [[nodiscard]] TensorView tensor() const {
    return {.data = data.data(), .dtype = dtype, .shape = shape, .dtype_params = params};
  }
  DType dtype;
  std::string params;
  Shape shape;
  std::string data;
};

// Of ids as the file has them: "type=hexadecimal", joined by ';'.
std::vector<Key> own_keys_of(const std::string& text, const KeyOptions& options) {
  const std::map<std::string, OwnId::Type> types{
      {"int", OwnId::Type::kInt}, {"text", OwnId::Type::kText}, {"bytes", OwnId::Type::kBytes}};
  const std::vector<std::string> parts = split(text, ';');
  std::vector<std::string> data(parts.size());
  std::vector<OwnId> ids;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto equals = parts[i].find('=');
    data[i] = unhex(parts[i].substr(equals + 1));
    ids.push_back({.type = types.at(parts[i].substr(0, equals)), .data = data[i]});
  }
  std::vector<Key> keys(ids.size());
  own_keys(ids, keys, options);
  return keys;
}

std::vector<Key> tensor_keys(const std::string& kind, const std::string& text,
                             const KeyOptions& options) {
  std::vector<GoldenTensor> tensors;
  std::vector<std::string> paths;
  for (const auto& part : split(text, ';')) {
    const auto equals = part.find('=');
    paths.push_back(part.substr(0, equals));
    tensors.emplace_back(part.substr(equals + 1));
  }
  std::vector<TupleMember> members;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    members.push_back({paths[i], tensors[i].tensor()});
  }
  std::vector<Key> keys(1);
  if (kind == "content") {
    keys[0] = key(members[0].view, options);
  } else if (kind == "structure") {
    keys[0] = structure_key(members[0].view, {}, options);
  } else if (kind == "tuple") {
    keys[0] = tuple_key(members, options);
  } else {
    keys.resize(static_cast<std::size_t>(tensors[0].shape.at(0)));
    if (kind == "rows") {
      row_keys(members[0].view, keys, options);
    } else {
      EXPECT_EQ(kind, "tuple_rows");
      tuple_row_keys(members, keys, options);
    }
  }
  return keys;
}

// A digest that changes without a new format version fails here.
TEST(Golden, Vectors) {
  std::ifstream file(TENSORKEY_GOLDEN "/keys.tsv");
  ASSERT_TRUE(file) << TENSORKEY_GOLDEN;
  std::string line;
  std::getline(file, line);  // column names
  int checked = 0;
  while (std::getline(file, line)) {
    const auto column = split(line, '\t');
    ASSERT_EQ(column.size(), 7U) << line;
    const std::string& kind = column[1];
    const std::string scope = unhex(column[2]);
    const std::string secret = unhex(column[3]);
    KeyOptions options{.scope = scope, .canonical = column[4] == "canonical"};
    if (!secret.empty()) {
      options.secret = std::span<const std::uint8_t, 32>(
          reinterpret_cast<const std::uint8_t*>(secret.data()), 32);
    }
    const std::vector<Key> keys =
        kind == "own" ? own_keys_of(column[5], options) : tensor_keys(kind, column[5], options);
    std::string joined;
    for (const Key& k : keys) joined += (joined.empty() ? "" : ",") + k.hex();
    EXPECT_EQ(joined, column[6]) << column[0];
    ++checked;
  }
  EXPECT_GE(checked, 60);
}

}  // namespace
}  // namespace tensorkey
