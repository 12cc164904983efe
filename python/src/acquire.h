// A tensor of any accepted framework, borrowed from a Python object as a TensorView, without a copy
// and without importing its framework. What may be trusted of each framework and what must be asked
// is decided here and nowhere else (docs/frontends/dtypes.md has the table).
//
// REQUIRES: the GIL for construction and destruction; the view may be read without it.
#pragma once

#include <Python.h>

#include <cstdint>
#include <string>
#include <vector>

#include <tensorkey/key.h>
#include <tensorkey/view.h>

#include "acquire_loan.h"

namespace tensorkey::python {

class Borrowed {
 public:
  // Throws Error kUnsupported (Python Unsupported, a TypeError) for what has no key, with what to
  // do instead; python_error passes through from the framework's own calls where it has no better
  // text of ours.
  explicit Borrowed(PyObject* object);
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

  [[nodiscard]] const TensorView& view() const noexcept { return loan_.view; }
  [[nodiscard]] Framework framework() const noexcept { return loan_.framework; }

  // The bytes were copied from a device, or gathered from several, to be readable.
  [[nodiscard]] bool host_copy() const noexcept { return loan_.host_copy; }

 private:
  Loan loan_;
};

// What a tensor is apart from its elements, for structure keys. Reads no element, copies nothing
// from a device; symbolic tensors are refused as for content.
class BorrowedStructure {
 public:
  explicit BorrowedStructure(PyObject* object);
  BorrowedStructure(const BorrowedStructure&) = delete;
  BorrowedStructure& operator=(const BorrowedStructure&) = delete;

  [[nodiscard]] const TensorView& view() const noexcept { return loan_.view; }
  [[nodiscard]] const Structure& structure() const noexcept { return structure_; }

 private:
  Loan loan_;  // view.data may be null
  Structure structure_;
  std::string device_;
  std::vector<std::int64_t> dims_;
};

}  // namespace tensorkey::python
