// The table of contents of `tensorkey._core`.
#include <nanobind/nanobind.h>

#include <tensorkey/version.h>

#include "errors.h"
#include "module.h"

NB_MODULE(_core, m) {
  m.doc() = "The compiled core of tensorkey.";
  m.attr("__version__") = TENSORKEY_VERSION;
  tensorkey::python::init_errors(m);
  tensorkey::python::init_digest(m);
  tensorkey::python::init_guard(m);
  tensorkey::python::init_view(m);
  tensorkey::python::init_key(m);
  tensorkey::python::init_map(m);
  tensorkey::python::init_entry(m);
  tensorkey::python::init_cache(m);
  tensorkey::python::init_layer(m);
  tensorkey::python::init_simulate(m);
  tensorkey::python::init_xla_ffi(m);
}
