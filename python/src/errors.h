// The one place where C++ exceptions become Python's. REQUIRES the GIL unless it says otherwise.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>
#include <string>

namespace tensorkey::python {

// Sets the Python error for the exception being handled: a tensorkey::Error becomes the class that
// tensorkey.errors registered under its code's name, std::bad_alloc a MemoryError, a Python error
// stays what it was. For code that Python calls directly (type slots); functions bound by nanobind
// need nothing. REQUIRES: called inside a catch block.
void set_python_error() noexcept;

// The name of the class that an exception of C++ would become. Needs no GIL.
[[nodiscard]] std::string class_name(const std::exception& error);

void init_errors(nanobind::module_& module);

}  // namespace tensorkey::python
