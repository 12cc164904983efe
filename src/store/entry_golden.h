// For tests: the golden entries that tests/golden/make_entries.py wrote, and what they hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <tensorkey/codec.h>
#include <tensorkey/entry_format.h>

namespace tensorkey::internal {

using Bytes = std::vector<std::byte>;

struct GoldenTensor {
  std::string name;
  DType dtype{};
  std::vector<std::int64_t> dims;
  Strides strides{};
  Codec codec{};
  Bytes elements;  // before any codec
};

struct GoldenEntry {
  std::string name;
  std::vector<std::uint8_t> secret;  // empty or 32 bytes
  Key key;
  std::optional<Key> input;
  double seconds = 0;
  std::vector<GoldenTensor> tensors;
  Bytes file;

  [[nodiscard]] Secret secret_span() const {
    if (secret.empty()) return std::nullopt;
    return std::span<const std::uint8_t, 32>(secret.data(), 32);
  }
};

inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  if (text.empty() || text.back() == separator) parts.emplace_back();
  return parts;
}

inline Bytes from_hex(const std::string& text) {
  Bytes bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(text.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

inline GoldenTensor golden_tensor(const std::string& text) {
  const auto fields = split(text, '|');
  GoldenTensor tensor;
  tensor.name = fields.at(0);
  tensor.dtype = dtype_from_name(fields.at(1)).value();
  if (!fields.at(2).empty()) {
    for (const auto& dim : split(fields.at(2), ',')) tensor.dims.push_back(std::stoll(dim));
  }
  tensor.strides = static_cast<Strides>(std::stoi(fields.at(3)));
  tensor.codec = codec_from_name(fields.at(4)).value();
  tensor.elements = from_hex(fields.at(5));
  return tensor;
}

// Of the folder that the macro TENSORKEY_GOLDEN names.
inline std::vector<GoldenEntry> golden_entries(const std::string& folder) {
  std::vector<GoldenEntry> entries;
  std::ifstream table(folder + "/entries/entries.tsv");
  std::string line;
  std::getline(table, line);  // the names of the columns
  while (std::getline(table, line)) {
    const auto columns = split(line, '\t');
    GoldenEntry entry;
    entry.name = columns.at(0);
    entry.key = Key::from_hex(columns.at(2)).value();
    for (const std::byte b : from_hex(columns.at(1))) {
      entry.secret.push_back(std::to_integer<std::uint8_t>(b));
    }
    if (!columns.at(3).empty()) entry.input = Key::from_hex(columns.at(3)).value();
    std::memcpy(&entry.seconds, from_hex(columns.at(4)).data(), sizeof entry.seconds);
    if (!columns.at(5).empty()) {
      for (const auto& tensor : split(columns.at(5), ';')) {
        entry.tensors.push_back(golden_tensor(tensor));
      }
    }
    std::ifstream file(folder + "/entries/" + entry.name + ".tke", std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(file), {}};
    const auto bytes = std::as_bytes(std::span(content));
    entry.file.assign(bytes.begin(), bytes.end());
    entries.push_back(std::move(entry));
  }
  return entries;
}

}  // namespace tensorkey::internal
