// The header of a key, byte by byte as docs/key_format.md has it, and the digest of it that keys
// the digest of the data. Whatever is not data (kind, dtype, shape, scope) enters a key here, once
// for a whole batch of rows.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include <tensorkey/digest.h>
#include <tensorkey/dtype.h>
#include <tensorkey/key.h>

namespace tensorkey::internal {

enum class Kind : std::uint8_t { kContent = 1, kStructure = 2, kTuple = 3, kOwn = 5 };

struct Header {
  Kind kind = Kind::kContent;
  DType dtype{};  // 0 for a tuple and for keys of the caller's own
  std::span<const std::int64_t> shape = {};
  std::string_view dtype_params = {};
};

// BLAKE3(header), keyed with the secret's subkey if there is one. Throws kInvalidArgument for more
// than 65,535 dims or parameters of 4 GiB.
[[nodiscard]] Digest header_digest(const Header& header, const KeyOptions& options,
                                   std::string_view where);

}  // namespace tensorkey::internal
