// What reading a stored entry takes, for whichever file it is in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <tensorkey/cache.h>
#include <tensorkey/entry_format.h>

#include "base/function_ref.h"
#include "store/disk/segment.h"

namespace tensorkey::internal {

// Memory of this thread to read a record into, valid until it is asked for again.
[[nodiscard]] std::span<std::byte> scratch(std::size_t bytes);

// Has the entry taken if it is whole and this key's; false if not.
bool decode_stored(const Key& key, std::span<const std::byte> encoded, const Secret& secret,
                   FunctionRef<void(const EntryParts&)> take);

// Whether an entry says that it was written with a secret.
[[nodiscard]] bool is_keyed(std::span<const std::byte> encoded) noexcept;

// Copies the values of the first tensor, if they are raw and exactly as many.
bool copy_values(const EntryParts& parts, std::span<std::byte> out) noexcept;

// Seconds that an entry lives, rounded up; 0: for ever.
[[nodiscard]] std::int64_t whole_ttl(const CacheOptions& options) noexcept;
[[nodiscard]] bool is_expired(const RecordHead& head, std::int64_t ttl) noexcept;

// Reads the record of an entry that has one raw tensor of out.size() bytes and is under no secret,
// large values straight into `out`; they are verified with what lies before and behind them. False,
// with `out` unspecified, for anything else. `cost` becomes the entry's, in seconds.
bool read_values(const SegmentFiles::File& file, const Key& key, const Place& place,
                 std::span<std::byte> out, double& cost) noexcept;

}  // namespace tensorkey::internal
