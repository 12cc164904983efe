// unique_rows: the work of tensorkey.unique.
#include <cstring>
#include <vector>

#include "mapping.h"
#include "options.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

// int64 numbers as a bytearray: whatever the framework, it can make a tensor over that.
nb::bytearray numbers(const std::vector<std::int64_t>& values) {
  return nb::bytearray(values.data(), values.size() * sizeof(std::int64_t));
}

nb::tuple unique_rows_of(nb::handle tensor) {
  UniqueRows rows;
  const char* framework;
  {
    const Borrowed borrowed(tensor.ptr());
    framework = framework_name(borrowed.framework());
    const MaybeReleaseGil release(borrowed.view());
    rows = unique_rows(borrowed.view());
  }
  return nb::make_tuple(framework, numbers(rows.first), numbers(rows.inverse),
                        numbers(rows.counts));
}

}  // namespace

void init_unique(nb::module_& m) {
  m.def("unique_rows", &unique_rows_of, nb::arg("x").none(),
        "The framework of `x`; of its distinct rows the first index, of each row the number of its "
        "distinct row, and the counts: int64 numbers in bytearrays.",
        nb::sig("def unique_rows(x: object) -> tuple[str, bytearray, bytearray, bytearray]"));
}

}  // namespace tensorkey::python
