// NumPy: the buffer protocol for what it exports. Dates and the dtypes of ml_dtypes export nothing:
// they are viewed as integers of their size, and the dtype comes from the name.
#include <string>
#include <string_view>

#include "acquire_loan.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

// "<M8[25s]" -> "25s"; "<M8" -> "generic".
std::string unit_of(const std::string& dtype) {
  const std::size_t open = dtype.find('[');
  if (open == std::string::npos) return "generic";
  return dtype.substr(open + 1, dtype.rfind(']') - open - 1);
}

void borrow_as_integer(PyObject* object, Loan& loan, DType dtype, const std::string& integer,
                       bool big_endian) {
  const std::string code = (big_endian ? ">u" : "<u") + integer;
  const nb::object viewed = nb::handle(object).attr("view")(code.c_str());
  if (!borrow_buffer(viewed.ptr(), loan)) throw nb::python_error();
  loan.view.dtype = dtype;
}

// An array whose dtype the buffer protocol has no format for. `reason` is what NumPy said.
void borrow_unexported(PyObject* object, Loan& loan, const std::string& reason) {
  const nb::object dtype = nb::handle(object).attr("dtype");
  const std::string kind = text_of(dtype.attr("kind"));
  const std::string code = text_of(dtype.attr("str"));
  const std::string size = text_of(dtype.attr("itemsize"));
  const bool big_endian = code.starts_with('>');
  if (kind == "M" || kind == "m") {
    borrow_as_integer(object, loan, kind == "M" ? DType::kDateTime64 : DType::kTimeDelta64, size,
                      big_endian);
    loan.dtype_params = unit_of(code);
    loan.view.dtype_params = loan.dtype_params;
    return;
  }
  const nb::object scalar = dtype.attr("type");
  if (text_of(scalar.attr("__module__")) == "ml_dtypes") {
    const std::string name = text_of(scalar.attr("__name__"));
    const auto known = dtype_from_name(name);
    if (known && std::to_string(item_size(*known)) == size) {
      return borrow_as_integer(object, loan, *known, size, big_endian);
    }
    unsupported("elements of dtype ml_dtypes." + name +
                " have no key; pass x.view of an integer "
                "dtype of the same size");
  }
  unsupported("a NumPy array of dtype " + text_of(dtype) + " has no key: " + reason);
}

}  // namespace

void borrow_numpy(PyObject* object, Loan& loan) {
  if (!borrow_buffer(object, loan)) borrow_unexported(object, loan, take_error_text());
  loan.framework = Framework::kNumpy;
}

// A scalar's own buffer says too little: a date exports its eight bytes.
void borrow_numpy_scalar(PyObject* object, Loan& loan) {
  const nb::object array = imported("numpy", "asarray")(nb::handle(object));
  borrow_numpy(array.ptr(), loan);
}

}  // namespace tensorkey::python
