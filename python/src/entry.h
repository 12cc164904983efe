// Values on their way into entries: what Python gives, as the parts of an entry.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <tensorkey/entry.h>

#include "acquire.h"

namespace tensorkey::python {

// One tensor, a dict of tensors by name, or a list or tuple of tensors; borrowed where its elements
// lie in memory as an entry keeps them, else gathered.
class BorrowedValue {
 public:
  // Throws Error as Borrowed does; kInvalidArgument for no tensor at all.
  BorrowedValue(nanobind::handle value, const char* where);
  BorrowedValue(const BorrowedValue&) = delete;
  BorrowedValue& operator=(const BorrowedValue&) = delete;

  [[nodiscard]] EntryParts parts(const Key& key, double seconds) const {
    return {.key = key, .seconds = seconds, .tensors = tensors_};
  }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  void add(std::string name, nanobind::handle tensor, const char* where);

  struct Member {
    std::string name;
    std::unique_ptr<Borrowed> tensor;
    std::vector<std::byte> gathered;
  };
  std::vector<std::unique_ptr<Member>> members_;
  std::vector<TensorParts> tensors_;
  std::size_t bytes_ = 0;
};

// What a Python caller holds of a cache.
struct SharedEntry {
  EntryPtr entry;
};

}  // namespace tensorkey::python
