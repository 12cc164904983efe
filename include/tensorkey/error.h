// Errors: a miss is a value (std::optional, an iterator), a failure is one exception class with a
// code, a bug is a debug check. The text says what was wrong, where, and what would be right:
// "[row_keys] the tensor has rank 0; expected at least one dimension".
//
// Every function of the library gives the strong guarantee unless it says otherwise: after an
// Error nothing has changed. std::bad_alloc passes through as it is.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include <tensorkey/export.h>

namespace tensorkey {

enum class ErrorCode : std::uint8_t {
  kInvalidArgument = 1,  // a value out of range: Python InvalidArgument, a ValueError
  kUnsupported,          // a type, dtype or device that has no key: Python Unsupported, a TypeError
  kNotFound,             // only at() and d[k]: Python MissingKey, a KeyError
  kIo,                   // a file or device refuses: Python StoreIOError, an OSError
  kCorruption,   // stored bytes that are no whole entry: Python CorruptEntry, a RuntimeError
  kInternal,     // a broken invariant of the library: Python InternalError, a RuntimeError
  kUnavailable,  // a store that is refused, gone or locked: Python StoreUnavailable, a
                 // ConnectionError
  kExhausted,    // a full disk or bound: Python StoreFull, an OSError
};

// "invalid_argument" and so on: stable names for logs.
TENSORKEY_EXPORT std::string_view to_string(ErrorCode code) noexcept;

class TENSORKEY_EXPORT Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace tensorkey
