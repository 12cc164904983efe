// Entries as bytes: what disks and networks keep. docs/entry_format.md has every byte. One entry
// has one encoding, its length is a multiple of 16, and every bit of it is under a checksum, or
// under a keyed BLAKE3 MAC where there is a secret.
//
//   std::vector<std::byte> bytes = encode_entry(*entry, secret);
//   EntryPtr same = decode_entry(bytes, {.secret = secret, .max_bytes = limit, .key = key});
//
// A secret is 32 bytes. What was written with one is refused without it, and the other way round;
// without one the checksum is against accidents, not against people. All functions are thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include <tensorkey/entry.h>
#include <tensorkey/export.h>
#include <tensorkey/key.h>

namespace tensorkey {

using Secret = std::optional<std::span<const std::uint8_t, 32>>;

// Bytes that encode_entry will write.
TENSORKEY_EXPORT std::size_t encoded_size(const Entry& entry, bool with_secret = false);

// Throws kInvalidArgument for what the format cannot hold: more than 65,535 tensors, names that are
// longer than that, not UTF-8 or not unique, data that are not what their codec makes; and
// kUnsupported for datetime64 and timedelta64, because an entry has no place for their unit.
TENSORKEY_EXPORT std::vector<std::byte> encode_entry(const Entry& entry,
                                                     const Secret& secret = std::nullopt);

// The same into bytes of the caller's, such as a part of a segment. Throws kInvalidArgument also
// unless out.size() is encoded_size(entry, secret.has_value()).
TENSORKEY_EXPORT void encode_entry(const Entry& entry, std::span<std::byte> out,
                                   const Secret& secret = std::nullopt);

struct DecodeOptions {
  Secret secret = std::nullopt;
  // Most bytes that the encoded entry may have, and most that the elements of all its tensors may
  // have when they are decoded.
  std::size_t max_bytes = std::numeric_limits<std::size_t>::max();
  std::optional<Key> key = std::nullopt;  // the only one that is accepted
};

// An entry that is read where it lies: checked in full by the constructor, nothing copied but the
// dims. It borrows the bytes, and what parts() returns is borrowed from both.
//
// The constructor throws kCorruption with what was wrong for bytes that are not exactly one entry,
// written with this secret or without one as asked, under this key and within max_bytes. Declared
// sizes are checked against the bytes that are there before anything is allocated.
class TENSORKEY_EXPORT EncodedEntry {
 public:
  explicit EncodedEntry(std::span<const std::byte> bytes, const DecodeOptions& options = {});
  EncodedEntry(const EncodedEntry&) = delete;
  EncodedEntry& operator=(const EncodedEntry&) = delete;

  [[nodiscard]] const EntryParts& parts() const noexcept { return parts_; }

 private:
  EntryParts parts_;
  std::vector<TensorParts> tensors_;
  std::vector<std::int64_t> dims_;  // of all tensors
};

// make_entry(EncodedEntry(bytes, options).parts()).
TENSORKEY_EXPORT EntryPtr decode_entry(std::span<const std::byte> bytes,
                                       const DecodeOptions& options = {});

}  // namespace tensorkey
