// A tensor of any accepted framework, borrowed from a Python object as a TensorView, without a copy
// and without importing its framework. What may be trusted of each framework and what must be asked
// is decided here and nowhere else (docs/frontends/dtypes.md has the table).
//
// REQUIRES: the GIL for construction and destruction; the view may be read without it.
#pragma once

#include <Python.h>

#include <array>
#include <cstdint>
#include <string>

#include <tensorkey/key.h>
#include <tensorkey/view.h>

namespace tensorkey::python {

// Whose tensor it was: what iteration over a mapping gives back.
enum class Framework : std::uint8_t { kBuffer, kNumpy, kTorch, kJax, kTensorflow };

class Borrowed {
 public:
  // Throws Error kUnsupported (Python Unsupported, a TypeError) for what has no key, with what to
  // do instead; python_error passes through from the framework's own calls where it has no better
  // text of ours.
  explicit Borrowed(PyObject* object);
  ~Borrowed();
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

  [[nodiscard]] const TensorView& view() const noexcept { return view_; }
  [[nodiscard]] Framework framework() const noexcept { return framework_; }

  // The bytes were copied from a device, or materialised by the framework, to be readable.
  [[nodiscard]] bool host_copy() const noexcept { return host_copy_; }

 private:
  TensorView view_;
  Framework framework_ = Framework::kBuffer;
  bool host_copy_ = false;
  // The implementer adds what keeps the memory alive: a Py_buffer, a DLPack tensor, references.
};

// What a tensor is apart from its elements, for structure keys. Reads no element, copies nothing
// from a device; symbolic tensors are refused as for content.
class BorrowedStructure {
 public:
  explicit BorrowedStructure(PyObject* object);
  [[nodiscard]] const TensorView& view() const noexcept { return view_; }
  [[nodiscard]] const Structure& structure() const noexcept { return structure_; }

 private:
  TensorView view_;  // data may be null
  Structure structure_;
  // The implementer adds what keeps strings and dims alive.
};

}  // namespace tensorkey::python
