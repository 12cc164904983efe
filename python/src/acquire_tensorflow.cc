// TensorFlow and Keras: an eager tensor exports a buffer, in which a quantised dtype looks like an
// integer; what exports none goes through numpy(), which shares memory on a CPU. Variables are
// asked for their value.
#include <string>

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
  const DType dtype = tensorflow_dtype(object);
  if (!borrow_buffer(object, loan)) {
    take_error_text();
    const nb::object array = nb::handle(object).attr("numpy")();
    borrow_numpy(array.ptr(), loan);
  }
  if (loan.view.dtype != dtype) {
    unsupported("a TensorFlow tensor of dtype " + std::string(to_string(dtype)) + " exports " +
                std::string(to_string(loan.view.dtype)) + "; expected the same dtype");
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
