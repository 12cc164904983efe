// Incremental BLAKE3 for data that comes in pieces: strided walks. Internal: whoever holds the
// bytes in one piece calls blake3(). Not thread-safe; each piece is hashed with all SIMD lanes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <tensorkey/digest.h>

namespace tensorkey::internal {

class Blake3Stream {
 public:
  // key: null for the plain mode, else 32 bytes for keyed_hash (copied).
  explicit Blake3Stream(const Digest* key = nullptr) noexcept;

  void update(std::span<const std::byte> piece);

  // The digest of all pieces so far; may be called once.
  [[nodiscard]] Digest finalize();

 private:
  // The implementer of src/digest chooses the members.
};

}  // namespace tensorkey::internal
