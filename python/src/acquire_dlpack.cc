// Other exporters: a buffer, or __dlpack__ with its capsule, versioned or of the first kind.
#include <array>
#include <string>

#include <tensorkey/view.h>

#include "acquire_loan.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

struct Place {
  std::int32_t type;
  std::int32_t id;
};

// Calls object.__dlpack__ with the keywords that `to_host` needs; null with the error set.
nb::object call_dlpack(PyObject* object, bool versioned, bool to_host) {
  const nb::object method = nb::handle(object).attr("__dlpack__");
  nb::dict keywords;
  if (versioned) keywords["max_version"] = nb::make_tuple(dlpack::kMajor, dlpack::kMinor);
  if (to_host) keywords["dl_device"] = nb::make_tuple(dlpack::kCpu, 0);
  const nb::tuple none;
  return nb::steal(PyObject_Call(method.ptr(), none.ptr(), keywords.ptr()));
}

nb::object dlpack_capsule(PyObject* object, bool to_host) {
  nb::object capsule = call_dlpack(object, true, to_host);
  // An exporter from before max_version does not know the keyword.
  if (!capsule.is_valid() && PyErr_ExceptionMatches(PyExc_TypeError) && !to_host) {
    PyErr_Clear();
    capsule = call_dlpack(object, false, false);
  }
  if (!capsule.is_valid()) {
    if (PyErr_ExceptionMatches(PyExc_BufferError) || to_host) {
      unsupported("the " + type_name(object) + " cannot be read" +
                  (to_host ? " from host memory: " : ": ") + take_error_text());
    }
    throw nb::python_error();
  }
  return capsule;
}

Place device_of(PyObject* object) {
  const nb::object device = nb::handle(object).attr("__dlpack_device__")();
  return {nb::cast<std::int32_t>(nb::int_(device[0])), nb::cast<std::int32_t>(nb::int_(device[1]))};
}

bool on_host(std::int32_t device_type) {
  return device_type == dlpack::kCpu || device_type == dlpack::kCudaHost ||
         device_type == dlpack::kRocmHost;
}

bool has_method(PyObject* object, const char* name) {
  // By the type: an object that answers to every name is not an exporter.
  return nb::hasattr(reinterpret_cast<PyObject*>(Py_TYPE(object)), name);
}

}  // namespace

DlpackLoan take_dlpack(PyObject* object, Loan& loan, bool to_host) {
  const nb::object capsule = dlpack_capsule(object, to_host);
  PyObject* raw = capsule.ptr();
  // Renaming the capsule takes its tensor over; from here on the loan calls the deleter.
  if (PyCapsule_IsValid(raw, "dltensor_versioned") != 0) {
    auto* managed =
        static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(raw, "dltensor_versioned"));
    if (PyCapsule_SetName(raw, "used_dltensor_versioned") != 0) throw nb::python_error();
    loan.managed = managed;
    if (managed->version.major != dlpack::kMajor) {
      unsupported("the " + type_name(object) + " exports DLPack version " +
                  std::to_string(managed->version.major) + "; expected 1");
    }
    return {&managed->tensor, (managed->flags & dlpack::kFlagPadded) != 0};
  }
  if (PyCapsule_IsValid(raw, "dltensor") != 0) {
    auto* legacy = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(raw, "dltensor"));
    if (PyCapsule_SetName(raw, "used_dltensor") != 0) throw nb::python_error();
    loan.legacy = legacy;
    return {&legacy->tensor, false};
  }
  unsupported("__dlpack__ of " + type_name(object) +
              " returned no capsule named dltensor or dltensor_versioned; expected one that is not "
              "used yet");
}

void borrow_exporter(PyObject* object, Loan& loan) {
  if (PyObject_CheckBuffer(object) != 0) {
    if (!borrow_buffer(object, loan)) {
      unsupported("the buffer of " + type_name(object) + " cannot be read: " + take_error_text());
    }
    check_view(loan.view, "buffer");
    return;
  }
  if (!has_method(object, "__dlpack__") || !has_method(object, "__dlpack_device__")) {
    not_a_tensor(object,
                 "pass one of NumPy, PyTorch, JAX, TensorFlow or Keras, or an exporter of a buffer "
                 "or of __dlpack__");
  }
  const bool to_host = !on_host(device_of(object).type);
  const DlpackLoan taken = take_dlpack(object, loan, to_host);
  loan.view = from_dlpack(*taken.tensor, taken.padded);
  loan.host_copy = to_host;
  check_view(loan.view, "__dlpack__");
  loan.object = nb::borrow(object);
}

}  // namespace tensorkey::python
