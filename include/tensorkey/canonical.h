// The canonical encoding of plain values (docs/key_format.md): one value, one text, the same in
// every language. What a scope is made of is written in it, then digested.
//
//   item = tag (1 byte) + length of the body (u64, little-endian) + body
//
//   using namespace tensorkey::canonical;
//   std::string about = tuple({text("torch"), integer(1), none()});
//   Digest digest = blake3(std::as_bytes(std::span(about)));
//
// As every item carries its tag and length, no two different values share an encoding. Functions
// are pure and thread-safe; they throw std::bad_alloc alone.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tensorkey::canonical {

namespace internal {
inline void put_u64(std::string& out, std::uint64_t value) {
  for (int shift = 0; shift < 64; shift += 8) out += static_cast<char>((value >> shift) & 0xFF);
}
}  // namespace internal

inline std::string item(char tag, std::string_view body) {
  std::string out(1, tag);
  out.reserve(9 + body.size());
  internal::put_u64(out, body.size());
  out += body;
  return out;
}

inline std::string none() { return item('N', {}); }
inline std::string boolean(bool value) { return item('b', std::string(1, value ? '\1' : '\0')); }
inline std::string integer(std::int64_t value) { return item('i', std::to_string(value)); }
inline std::string real(double value) {
  std::string body;
  internal::put_u64(body, std::bit_cast<std::uint64_t>(value));
  return item('f', body);
}
inline std::string complex(double re, double im) {
  std::string body;
  internal::put_u64(body, std::bit_cast<std::uint64_t>(re));
  internal::put_u64(body, std::bit_cast<std::uint64_t>(im));
  return item('c', body);
}
inline std::string text(std::string_view utf8) { return item('S', utf8); }
inline std::string bytes(std::string_view value) { return item('B', value); }
inline std::string bytes(std::span<const std::uint8_t> value) {
  return bytes({reinterpret_cast<const char*>(value.data()), value.size()});
}
// A thing that is known by name: a class, a dtype.
inline std::string name(std::string_view kind, std::string_view value) {
  return item('n', text(kind) + text(value));
}

// Of items that are encoded already.
inline std::string sequence(char tag, std::span<const std::string> items) {
  std::string body;
  for (const std::string& each : items) body += each;
  return item(tag, body);
}
inline std::string tuple(std::span<const std::string> items) { return sequence('t', items); }
inline std::string tuple(std::initializer_list<std::string> items) {
  return tuple(std::span(items.begin(), items.size()));
}
inline std::string list(std::span<const std::string> items) { return sequence('l', items); }
inline std::string set(std::vector<std::string> items) {
  std::sort(items.begin(), items.end(), [](const std::string& a, const std::string& b) {
    return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
      return static_cast<unsigned char>(x) < static_cast<unsigned char>(y);
    });
  });
  return sequence('s', items);
}
// Key item, value item, key item, ... in the order of the dict.
inline std::string dict(std::span<const std::string> items) { return sequence('d', items); }

}  // namespace tensorkey::canonical
