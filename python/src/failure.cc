#include "failure.h"

#include <Python.h>

namespace nb = nanobind;

namespace tensorkey::python {

PythonFailure::PythonFailure(nb::handle raised)
    : exception_(raised.inc_ref().ptr(), [](PyObject* object) {
        if (Py_IsInitialized() == 0) return;  // too late to free anything
        const nb::gil_scoped_acquire acquire;
        Py_DECREF(object);
      }) {}

void PythonFailure::restore() const noexcept {
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception_.get())), exception_.get());
}

bool PythonFailure::is_exception() const noexcept {
  return PyErr_GivenExceptionMatches(exception_.get(), PyExc_Exception) != 0;
}

void check_signals() {
  const nb::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

}  // namespace tensorkey::python
