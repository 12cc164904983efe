// The one place where C++ exceptions become Python's. REQUIRES everywhere: the GIL.
#pragma once

#include <nanobind/nanobind.h>

namespace tensorkey::python {

// Sets the Python error for the exception being handled: a tensorkey::Error becomes the class that
// tensorkey.errors registered under its code's name, std::bad_alloc a MemoryError, a Python error
// stays what it was. For code that Python calls directly (type slots); functions bound by nanobind
// need nothing. REQUIRES: called inside a catch block.
void set_python_error() noexcept;

void init_errors(nanobind::module_& module);

}  // namespace tensorkey::python
