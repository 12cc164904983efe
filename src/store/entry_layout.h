// Where things stand in an encoded entry (docs/entry_format.md), for its writer and its reader.
//
//   head 56 | [input key 32] | records | 0s to 16 | data, each with 0s to 16 | checksum 16 or MAC
//   32
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <tensorkey/digest.h>
#include <tensorkey/entry.h>
#include <tensorkey/entry_format.h>

namespace tensorkey::internal {

inline constexpr std::string_view kEntryMagic = "TKEN";
inline constexpr std::uint8_t kEntryVersion = 1;
inline constexpr std::uint8_t kFlagInput = 1;  // an input key follows the head
inline constexpr std::uint8_t kFlagMac = 2;    // written with a secret
inline constexpr std::size_t kHeadBytes = 24 + Key::kSize;
inline constexpr std::size_t kRecordBytes = 16;  // without dims and name
inline constexpr std::size_t kUnit = 16;         // of data, and of the whole

[[nodiscard]] constexpr std::size_t rounded_up(std::size_t bytes, std::size_t unit) noexcept {
  return (bytes + unit - 1) / unit * unit;
}

[[nodiscard]] constexpr std::size_t seal_bytes(bool with_secret) noexcept {
  return with_secret ? sizeof(Digest) : 16;
}

// The last bytes of an entry: the checksum, or with a secret the MAC, of all bytes before them.
// The first seal_bytes() count.
[[nodiscard]] Digest seal(std::span<const std::byte> bytes, const Secret& secret);

// Entries hold no unit, and a date without one would be a guess.
[[nodiscard]] constexpr bool has_unit(DType dtype) noexcept {
  return dtype == DType::kDateTime64 || dtype == DType::kTimeDelta64;
}

// Whether two of the tensors have one name.
[[nodiscard]] bool has_twins(std::span<const TensorParts> tensors);

}  // namespace tensorkey::internal
