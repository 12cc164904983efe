// A buffer of Python's that may be written, C-contiguous.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <span>

namespace tensorkey::python {

class Writable {
 public:
  // Throws what Python raises for an object that is no such buffer.
  explicit Writable(nanobind::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) != 0) {
      throw nanobind::python_error();
    }
  }
  ~Writable() { PyBuffer_Release(&buffer_); }
  Writable(const Writable&) = delete;
  Writable& operator=(const Writable&) = delete;
  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return {static_cast<std::byte*>(buffer_.buf), static_cast<std::size_t>(buffer_.len)};
  }

 private:
  Py_buffer buffer_;
};

}  // namespace tensorkey::python
