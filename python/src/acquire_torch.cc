// PyTorch, by the C exchange API that torch.Tensor carries. The API exports some tensors as what
// they are not, without an error: negated and conjugated views unresolved, sub-byte integers as
// bytes, and tensors without memory (functional, zero, freed) with a null pointer. Each is asked
// for here.
#include <array>
#include <string>

#include "acquire_loan.h"
#include "acquire_types.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

struct Torch {
  const dlpack::ExchangeApi* api;
  PyObject* is_neg;  // unbound methods, called without a lookup
  PyObject* is_conj;
  PyObject* dtype_name;  // "dtype"
  struct ByteDType {
    PyObject* torch;
    DType dtype;
  };
  std::array<ByteDType, 16> bytes;  // the integer dtypes of one byte
};

const dlpack::ExchangeApi* exchange_api(nb::handle tensor_type) {
  constexpr const char* kNeeds = "expected PyTorch 2.10 or later";
  if (!nb::hasattr(tensor_type, "__dlpack_c_exchange_api__")) {
    unsupported(std::string("this PyTorch has no DLPack exchange API; ") + kNeeds);
  }
  const nb::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
  void* pointer = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  if (pointer == nullptr) throw nb::python_error();
  const auto* api = static_cast<const dlpack::ExchangeApi*>(pointer);
  while (api != nullptr && api->version.major != dlpack::kMajor) api = api->previous;
  if (api == nullptr || api->tensor_from_object == nullptr) {
    unsupported("this PyTorch's DLPack exchange API is of another major version than 1; " +
                std::string(kNeeds));
  }
  return api;
}

// What is kept is never freed: it belongs to PyTorch, which cannot be unloaded.
Torch load_torch() {
  const nb::object type = imported("torch", "Tensor");
  Torch torch{};
  torch.api = exchange_api(type);
  torch.is_neg = nb::object(type.attr("is_neg")).release().ptr();
  torch.is_conj = nb::object(type.attr("is_conj")).release().ptr();
  torch.dtype_name = PyUnicode_InternFromString("dtype");
  std::size_t count = 0;
  const auto add = [&](DType dtype) {
    const std::string name(to_string(dtype));
    const nb::object module = nb::borrow(PyDict_GetItemString(PyImport_GetModuleDict(), "torch"));
    if (!nb::hasattr(module, name.c_str())) return;
    torch.bytes[count++] = {nb::object(module.attr(name.c_str())).release().ptr(), dtype};
  };
  add(DType::kInt8);
  add(DType::kUInt8);
  for (unsigned bits = 0; bits < 7; ++bits) {
    add(static_cast<DType>(static_cast<unsigned>(DType::kInt1) + bits));
    add(static_cast<DType>(static_cast<unsigned>(DType::kUInt1) + bits));
  }
  return torch;
}

const Torch& torch_state() {
  static const Torch state = load_torch();  // a failed load is tried again
  return state;
}

bool ask(PyObject* method, PyObject* tensor) {
  PyObject* arguments[] = {tensor};
  PyObject* answer = PyObject_Vectorcall(method, arguments, 1, nullptr);
  if (answer == nullptr) throw nb::python_error();
  const bool yes = answer == Py_True;
  Py_DECREF(answer);
  return yes;
}

bool attribute(PyObject* tensor, const char* name) {
  return nb::cast<bool>(nb::handle(tensor).attr(name));
}

bool is_wrapped(PyObject* tensor) {
  const nb::object functorch =
      imported("torch", "_C").attr("_functorch").attr("is_functorch_wrapped_tensor");
  return nb::cast<bool>(functorch(nb::handle(tensor))) ||
         nb::cast<bool>(imported("torch", "_is_functional_tensor")(nb::handle(tensor)));
}

// Why the exchange API would not describe the tensor, or gave no memory for it.
[[noreturn]] void refuse_torch(PyObject* tensor, const std::string& reason) {
  if (attribute(tensor, "is_meta") || is_wrapped(tensor)) has_no_value(tensor);
  if (nb::cast<bool>(nb::handle(tensor).attr("_is_zerotensor")())) {
    unsupported("a zero tensor of PyTorch's autograd has no memory; pass x.clone()");
  }
  if (attribute(tensor, "is_nested")) {
    unsupported(
        "a nested tensor has no key; pass its parts to tuple_key, or x.to_padded_tensor(0)");
  }
  if (attribute(tensor, "is_quantized")) {
    unsupported(
        "a quantised tensor has no key; pass x.dequantize(), or x.int_repr() and its scales "
        "to tuple_key");
  }
  const std::string layout = text_of(nb::handle(tensor).attr("layout"));
  if (layout != "torch.strided") {
    unsupported("a tensor of layout " + layout + " has no key; pass x.to_dense()");
  }
  unsupported("the torch.Tensor cannot be read: " + reason);
}

DType dtype_of_tensor(const Torch& torch, PyObject* tensor, const dlpack::Tensor& dl) {
  const bool is_byte = dl.dtype.code <= dlpack::kUInt && dl.dtype.bits == 8;
  if (!is_byte) {
    const auto dtype = dtype_from_dlpack(dl.dtype.code, dl.dtype.bits, dl.dtype.lanes);
    if (!dtype) {
      unsupported("a tensor of dtype " + text_of(nb::handle(tensor).attr("dtype")) +
                  " has no key; view it as an integer dtype of the same size");
    }
    return *dtype;
  }
  // int1 to int7 and uint1 to uint7 are exported as bytes too.
  const auto dtype = nb::steal(PyObject_GetAttr(tensor, torch.dtype_name));
  if (!dtype.is_valid()) throw nb::python_error();
  for (const Torch::ByteDType& byte : torch.bytes) {
    if (byte.torch == dtype.ptr()) return byte.dtype;
  }
  unsupported("a tensor of dtype " + text_of(dtype) + " has no key; view it as torch.uint8");
}

bool on_host(const dlpack::Tensor& dl) {
  return dl.device.device_type == dlpack::kCpu || dl.device.device_type == dlpack::kCudaHost ||
         dl.device.device_type == dlpack::kRocmHost;
}

bool has_elements(const dlpack::Tensor& dl) {
  for (std::int32_t d = 0; d < dl.ndim; ++d) {
    if (dl.shape[d] == 0) return false;
  }
  return true;
}

// Tensors of this many bytes are asked for the size of their storage. Below it the question costs
// more than the view, and glibc keeps the memory mapped: a storage shrunk behind its tensor then
// gives a key of whatever lies there, as reading the tensor in PyTorch does.
constexpr std::size_t kAskStorageFrom = std::size_t{128} * 1024;

// REQUIRES: memory and elements; strides as PyTorch has them, never negative.
void check_storage(PyObject* object, const dlpack::Tensor& dl) {
  std::size_t reach = 1;
  for (std::int32_t d = 0; d < dl.ndim; ++d) {
    reach += static_cast<std::size_t>(dl.shape[d] - 1) * static_cast<std::size_t>(dl.strides[d]);
  }
  reach *= (std::size_t{dl.dtype.bits} * dl.dtype.lanes + 7) / 8;
  if (reach < kAskStorageFrom) return;
  const nb::object storage = nb::handle(object).attr("untyped_storage")();
  const auto begin = nb::cast<std::uintptr_t>(storage.attr("data_ptr")());
  const auto size = nb::cast<std::size_t>(storage.attr("nbytes")());
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(dl.data) + dl.byte_offset - begin;
  if (offset > size || reach > size - offset) {
    refuse_torch(object, "its storage has " + std::to_string(size) + " bytes, and it needs " +
                             std::to_string(offset + reach) + "; pass it before resize_");
  }
}

}  // namespace

TorchTensor torch_tensor(PyObject* object) {
  const Torch& torch = torch_state();
  TorchTensor result;
  dlpack::Tensor& dl = result.tensor;
  if (torch.api->tensor_from_object(object, &dl) != 0) refuse_torch(object, take_error_text());
  if (dl.data == nullptr && has_elements(dl)) {
    refuse_torch(object, "it has elements and no memory (its storage was freed)");
  }
  result.dtype = dtype_of_tensor(torch, object, dl);
  return result;
}

const dlpack::ExchangeApi& torch_exchange_api() { return *torch_state().api; }

void borrow_torch(PyObject* object, Loan& loan) {
  const TorchTensor described = torch_tensor(object);
  const dlpack::Tensor& dl = described.tensor;
  if (!on_host(dl)) {
    const nb::object copy = nb::handle(object).attr("detach")().attr("cpu")();
    // A device that "cpu" does not leave would recurse for ever.
    if (!on_host(torch_tensor(copy.ptr()).tensor)) {
      unsupported("the tensor cannot be copied to host memory; pass x.cpu()");
    }
    borrow_torch(copy.ptr(), loan);
    loan.host_copy = true;
    return;
  }
  const Torch& torch = torch_state();
  const bool lazy = ask(torch.is_neg, object) ||
                    (dl.dtype.code == dlpack::kComplex && ask(torch.is_conj, object));
  if (lazy) {
    const nb::object resolved =
        nb::handle(object).attr("detach")().attr("resolve_conj")().attr("resolve_neg")();
    if (ask(torch.is_neg, resolved.ptr()) || ask(torch.is_conj, resolved.ptr())) {
      unsupported("the tensor's conjugation or negation cannot be resolved; pass x.clone()");
    }
    return borrow_torch(resolved.ptr(), loan);
  }
  if (dl.data != nullptr && dl.strides != nullptr && has_elements(dl)) check_storage(object, dl);
  const auto rank = static_cast<std::size_t>(dl.ndim);
  loan.object = nb::borrow(object);
  loan.framework = Framework::kTorch;
  loan.view = {.data = dl.data == nullptr ? nullptr
                                          : static_cast<const std::byte*>(dl.data) + dl.byte_offset,
               .dtype = described.dtype,
               .shape = {dl.shape, rank},
               .strides = {dl.strides, dl.strides == nullptr ? 0 : rank},
               .stride_unit = static_cast<std::int64_t>(item_size(described.dtype))};
}

}  // namespace tensorkey::python
