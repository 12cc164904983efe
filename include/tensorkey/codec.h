// Codecs: how the elements of a tensor become the bytes that an entry keeps, and back. Raw is the
// default. Lossless shuffles the bytes of the elements apart and compresses them with zstd. The two
// halves round floats, are lossy, and are used only where somebody asked for them by name.
//
//   std::vector<std::byte> stored;
//   const Codec used = encode(Codec::kLossless, DType::kFloat32, elements, stored);
//   ...
//   std::vector<std::byte> elements(decoded_size(entry->tensor(0)));
//   decode(entry->tensor(0), elements);
//
// Elements are in C order, little-endian. All calls are thread-safe; a thread that used kLossless
// keeps zstd's working memory, some 700 KB, until it ends.
// docs/entry_format.md has each codec bit by bit.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <tensorkey/dtype.h>
#include <tensorkey/entry.h>
#include <tensorkey/export.h>

namespace tensorkey {

// "raw", "lossless", "fp16", "bf16"; "unknown" for another number.
TENSORKEY_EXPORT std::string_view to_string(Codec codec) noexcept;

// The codec of exactly that name, if any.
TENSORKEY_EXPORT std::optional<Codec> codec_from_name(std::string_view name) noexcept;

// Whether what comes back may differ from what went in.
TENSORKEY_EXPORT bool is_lossy(Codec codec) noexcept;

// Replaces `out` by the stored form of `elements` and returns the codec that it is in: `wanted`, or
// kRaw where that codec would save nothing. So lossless falls back for elements that zstd does not
// make smaller, and the halves for every dtype but float32, float64, complex64 and complex128:
// integers are never rounded, and no float of 16 bits or less is traded for another. Halves round
// once, to the nearest, ties to even; what is too large becomes infinity, NaN stays NaN, -0.0 stays
// -0.0. Lossless takes as much memory again as the elements while it works.
//
// Throws kInvalidArgument for an unknown dtype or codec, and unless elements.size() is a multiple
// of the item size; `out` is then unspecified.
TENSORKEY_EXPORT Codec encode(Codec wanted, DType dtype, std::span<const std::byte> elements,
                              std::vector<std::byte>& out);

// Bytes of the elements that a stored tensor decodes to. Throws kCorruption for a tensor that no
// encode() can have stored: an unknown dtype or codec, a shape whose size overflows, data of a
// length that does not go with it, a zstd frame that declares another size.
TENSORKEY_EXPORT std::size_t decoded_size(const TensorParts& tensor);

// Writes the elements into `out`, which must have decoded_size(tensor) bytes. Everything that is
// declared is checked before anything is allocated or decompressed, and never more than out.size()
// bytes are. Throws kCorruption as decoded_size does, for an `out` of another size, and for data
// that do not decompress to it; `out` is then unspecified.
TENSORKEY_EXPORT void decode(const TensorParts& tensor, std::span<std::byte> out);

}  // namespace tensorkey
