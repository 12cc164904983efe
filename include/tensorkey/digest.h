// Digests: bytes to 32 bytes by BLAKE3 (the BLAKE3 paper, section 2; official test vectors hold).
// Portable SIMD chosen at run time; a batch of rows is spread over the SIMD lanes, so short rows
// cost a fraction of what they cost one by one. Pure functions, thread-safe; a digest depends on
// its bytes and the key alone, never on threads, alignment or CPU.
//
//   Digest d = tensorkey::blake3(std::as_bytes(std::span(values)));
//   std::vector<Digest> out(n);
//   tensorkey::blake3_rows({.data = p, .count = n, .bytes = 1536, .stride = 1536}, out);
//
// Nothing here can fail but by a wrong argument (kInvalidArgument) or std::bad_alloc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <tensorkey/export.h>

namespace tensorkey {

using Digest = std::array<std::uint8_t, 32>;

struct DigestOptions {
  const Digest* key = nullptr;  // not null: BLAKE3's keyed_hash mode with these 32 bytes
  unsigned threads = 0;  // most threads for a large input; 0: one for each usable CPU, at most 8
};

// Rows of `bytes` bytes each; row i begins at data + i * stride. stride may be any number, also
// negative, 0 or less than bytes (rows may overlap). Borrowed.
struct RowSpan {
  const std::byte* data = nullptr;
  std::size_t count = 0;
  std::size_t bytes = 0;
  std::ptrdiff_t stride = 0;
};

TENSORKEY_EXPORT Digest blake3(std::span<const std::byte> data, const DigestOptions& options = {});

// out[i] = blake3(row i). Throws kInvalidArgument unless out.size() == rows.count.
TENSORKEY_EXPORT void blake3_rows(RowSpan rows, std::span<Digest> out,
                                  const DigestOptions& options = {});

// BLAKE3's derive_key mode: a subkey for `context` (a hard-coded, globally unique string).
TENSORKEY_EXPORT Digest blake3_derive_key(std::string_view context,
                                          std::span<const std::byte> material);

}  // namespace tensorkey
