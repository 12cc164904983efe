// What a layer keeps in its cache beside rows: what the probe found and what the output is made of,
// so that other processes need not find out again. Records are read as what anybody may have
// written: one that is not whole is none. Thread-safe.
//
// Their keys are keys of the caller's own, the texts "verdict" and "form", under the BLAKE3 of
//
//   ("tensorkey verdict", 1, about, signature)
//   ("tensorkey form", 1, scope of the rows, signature)
//
// A record is a row of uint8, all integers little-endian:
//
//   verdict  u8 version 1, u8 flags (1 refused, 2 complete, 4 slot differences accepted), u32
//   chunk,
//            u32 leaves, for each leaf u8 (1 by row, 0 not), the text in UTF-8
//   form     u8 version 1, u32 leaves, for each leaf u8, the frontend's bytes; as further tensors
//   of
//            the row the leaves that are not by row
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <tensorkey/cache.h>
#include <tensorkey/layer.h>
#include <tensorkey/memo.h>

#include "memo/layer_form.h"

namespace tensorkey::internal {

inline constexpr std::uint32_t kLargestChunk = 1U << 16U;

[[nodiscard]] inline bool is_chunk(std::uint32_t chunk) noexcept {
  return chunk == 1 || (chunk > 0 && chunk % 32 == 0 && chunk <= kLargestChunk);
}

// A verdict, as processes share it.
struct KnownVerdict {
  Verdict verdict;
  std::vector<std::uint8_t> by_row;  // of each leaf
  bool slot_accepted = false;        // bits="slot"
};

[[nodiscard]] std::vector<std::byte> encode_verdict(const KnownVerdict& known);
[[nodiscard]] std::optional<KnownVerdict> decode_verdict(std::span<const std::byte> record);
[[nodiscard]] std::vector<std::byte> encode_form(const Form& form);
[[nodiscard]] std::optional<Form> decode_form(const Entry& entry);

// A place in the cache.
struct RecordPlace {
  Key key;
  Digest scope;  // under which the entry is stored, and purged
  Secret secret;
};

class Records {
 public:
  explicit Records(std::shared_ptr<ActivationCache> cache) : memo_(std::move(cache)) {}

  // `signature` is encoded canonically.
  [[nodiscard]] static RecordPlace verdict_place(const Digest& about, std::string_view signature,
                                                 const Secret& secret);
  // `scope`: of the rows.
  [[nodiscard]] static RecordPlace form_place(const Digest& scope, std::string_view signature,
                                              const Secret& secret);

  [[nodiscard]] std::optional<KnownVerdict> verdict(const RecordPlace& place);
  [[nodiscard]] std::optional<Form> form(const RecordPlace& place);

  // In place of what is there. `seconds`: what it took to find out.
  void store(const RecordPlace& place, const KnownVerdict& known, double seconds);
  // Throws kUnsupported for a leaf that cannot be stored.
  void store(const RecordPlace& place, const Form& form, double seconds, Keep keep);

  // Of pending forms: see Memo::settle.
  void settle(bool valid) { memo_.settle(valid); }

 private:
  [[nodiscard]] std::optional<MemoBatch> find(const RecordPlace& place);
  void replace(const RecordPlace& place, std::span<const TensorView> tensors, double seconds,
               Keep keep);

  Memo memo_;
};

}  // namespace tensorkey::internal
