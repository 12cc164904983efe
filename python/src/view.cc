// describe(): what tensorkey takes a tensor for.
#include <tensorkey/view.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

#include "acquire.h"
#include "module.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

struct Description {
  std::string dtype;
  std::string unit;
  nb::tuple shape;
  std::string framework;
  bool host_copy;
};

Description describe(nb::handle tensor) {
  const Borrowed borrowed(tensor.ptr());
  const TensorView& view = borrowed.view();
  check_view(view, "describe");
  nb::list shape;
  for (const std::int64_t dim : view.shape) shape.append(dim);
  return {.dtype = std::string(to_string(view.dtype)),
          .unit = std::string(view.dtype_params),
          .shape = nb::tuple(shape),
          .framework = framework_name(borrowed.framework()),
          .host_copy = borrowed.host_copy()};
}

std::string text(const Description& self) {
  return "Description(dtype='" + self.dtype + "'" +
         (self.unit.empty() ? "" : ", unit='" + self.unit + "'") +
         ", shape=" + nb::repr(self.shape).c_str() + ", framework='" + self.framework +
         "', host_copy=" + (self.host_copy ? "True" : "False") + ")";
}

constexpr const char* kDescribeDoc =
    R"(What tensorkey takes `x` for: the dtype and shape that its key holds.

Parameters are those of :func:`key`, and what has no key is refused in the same way.

Returns
-------
Description

Examples
--------
>>> import tensorkey as tk
>>> tk.describe(b"abc")
Description(dtype='uint8', shape=(3,), framework='buffer', host_copy=False)
)";

}  // namespace

void init_view(nb::module_& m) {
  nb::class_<Description>(m, "Description", "What a tensor is taken for; made by describe().")
      .def_ro("dtype", &Description::dtype, "The name of the dtype in docs/key_format.md.")
      .def_ro("unit", &Description::unit, "Of datetime64 and timedelta64: 'ns', '25s'; else ''.")
      .def_ro("shape", &Description::shape, nb::sig("def shape(self) -> tuple[int, ...]"),
              "The dims.")
      .def_ro("framework", &Description::framework,
              "Whose it is: 'numpy', 'torch', 'jax', 'tensorflow' or 'buffer'.")
      .def_ro("host_copy", &Description::host_copy,
              "Whether it had to be copied from a device, or gathered from several.")
      .def("__repr__", &text);
  m.def("describe", &describe, "x"_a.none(), kDescribeDoc,
        nb::sig("def describe(x: object) -> Description"));
}

}  // namespace tensorkey::python
