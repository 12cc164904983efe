// JAX: arrays of one CPU device export a buffer (which waits for the computation and keeps a
// donation away); the dtypes of ml_dtypes, devices and shards go through JAX's own array
// conversion.
#include <string>

#include "acquire_loan.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

bool on_one_cpu(nb::handle array) {
  const nb::object devices = array.attr("devices")();
  if (nb::len(devices) != 1) return false;
  for (const nb::handle device : nb::iter(devices)) {
    return std::string_view(text_of(device.attr("platform"))) == "cpu";
  }
  return false;
}

}  // namespace

void borrow_jax(PyObject* object, Loan& loan) {
  if (!borrow_buffer(object, loan)) {
    const std::string reason = take_error_text();
    const nb::handle array(object);
    if (nb::cast<bool>(array.attr("is_deleted")())) {
      unsupported(
          "the JAX array was deleted or donated to a computation; pass one that still has "
          "its value");
    }
    if (!nb::cast<bool>(array.attr("is_fully_addressable"))) {
      unsupported("the JAX array is spread over several processes; pass its addressable shards");
    }
    const nb::object host = imported("numpy", "asarray")(array);
    if (host.type().ptr() != imported("numpy", "ndarray").ptr()) {
      unsupported("the JAX array cannot be read: " + reason);
    }
    borrow_numpy(host.ptr(), loan);
    loan.host_copy = !on_one_cpu(array);
  }
  loan.framework = Framework::kJax;
}

}  // namespace tensorkey::python
