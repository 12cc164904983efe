#include "acquire.h"

#include <tensorkey/error.h>

#include "acquire_types.h"

namespace nb = nanobind;

namespace tensorkey::python {

Loan::~Loan() {
  if (buffer.obj == nullptr && managed == nullptr && legacy == nullptr) return;
  // A release may run Python code, also while an exception is on its way.
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  if (buffer.obj != nullptr) PyBuffer_Release(&buffer);
  if (managed != nullptr && managed->deleter != nullptr) managed->deleter(managed);
  if (legacy != nullptr && legacy->deleter != nullptr) legacy->deleter(legacy);
  PyErr_Restore(type, value, traceback);
}

void unsupported(const std::string& text) {
  throw Error(ErrorCode::kUnsupported, "[tensorkey] " + text);
}

void has_no_value(PyObject* object) {
  unsupported("this " + type_name(object) +
              " has no value while the model is being traced; wrap the layer in CachedLayer, which "
              "then runs without its cache");
}

void not_a_tensor(PyObject* object, std::string_view instead) {
  unsupported("expected a tensor, not " + type_name(object) + ": " + std::string(instead) +
              " (docs/unhashable.md: which key for which purpose)");
}

std::string text_of(nb::handle object) {
  const auto text = nb::steal(PyObject_Str(object.ptr()));
  const char* utf8 = text.is_valid() ? PyUnicode_AsUTF8(text.ptr()) : nullptr;
  if (utf8 == nullptr) throw nb::python_error();
  return utf8;
}

std::string take_error_text() {
  if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError)) {
    throw nb::python_error();
  }
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  const auto owned_type = nb::steal(type);
  const auto owned_value = nb::steal(value);
  const auto owned_traceback = nb::steal(traceback);
  const auto text = nb::steal(PyObject_Str(value));
  const char* utf8 = text.is_valid() ? PyUnicode_AsUTF8(text.ptr()) : nullptr;
  if (utf8 == nullptr) {
    PyErr_Clear();
    return "an error without text";
  }
  // The first line says it; frameworks add pages of advice.
  const std::string_view line(utf8);
  return std::string(line.substr(0, line.find('\n')));
}

nb::object imported(const char* module, const char* name) {
  PyObject* found = PyDict_GetItemString(PyImport_GetModuleDict(), module);
  if (found == nullptr) unsupported(std::string(module) + " is not imported; expected it to be");
  return nb::borrow(found).attr(name);
}

const char* framework_name(Framework framework) noexcept {
  switch (framework) {
    case Framework::kBuffer: return "buffer";
    case Framework::kNumpy: return "numpy";
    case Framework::kTorch: return "torch";
    case Framework::kJax: return "jax";
    case Framework::kTensorflow: return "tensorflow";
  }
  return "buffer";
}

void borrow(PyObject* object, Loan& loan) {
  switch (kind_of(Py_TYPE(object))) {
    case Kind::kTorch: return borrow_torch(object, loan);
    case Kind::kNumpy: return borrow_numpy(object, loan);
    case Kind::kNumpyScalar: return borrow_numpy_scalar(object, loan);
    case Kind::kJax: return borrow_jax(object, loan);
    case Kind::kTensorflow: return borrow_tensorflow(object, loan);
    case Kind::kTensorflowVariable: return borrow_variable(object, loan);
    case Kind::kKerasVariable: return borrow_keras_variable(object, loan);
    case Kind::kExporter: return borrow_exporter(object, loan);
    case Kind::kOther: break;
  }
  refuse_by_name(object);
  borrow_exporter(object, loan);
}

Borrowed::Borrowed(PyObject* object) { python::borrow(object, loan_); }

}  // namespace tensorkey::python
