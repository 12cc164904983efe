#include <tensorkey/codec.h>

#include <algorithm>
#include <array>
#include <cstring>

#include <tensorkey/error.h>

#include "store/half.h"
#include "store/lossless.h"
#include "store/stored.h"

namespace tensorkey {
namespace {

// By the codec's number.
constexpr std::array<std::string_view, 4> kNames = {"raw", "lossless", "fp16", "bf16"};

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "[encode] " + message);
}

[[noreturn]] void corrupt(const char* where, const std::string& message) {
  throw Error(ErrorCode::kCorruption, std::string("[") + where + "] " + message);
}

std::size_t checked_size(const TensorParts& tensor, const char* where) {
  const internal::Stored stored = internal::check_stored(tensor);
  if (!stored.problem.empty()) corrupt(where, stored.problem);
  return stored.bytes;
}

}  // namespace

std::string_view to_string(Codec codec) noexcept {
  const auto id = static_cast<std::size_t>(codec);
  return id < kNames.size() ? kNames[id] : "unknown";
}

std::optional<Codec> codec_from_name(std::string_view name) noexcept {
  const auto* found = std::ranges::find(kNames, name);
  if (found == kNames.end()) return std::nullopt;
  return static_cast<Codec>(found - kNames.begin());
}

bool is_lossy(Codec codec) noexcept {
  return codec == Codec::kFloat16 || codec == Codec::kBFloat16;
}

Codec encode(Codec wanted, DType dtype, std::span<const std::byte> elements,
             std::vector<std::byte>& out) {
  const std::size_t item = item_size(dtype);
  if (item == 0) invalid("an unknown dtype; expected one of docs/key_format.md");
  if (elements.size() % item != 0) {
    invalid("there are " + std::to_string(elements.size()) + " bytes; expected a multiple of " +
            std::to_string(item));
  }
  switch (wanted) {
    case Codec::kRaw: break;
    case Codec::kLossless:
      if (internal::compress(elements, item, out)) return Codec::kLossless;
      break;
    case Codec::kFloat16:
    case Codec::kBFloat16:
      if (elements.empty() || !internal::can_halve(dtype)) break;
      out.resize(internal::halved_size(dtype, elements.size()));
      internal::to_halves(wanted, dtype, elements, out);
      return wanted;
    default: invalid("an unknown codec; expected raw, lossless, fp16 or bf16");
  }
  out.assign(elements.begin(), elements.end());
  return Codec::kRaw;
}

std::size_t decoded_size(const TensorParts& tensor) { return checked_size(tensor, "decoded_size"); }

void decode(const TensorParts& tensor, std::span<std::byte> out) {
  const std::size_t bytes = checked_size(tensor, "decode");
  if (out.size() != bytes) {
    corrupt("decode", "the tensor has " + std::to_string(bytes) + " bytes of elements; expected " +
                          std::to_string(out.size()));
  }
  switch (tensor.codec) {
    case Codec::kRaw:
      if (bytes != 0) std::memcpy(out.data(), tensor.data.data(), bytes);
      return;
    case Codec::kLossless:
      if (!internal::decompress(tensor.data, item_size(tensor.dtype), out)) {
        corrupt("decode",
                "the zstd frame does not decompress; expected " + std::to_string(bytes) + " bytes");
      }
      return;
    case Codec::kFloat16:
    case Codec::kBFloat16:
      internal::from_halves(tensor.codec, tensor.dtype, tensor.data, out);
      return;
  }
}

}  // namespace tensorkey
