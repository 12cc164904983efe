#include <tensorkey/digest.h>

#include <algorithm>
#include <string>

#include <tensorkey/error.h>

#include "digest/blake3_rows.h"
#include "digest/blake3_tree.h"
#include "digest/workers.h"

namespace tensorkey {

Digest blake3(std::span<const std::byte> data, const DigestOptions& options) {
  const internal::Mode mode = internal::mode_of(options.key);
  if (data.size() < 2 * internal::kBytesPerThread) {
    return internal::root(mode, data, internal::prefetch_for(data.size()));
  }
  return internal::root_threaded(mode, data, internal::worker_count(options.threads, data.size()));
}

void blake3_rows(RowSpan rows, std::span<Digest> out, const DigestOptions& options) {
  if (out.size() != rows.count) {
    throw Error(ErrorCode::kInvalidArgument,
                "[blake3_rows] there is room for " + std::to_string(out.size()) +
                    " digests; expected one for each of " + std::to_string(rows.count) + " rows");
  }
  if (rows.bytes == 0) rows.stride = 0;  // data may be null then
  const internal::Mode mode = internal::mode_of(options.key);
  // Overlapping rows may add up to more bytes than the address space has.
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(rows.count, rows.bytes, &bytes)) bytes = SIZE_MAX;
  // A few very long rows: spread each over the threads.
  const unsigned threads = internal::worker_count(options.threads, bytes);
  if (threads > 1 && rows.count < 4 * std::size_t{threads} &&
      rows.bytes >= 2 * internal::kBytesPerThread) {
    for (std::size_t i = 0; i < rows.count; ++i) {
      out[i] = internal::root_threaded(
          mode, {rows.data + static_cast<std::ptrdiff_t>(i) * rows.stride, rows.bytes}, threads);
    }
    return;
  }
  if (threads == 1) return internal::roots(mode, rows, out);
  // Units of about 1 MiB: large enough to fill the lanes, small enough to share out evenly.
  const std::size_t row_bytes = std::max<std::size_t>(1, rows.bytes);
  const std::size_t per_unit = std::max<std::size_t>(1, (std::size_t{1} << 20) / row_bytes);
  const std::size_t units = (rows.count + per_unit - 1) / per_unit;
  const auto work = [&](std::size_t unit) noexcept {
    const std::size_t at = unit * per_unit;
    const std::size_t count = std::min(per_unit, rows.count - at);
    internal::roots(mode,
                    {.data = rows.data + static_cast<std::ptrdiff_t>(at) * rows.stride,
                     .count = count,
                     .bytes = rows.bytes,
                     .stride = rows.stride},
                    out.subspan(at, count));
  };
  internal::run_units(threads, units, work);
}

Digest blake3_derive_key(std::string_view context, std::span<const std::byte> material) {
  const Digest key = internal::root({.flags = internal::kDeriveContext},
                                    std::as_bytes(std::span(context.data(), context.size())), 0);
  internal::Mode mode = internal::mode_of(&key);
  mode.flags = internal::kDeriveMaterial;
  return internal::root(mode, material, internal::prefetch_for(material.size()));
}

}  // namespace tensorkey
