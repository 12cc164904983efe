// Structure: shape, strides, dtype and where the tensor lies. Nothing is read, so a tensor on a
// device stays there, and a conjugated or negated view counts as it is.
#include <string>

#include <tensorkey/view.h>

#include "acquire.h"
#include "acquire_types.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

struct Parts {
  Loan& loan;
  Structure& structure;
  std::string& device;
  std::vector<std::int64_t>& dims;
};

void describe(PyObject* object, Parts& parts);

void describe_torch(PyObject* object, Parts& parts) {
  const TorchTensor torch = torch_tensor(object);
  const auto rank = static_cast<std::size_t>(torch.tensor.ndim);
  const nb::handle tensor(object);
  parts.loan.object = nb::borrow(object);
  parts.loan.view = {.dtype = torch.dtype,
                     .shape = {torch.tensor.shape, rank},
                     .strides = {torch.tensor.strides, torch.tensor.strides == nullptr ? 0 : rank},
                     .stride_unit = static_cast<std::int64_t>(item_size(torch.dtype))};
  parts.structure.requires_grad = nb::cast<bool>(tensor.attr("requires_grad"));
  parts.device = text_of(tensor.attr("device"));
  if (parts.device == "cpu") parts.structure.pinned = nb::cast<bool>(tensor.attr("is_pinned")());
}

void take_dims(nb::handle tensor, Parts& parts) {
  for (const nb::handle dim : nb::iter(tensor.attr("shape"))) {
    parts.dims.push_back(nb::cast<std::int64_t>(dim));
  }
  parts.loan.view.shape = parts.dims;
}

void describe_jax(PyObject* object, Parts& parts) {
  const nb::handle array(object);
  const std::string name = text_of(array.attr("dtype").attr("name"));
  const auto dtype = dtype_from_name(name);
  if (!dtype) unsupported("a JAX array of dtype " + name + " has no key; pass an array of numbers");
  take_dims(array, parts);
  parts.loan.view.dtype = *dtype;
  const nb::object devices = array.attr("devices")();
  if (nb::len(devices) != 1) {
    parts.device = text_of(array.attr("sharding"));
    return;
  }
  for (const nb::handle device : nb::iter(devices)) {
    const std::string platform = text_of(device.attr("platform"));
    parts.device = platform == "cpu" ? "cpu" : platform + ":" + text_of(device.attr("id"));
  }
}

void describe_tensorflow(PyObject* object, Parts& parts) {
  parts.loan.view.dtype = tensorflow_dtype(object);
  take_dims(object, parts);
  parts.device = tensorflow_device(object);
}

std::string device_name(const dlpack::Device& device) {
  switch (device.device_type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:
    case dlpack::kRocmHost: return "cpu";
    case dlpack::kCuda:
    case dlpack::kRocm: return "cuda:" + std::to_string(device.device_id);
    default:
      return "dlpack" + std::to_string(device.device_type) + ":" + std::to_string(device.device_id);
  }
}

// A capsule of a tensor on a device is described like one of host memory, but never read.
void describe_dlpack(PyObject* object, Parts& parts) {
  const DlpackLoan taken = take_dlpack(object, parts.loan, false);
  dlpack::Tensor tensor = *taken.tensor;
  parts.device = device_name(tensor.device);
  parts.structure.pinned = tensor.device.device_type == dlpack::kCudaHost ||
                           tensor.device.device_type == dlpack::kRocmHost;
  tensor.device.device_type = dlpack::kCpu;
  parts.loan.view = from_dlpack(tensor, taken.padded);
  check_view(parts.loan.view, "__dlpack__");
  parts.loan.view.data = nullptr;
}

void describe(PyObject* object, Parts& parts) {
  switch (kind_of(Py_TYPE(object))) {
    case Kind::kTorch: return describe_torch(object, parts);
    case Kind::kNumpy: return borrow_numpy(object, parts.loan);
    case Kind::kNumpyScalar: return borrow_numpy_scalar(object, parts.loan);
    case Kind::kJax: return describe_jax(object, parts);
    case Kind::kTensorflow: return describe_tensorflow(object, parts);
    case Kind::kTensorflowVariable:
      return describe(nb::object(nb::handle(object).attr("value")()).ptr(), parts);
    case Kind::kKerasVariable:
      return describe(nb::object(nb::handle(object).attr("value")).ptr(), parts);
    case Kind::kExporter: return borrow_exporter(object, parts.loan);
    case Kind::kOther: break;
  }
  refuse_by_name(object);
  if (PyObject_CheckBuffer(object) != 0 ||
      !nb::hasattr(reinterpret_cast<PyObject*>(Py_TYPE(object)), "__dlpack__")) {
    return borrow_exporter(object, parts.loan);
  }
  describe_dlpack(object, parts);
}

}  // namespace

BorrowedStructure::BorrowedStructure(PyObject* object) : device_("cpu") {
  Parts parts{loan_, structure_, device_, dims_};
  describe(object, parts);
  structure_.device = device_;
}

}  // namespace tensorkey::python
