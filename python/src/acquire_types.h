// Which framework's tensor an object is, by its exact type. A framework is recognised by the name
// of the type and of the module that defines it, never imported.
//
// REQUIRES: the GIL.
#pragma once

#include <Python.h>

#include <cstdint>

namespace tensorkey::python {

enum class Kind : std::uint8_t {
  kOther,  // none of the accepted classes: perhaps another exporter
  kTorch,
  kNumpy,
  kNumpyScalar,
  kJax,
  kTensorflow,
  kTensorflowVariable,
  kKerasVariable,
  kExporter,  // bytes, bytearray, memoryview: known to export a buffer
};

// Remembers accepted types (and keeps them alive), so that this costs a few nanoseconds.
[[nodiscard]] Kind kind_of(PyTypeObject* type);

// Throws kUnsupported if the object's class, or a base of it, is one that has no key: with what to
// do instead. An unknown subclass of an accepted class is refused as well: it may mean anything.
void refuse_by_name(PyObject* object);

}  // namespace tensorkey::python
