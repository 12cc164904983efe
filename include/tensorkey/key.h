// Keys: 32 bytes that stand for a tensor, the same in every process, framework, machine and device.
// docs/key_format.md gives every byte; any BLAKE3 library can recompute a key in ten lines.
//
//   key = keyed_hash(BLAKE3(header), data)                    without a secret
//   key = keyed_hash(keyed_hash(subkey, header), data)        with one
//
// Content keys depend on dtype, shape and elements (and scope, secret, flags), never on strides,
// offset, byte order or device. A key is a snapshot: it does not follow later writes.
//
//   tensorkey::Key k = tensorkey::key(view(data, shape), {.scope = "encoder v1"});
//   std::vector<tensorkey::Key> keys(batch);
//   tensorkey::row_keys(view(data, shape), keys);      // keys[i] == key(row i)
//
// Functions are pure and thread-safe. They throw Error as check_view does.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <tensorkey/digest.h>
#include <tensorkey/export.h>
#include <tensorkey/view.h>

namespace tensorkey {

class Key {
 public:
  static constexpr std::size_t kSize = 32;

  constexpr Key() = default;  // 32 zero bytes: no tensor has this key
  constexpr explicit Key(const Digest& bytes) : bytes_(bytes) {}

  // 64 hexadecimal digits of either case; anything else is std::nullopt.
  TENSORKEY_EXPORT static std::optional<Key> from_hex(std::string_view text) noexcept;
  [[nodiscard]] TENSORKEY_EXPORT std::string hex() const;

  [[nodiscard]] constexpr const Digest& bytes() const noexcept { return bytes_; }

  // Ordered as bytes are.
  friend constexpr auto operator<=>(const Key&, const Key&) = default;

 private:
  Digest bytes_{};
};

struct KeyOptions {
  std::string_view scope = {};  // what else the answer depends on; part of the key
  // A tenant secret of exactly 32 bytes: without it nobody can compute or guess the key.
  std::optional<std::span<const std::uint8_t, 32>> secret = std::nullopt;
  // -0.0 becomes 0.0 and every NaN one NaN before digesting, in complex parts too. Off: bitwise.
  bool canonical = false;
};

TENSORKEY_EXPORT Key key(const TensorView& view, const KeyOptions& options = {});

// out[i] = key of view[i], whose shape is view.shape without its first dim. Throws kInvalidArgument
// for rank 0 and unless out.size() is the first dim.
TENSORKEY_EXPORT void row_keys(const TensorView& view, std::span<Key> out,
                               const KeyOptions& options = {});

// Several tensors that make one item, such as ids and mask, each under a path that names it ("ids",
// "batch[0]"). Paths are unique; their order does not matter.
struct TupleMember {
  std::string_view path;
  TensorView view;
};

TENSORKEY_EXPORT Key tuple_key(std::span<const TupleMember> members,
                               const KeyOptions& options = {});

// out[i] = tuple_key of the i-th rows. Throws kInvalidArgument unless every member has rank 1 or
// more and out.size() rows. One member alone still makes a tuple key.
TENSORKEY_EXPORT void tuple_row_keys(std::span<const TupleMember> members, std::span<Key> out,
                                     const KeyOptions& options = {});

// What a tensor is apart from its elements: dtype, shape and strides of the view, and these fields.
struct Structure {
  std::string_view device = "cpu";
  std::string_view layout = "strided";
  bool pinned = false;
  bool requires_grad = false;
};

// Two tensors have the same structure key iff they agree in dtype, shape, byte strides and
// Structure. The elements are not read; view.data may be null. No option but scope and secret
// counts.
TENSORKEY_EXPORT Key structure_key(const TensorView& view, const Structure& structure = {},
                                   const KeyOptions& options = {});

// Keys of the caller's own (kind 5): a name or a number in place of content. The three types never
// collide: the int 1, the text "1" and the byte '1' have different keys.
struct OwnId {
  enum class Type : std::uint8_t { kInt = 1, kText = 2, kBytes = 3 };
  Type type = Type::kText;
  std::string_view data;  // kInt: decimal ASCII as std::to_string writes it; kText: UTF-8
};

// out[i] = the key of ids[i]. No option but scope and secret counts. Throws kInvalidArgument for
// text that is not UTF-8, for an int that is not in its one decimal form ("-1", "0", no plus, no
// leading zeros), and unless the sizes agree.
TENSORKEY_EXPORT void own_keys(std::span<const OwnId> ids, std::span<Key> out,
                               const KeyOptions& options = {});

}  // namespace tensorkey

template <>
struct std::hash<tensorkey::Key> {
  // The bytes of a key are uniform: the first eight of them are a hash.
  std::size_t operator()(const tensorkey::Key& key) const noexcept {
    std::size_t value;
    std::memcpy(&value, key.bytes().data(), sizeof value);
    return value;
  }
};
