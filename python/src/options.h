// Arguments that many functions share: scope, secret, sequences of tensors.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <tensorkey/key.h>

#include "acquire.h"

namespace tensorkey::python {

// Inputs of this many bytes and more are read with the GIL released: below it taking the GIL back
// costs more than it gives.
inline constexpr std::size_t kReleaseGilBytes = std::size_t{64} * 1024;

// Releases the GIL if there is that much to read.
class MaybeReleaseGil {
 public:
  explicit MaybeReleaseGil(std::size_t bytes) {
    if (bytes >= kReleaseGilBytes) release_.emplace();
  }
  // The view need not have been checked: a size that overflows only makes the choice arbitrary.
  explicit MaybeReleaseGil(const TensorView& view) : MaybeReleaseGil(wrapped_bytes(view)) {}

 private:
  static std::size_t wrapped_bytes(const TensorView& view) noexcept {
    std::size_t bytes = item_size(view.dtype);
    for (const std::int64_t dim : view.shape) bytes *= static_cast<std::size_t>(dim);
    return bytes;
  }

  std::optional<nanobind::gil_scoped_release> release_;
};

// Borrows from the Python objects, which must stay alive. Throws Error: kUnsupported for another
// type than bytes or str (scope), bytes or bytearray (secret), kInvalidArgument for a secret that
// is not 32 bytes long. The text is named `where` in messages.
[[nodiscard]] KeyOptions key_options(nanobind::handle scope, nanobind::handle secret,
                                     bool canonical, std::string_view where);

// A number of tensors under paths, borrowed together.
class BorrowedMembers {
 public:
  void add(std::string path, PyObject* tensor);
  // Valid until the next add().
  [[nodiscard]] std::span<const TupleMember> members();
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  struct Item {
    std::string path;
    std::unique_ptr<Borrowed> tensor;
  };
  std::vector<Item> items_;
  std::vector<TupleMember> members_;
  std::size_t bytes_ = 0;
};

// byte_count of a view that may not have been checked yet.
[[nodiscard]] std::size_t checked_bytes(const TensorView& view, std::string_view where);

}  // namespace tensorkey::python
