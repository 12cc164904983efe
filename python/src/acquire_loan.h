// What keeps a borrowed tensor readable, and the functions that fill it in, one for each way in.
// Internal to acquire_*.cc.
//
// REQUIRES: the GIL everywhere. Each function throws Error or nanobind::python_error and then
// leaves to the loan's destructor what it has already taken.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <string_view>

#include <tensorkey/view.h>

#include "dlpack_abi.h"

namespace tensorkey::python {

// Whose tensor it was: what iteration over a mapping gives back.
enum class Framework : std::uint8_t { kBuffer, kNumpy, kTorch, kJax, kTensorflow };

// "buffer", "numpy", "torch", "jax", "tensorflow".
const char* framework_name(Framework framework) noexcept;

struct Loan {
  TensorView view;
  Framework framework = Framework::kBuffer;
  bool host_copy = false;

  nanobind::object object;                      // whose memory, shape and strides are
  Py_buffer buffer;                             // held if buffer.obj is not null
  dlpack::ManagedVersioned* managed = nullptr;  // one of the two is held, for its deleter
  dlpack::Managed* legacy = nullptr;
  std::string dtype_params;

  Loan() noexcept { buffer.obj = nullptr; }
  ~Loan();
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;
};

// Any accepted object, by its type.
void borrow(PyObject* object, Loan& loan);

void borrow_torch(PyObject* object, Loan& loan);
void borrow_numpy(PyObject* object, Loan& loan);
void borrow_numpy_scalar(PyObject* object, Loan& loan);
void borrow_jax(PyObject* object, Loan& loan);
void borrow_tensorflow(PyObject* object, Loan& loan);
void borrow_variable(PyObject* object, Loan& loan);  // tf.Variable
void borrow_keras_variable(PyObject* object, Loan& loan);

// Anything else that exports a buffer or has __dlpack__.
void borrow_exporter(PyObject* object, Loan& loan);

// By the buffer protocol: false with a Python error set if there is no buffer to be had; throws
// kUnsupported for a format without a dtype. Holds the buffer.
bool borrow_buffer(PyObject* object, Loan& loan);

// By __dlpack__, whatever the device: loan.view is set only if the host can read the tensor. What
// was given is loan.managed or loan.legacy.
struct DlpackLoan {
  const dlpack::Tensor* tensor;
  bool padded;
};
DlpackLoan take_dlpack(PyObject* object, Loan& loan, bool to_host);

// A PyTorch tensor's DLPack description, for content and structure. Throws what refuse_torch does.
struct TorchTensor {
  dlpack::Tensor tensor;
  DType dtype;
};
TorchTensor torch_tensor(PyObject* object);

// PyTorch's table of functions, for who asks only where memory lies: see the first lines of
// acquire_torch.cc for what it does not tell.
const dlpack::ExchangeApi& torch_exchange_api();

// The dtype and device of a TensorFlow tensor, refused as borrow_tensorflow refuses.
DType tensorflow_dtype(PyObject* tensor);
std::string tensorflow_device(PyObject* tensor);  // "cpu", "gpu:0"

// Errors of kind kUnsupported. `text` follows "[tensorkey] ".
[[noreturn]] void unsupported(const std::string& text);
[[noreturn]] void has_no_value(PyObject* object);  // a symbolic tensor
[[noreturn]] void not_a_tensor(PyObject* object, std::string_view instead);
std::string type_name(PyObject* object);  // "torch.Tensor"

// str(object).
std::string text_of(nanobind::handle object);

// The text of the Python error that is set, which is cleared. Errors that are not about the tensor
// (KeyboardInterrupt, MemoryError) are thrown on.
std::string take_error_text();

// Attribute of a module that is already imported; throws if it is not there.
nanobind::object imported(const char* module, const char* name);

}  // namespace tensorkey::python
