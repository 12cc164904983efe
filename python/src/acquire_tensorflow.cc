// TensorFlow and Keras: an eager tensor exports a buffer, in which a quantised dtype looks like an
// integer; what exports none goes through numpy(), which shares memory on a CPU. Variables are
// asked for their value.
#include <string>

#include <tensorkey/error.h>

#include "acquire_loan.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

std::string dtype_name(nb::handle tensor) { return text_of(tensor.attr("dtype").attr("name")); }

[[noreturn]] void refuse_dtype(const std::string& name) {
  if (name == "string") {
    unsupported(
        "a TensorFlow tensor of dtype string has no key; pass tf.io.decode_raw(x, tf.uint8)");
  }
  if (name.starts_with('q')) {
    unsupported(
        "a quantised TensorFlow tensor (" + name +
        ") has no key; pass tf.quantization.dequantize(x, ..), or tf.bitcast(x, tf.int8) and "
        "its range to tuple_key");
  }
  unsupported("a TensorFlow tensor of dtype " + name + " has no key; pass a tensor of numbers");
}

bool may_be_quantised(DType dtype) {
  return dtype == DType::kInt8 || dtype == DType::kUInt8 || dtype == DType::kInt16 ||
         dtype == DType::kUInt16 || dtype == DType::kInt32;
}

}  // namespace

DType tensorflow_dtype(PyObject* tensor) {
  const std::string name = dtype_name(tensor);
  const auto dtype = dtype_from_name(name);
  if (!dtype) refuse_dtype(name);
  return *dtype;
}

// "/job:localhost/replica:0/task:0/device:GPU:1" is "gpu:1"; any CPU is "cpu".
std::string tensorflow_device(PyObject* tensor) {
  const std::string full = text_of(nb::handle(tensor).attr("device"));
  std::string name = full.substr(full.rfind("device:") == std::string::npos
                                     ? 0
                                     : full.rfind("device:") + std::string_view("device:").size());
  for (char& letter : name) {
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
  }
  return name.starts_with("cpu") ? "cpu" : name;
}

void borrow_tensorflow(PyObject* object, Loan& loan) {
  bool exported = false;
  try {
    exported = borrow_buffer(object, loan);
  } catch (const Error&) {
    tensorflow_dtype(object);  // says it better
    throw;
  }
  if (!exported) {
    const std::string reason = take_error_text();
    tensorflow_dtype(object);
    const nb::object array = nb::handle(object).attr("numpy")();
    if (array.type().ptr() == nb::handle(object).type().ptr()) {
      unsupported("the TensorFlow tensor cannot be read: " + reason);
    }
    borrow(array.ptr(), loan);  // an array, or a scalar for rank 0
  } else if (may_be_quantised(loan.view.dtype)) {
    tensorflow_dtype(object);
  }
  loan.host_copy = tensorflow_device(object) != "cpu";
  loan.framework = Framework::kTensorflow;
}

void borrow_variable(PyObject* object, Loan& loan) {
  const nb::object value = nb::handle(object).attr("value")();
  borrow(value.ptr(), loan);
}

void borrow_keras_variable(PyObject* object, Loan& loan) {
  const nb::object value = nb::handle(object).attr("value");
  borrow(value.ptr(), loan);
}

}  // namespace tensorkey::python
