#include "memo/layer_records.h"

#include <tensorkey/canonical.h>

#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/utf8.h"

namespace tensorkey::internal {
namespace {

constexpr std::uint8_t kVersion = 1;
constexpr std::size_t kLongestText = 4096;
enum Flags : std::uint8_t { kRefused = 1, kComplete = 2, kSlotAccepted = 4 };

void put_leaves(ByteWriter& to, std::span<const std::uint8_t> by_row) {
  to.put(static_cast<std::uint32_t>(by_row.size()));
  to.put(std::as_bytes(by_row));
}

std::vector<std::byte> bytes_of(const ByteWriter& writer) {
  const auto bytes = writer.bytes();
  return {bytes.begin(), bytes.end()};
}

// Reads from the front; what is not there is nullopt, and so is all that follows.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <std::unsigned_integral T>
  [[nodiscard]] std::optional<T> number() {
    if (rest_.size() < sizeof(T)) return std::nullopt;
    const T value = load<T>(rest_.data());
    rest_ = rest_.subspan(sizeof(T));
    return value;
  }

  [[nodiscard]] std::optional<std::vector<std::uint8_t>> leaves() {
    const auto count = number<std::uint32_t>();
    if (!count || *count > rest_.size()) return std::nullopt;
    std::vector<std::uint8_t> by_row;
    for (const std::byte flag : rest_.first(*count)) {
      by_row.push_back(static_cast<std::uint8_t>(flag));
      if (by_row.back() > 1) return std::nullopt;
    }
    rest_ = rest_.subspan(*count);
    return by_row;
  }

  [[nodiscard]] std::string_view text() const {
    return {reinterpret_cast<const char*>(rest_.data()), rest_.size()};
  }

 private:
  std::span<const std::byte> rest_;
};

// The elements of a stored tensor; none if it is not one that store() has written.
std::optional<std::span<const std::byte>> elements(const TensorParts& tensor) {
  if (tensor.codec != Codec::kRaw || find_dtype(tensor.dtype) == nullptr ||
      tensor.dtype >= DType::kDateTime64) {
    return std::nullopt;
  }
  return tensor.data;
}

Key own_key(std::string_view name, const Digest& scope, const Secret& secret) {
  const OwnId id{.type = OwnId::Type::kText, .data = name};
  Key key;
  own_keys(
      {&id, 1}, {&key, 1},
      {.scope = {reinterpret_cast<const char*>(scope.data()), scope.size()}, .secret = secret});
  return key;
}

Digest digest_of(const std::string& encoded) { return blake3(std::as_bytes(std::span(encoded))); }

KeyOptions options_of(const RecordPlace& place) {
  return {.scope = {reinterpret_cast<const char*>(place.scope.data()), place.scope.size()},
          .secret = place.secret};
}

// A tensor as the only row of a batch.
struct OneRow {
  OneRow(DType dtype, std::span<const std::int64_t> dims, std::span<const std::byte> bytes)
      : shape{1} {
    shape.insert(shape.end(), dims.begin(), dims.end());
    view = {.data = bytes.data(), .dtype = dtype, .shape = shape};
  }
  std::vector<std::int64_t> shape;
  TensorView view;
};

}  // namespace

std::vector<std::byte> encode_verdict(const KnownVerdict& known) {
  const Verdict& verdict = known.verdict;
  ByteWriter record;
  record.put(kVersion);
  record.put(static_cast<std::uint8_t>((verdict.refused ? kRefused : 0) |
                                       (verdict.complete ? kComplete : 0) |
                                       (known.slot_accepted ? kSlotAccepted : 0)));
  record.put(verdict.chunk);
  put_leaves(record, known.by_row);
  record.put(std::string_view(verdict.text).substr(0, kLongestText));
  return bytes_of(record);
}

std::optional<KnownVerdict> decode_verdict(std::span<const std::byte> record) {
  Reader from(record);
  const auto version = from.number<std::uint8_t>();
  const auto flags = from.number<std::uint8_t>();
  const auto chunk = from.number<std::uint32_t>();
  auto by_row = from.leaves();
  if (!version || !flags || !chunk || !by_row || *version != kVersion ||
      *flags > (kRefused | kComplete | kSlotAccepted) || !is_chunk(*chunk) ||
      from.text().size() > kLongestText || !is_utf8(from.text())) {
    return std::nullopt;
  }
  return KnownVerdict{.verdict = {.chunk = *chunk,
                                  .refused = (*flags & kRefused) != 0,
                                  .complete = (*flags & kComplete) != 0,
                                  .text = std::string(from.text())},
                      .by_row = *std::move(by_row),
                      .slot_accepted = (*flags & kSlotAccepted) != 0};
}

std::vector<std::byte> encode_form(const Form& form) {
  ByteWriter record;
  record.put(kVersion);
  put_leaves(record, form.by_row);
  record.put(std::string_view(form.bytes));
  return bytes_of(record);
}

std::optional<Form> decode_form(const Entry& entry) {
  if (entry.tensor_count() == 0) return std::nullopt;
  const TensorParts head = entry.tensor(0);
  const auto record = elements(head);
  if (!record || head.dtype != DType::kUInt8) return std::nullopt;
  Reader from(*record);
  const auto version = from.number<std::uint8_t>();
  auto by_row = from.leaves();
  if (!version || !by_row || *version != kVersion) return std::nullopt;
  const auto constants = static_cast<std::size_t>(std::ranges::count(*by_row, std::uint8_t{0}));
  if (entry.tensor_count() != 1 + constants) return std::nullopt;
  Form form{.bytes = std::string(from.text()), .by_row = *std::move(by_row), .constants = {}};
  for (std::size_t i = 0; i < constants; ++i) {
    const TensorParts tensor = entry.tensor(1 + i);
    const auto bytes = elements(tensor);
    if (!bytes) return std::nullopt;
    form.constants.push_back({.dtype = tensor.dtype,
                              .shape = {tensor.shape.begin(), tensor.shape.end()},
                              .data = {bytes->begin(), bytes->end()}});
  }
  return form;
}

RecordPlace Records::verdict_place(const Digest& about, std::string_view signature,
                                   const Secret& secret) {
  const Digest scope =
      digest_of(canonical::tuple({canonical::text("tensorkey verdict"), canonical::integer(1),
                                  canonical::bytes(about), std::string(signature)}));
  return {.key = own_key("verdict", scope, secret), .scope = scope, .secret = secret};
}

RecordPlace Records::form_place(const Digest& scope, std::string_view signature,
                                const Secret& secret) {
  const Digest own =
      digest_of(canonical::tuple({canonical::text("tensorkey form"), canonical::integer(1),
                                  canonical::bytes(scope), std::string(signature)}));
  return {.key = own_key("form", own, secret), .scope = scope, .secret = secret};
}

// A record that is there is a hit; one that is not is not counted as a miss.
std::optional<MemoBatch> Records::find(const RecordPlace& place) {
  if (!memo_.cache().contains(place.key)) return std::nullopt;
  MemoBatch batch = memo_.lookup(std::span(&place.key, 1), options_of(place));
  if (batch.example() == nullptr) return std::nullopt;
  return batch;
}

std::optional<KnownVerdict> Records::verdict(const RecordPlace& place) {
  const std::optional<MemoBatch> batch = find(place);
  if (!batch || batch->entry(0).tensor_count() != 1) return std::nullopt;
  const TensorParts tensor = batch->entry(0).tensor(0);
  const auto record = elements(tensor);
  if (!record || tensor.dtype != DType::kUInt8) return std::nullopt;
  return decode_verdict(*record);
}

std::optional<Form> Records::form(const RecordPlace& place) {
  const std::optional<MemoBatch> batch = find(place);
  if (!batch) return std::nullopt;
  return decode_form(batch->entry(0));
}

void Records::store(const RecordPlace& place, const KnownVerdict& known, double seconds) {
  const std::vector<std::byte> record = encode_verdict(known);
  const std::int64_t dims[] = {static_cast<std::int64_t>(record.size())};
  const OneRow row(DType::kUInt8, dims, record);
  replace(place, {&row.view, 1}, seconds, Keep::kNow);
}

void Records::store(const RecordPlace& place, const Form& form, double seconds, Keep keep) {
  const std::vector<std::byte> record = encode_form(form);
  const std::int64_t dims[] = {static_cast<std::int64_t>(record.size())};
  std::vector<OneRow> rows;
  rows.reserve(1 + form.constants.size());  // views point into them
  rows.emplace_back(DType::kUInt8, dims, record);
  for (const HostTensor& tensor : form.constants) {
    rows.emplace_back(tensor.dtype, tensor.shape, tensor.data);
    rows.back().view.dtype_params = tensor.params;
  }
  std::vector<TensorView> tensors;
  tensors.reserve(rows.size());
  for (const OneRow& row : rows) tensors.push_back(row.view);
  replace(place, tensors, seconds, keep);
}

void Records::replace(const RecordPlace& place, std::span<const TensorView> tensors, double seconds,
                      Keep keep) {
  if (memo_.cache().contains(place.key)) memo_.cache().remove(place.key);
  MemoBatch batch = memo_.lookup(std::span(&place.key, 1), options_of(place), keep);
  if (batch.missing().empty()) return;  // another one puts it there
  batch.insert(0, 1, tensors, seconds);
}

}  // namespace tensorkey::internal
