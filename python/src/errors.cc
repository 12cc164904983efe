#include "errors.h"

#include <Python.h>
#include <nanobind/stl/string.h>

#include <exception>
#include <functional>
#include <map>
#include <new>
#include <string>

#include <tensorkey/error.h>

#include "failure.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

// Code name -> Python class; filled by tensorkey/errors.py. Never freed: exceptions outlive
// modules.
PyObject* classes = nullptr;

// Code name -> name of that class. Filled before anybody else can ask.
std::map<std::string, std::string, std::less<>> class_names;

PyObject* class_of(ErrorCode code) noexcept {
  const std::string name(to_string(code));
  PyObject* found = classes == nullptr ? nullptr : PyDict_GetItemString(classes, name.c_str());
  return found == nullptr ? PyExc_RuntimeError : found;
}

}  // namespace

void set_python_error() noexcept {
  try {
    throw;
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const PythonFailure& failure) {
    failure.restore();
  } catch (const Error& error) {
    PyErr_SetString(class_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(class_of(ErrorCode::kInternal), error.what());
  }
}

std::string class_name(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return "MemoryError";
  const auto* ours = dynamic_cast<const Error*>(&error);
  const auto found = class_names.find(to_string(ours ? ours->code() : ErrorCode::kInternal));
  return found == class_names.end() ? "RuntimeError" : found->second;
}

void init_errors(nb::module_& module) {
  classes = PyDict_New();
  if (classes == nullptr) throw nb::python_error();
  module.def(
      "register_error",
      [](const char* code, nb::handle error_class) {
        if (PyDict_SetItemString(classes, code, error_class.ptr()) != 0) throw nb::python_error();
        class_names[code] = nb::cast<std::string>(error_class.attr("__name__"));
      },
      nb::arg("code"), nb::arg("error_class"),
      "Make `error_class` what failures with this code raise. Called by tensorkey.errors alone.");
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const PythonFailure& failure) {
      failure.restore();
    } catch (const Error& error) {
      PyErr_SetString(class_of(error.code()), error.what());
    }
  });
}

}  // namespace tensorkey::python
