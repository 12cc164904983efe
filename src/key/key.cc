#include <tensorkey/key.h>

#include <array>
#include <cstring>
#include <type_traits>

#include "base/bytes.h"
#include "key/header.h"

#include <tensorkey/error.h>

namespace tensorkey {
namespace {

constexpr std::string_view kDigits = "0123456789abcdef";
constexpr std::uint8_t kVersion = 1;
constexpr std::uint16_t kCanonicalFlag = 1;

int digit_value(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The part of a header before the dtype parameters, as it lies in memory on a little-endian host.
struct FixedPart {
  std::array<char, 4> magic = {'T', 'K', 'E', 'Y'};
  std::uint8_t version = kVersion;
  std::uint8_t kind;
  std::uint16_t dtype;
  std::uint16_t flags;
  std::uint16_t rank;
  std::uint32_t params_size;
};
static_assert(sizeof(FixedPart) == 16 && std::is_trivially_copyable_v<FixedPart>);

// Headers repeat from call to call, and for a small tensor the header is half of the work: the last
// one of each thread is remembered. Never one with a secret.
Digest cached_blake3(std::span<const std::byte> header) {
  struct Last {
    std::array<std::byte, 128> header;
    std::size_t size = 0;  // 0: none; no header is empty
    Digest digest;
  };
  thread_local Last last;
  if (header.size() > last.header.size()) return blake3(header);
  if (header.size() != last.size ||
      std::memcmp(header.data(), last.header.data(), header.size()) != 0) {
    last.digest = blake3(header);
    std::memcpy(last.header.data(), header.data(), header.size());
    last.size = header.size();
  }
  return last.digest;
}

}  // namespace

std::optional<Key> Key::from_hex(std::string_view text) noexcept {
  if (text.size() != 2 * kSize) return std::nullopt;
  Digest bytes;
  for (std::size_t i = 0; i < kSize; ++i) {
    const int high = digit_value(text[2 * i]);
    const int low = digit_value(text[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    bytes[i] = static_cast<std::uint8_t>(high << 4 | low);
  }
  return Key(bytes);
}

std::string Key::hex() const {
  std::string text;
  text.reserve(2 * kSize);
  for (const std::uint8_t byte : bytes_) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

namespace internal {

Digest header_digest(const Header& header, const KeyOptions& options, std::string_view where) {
  if (header.shape.size() > 0xFFFF) {
    throw Error(ErrorCode::kInvalidArgument, "[" + std::string(where) + "] the tensor has " +
                                                 std::to_string(header.shape.size()) +
                                                 " dims; expected at most 65535");
  }
  if (header.dtype_params.size() > 0xFFFFFFFF) {
    throw Error(ErrorCode::kInvalidArgument,
                "[" + std::string(where) + "] dtype parameters or paths of 4 GiB and more");
  }
  const FixedPart fixed{.kind = static_cast<std::uint8_t>(header.kind),
                        .dtype = static_cast<std::uint16_t>(header.dtype),
                        .flags = options.canonical ? kCanonicalFlag : std::uint16_t{0},
                        .rank = static_cast<std::uint16_t>(header.shape.size()),
                        .params_size = static_cast<std::uint32_t>(header.dtype_params.size())};
  ByteWriter writer;
  writer.put(std::as_bytes(std::span(&fixed, 1)));
  writer.put(header.dtype_params);
  writer.put(std::as_bytes(header.shape));
  writer.put(std::uint64_t{options.scope.size()});
  writer.put(options.scope);

  if (!options.secret) return cached_blake3(writer.bytes());
  const Digest subkey = blake3_derive_key("tensorkey v1 key", std::as_bytes(*options.secret));
  return blake3(writer.bytes(), {.key = &subkey});
}

}  // namespace internal
}  // namespace tensorkey
