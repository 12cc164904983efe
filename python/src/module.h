// One function a noun: each adds its classes and functions to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace tensorkey::python {

void init_digest(nanobind::module_& module);
void init_guard(nanobind::module_& module);
void init_view(nanobind::module_& module);
void init_key(nanobind::module_& module);
void init_map(nanobind::module_& module);
void init_entry(nanobind::module_& module);
void init_cache(nanobind::module_& module);
void init_layer(nanobind::module_& module);
void init_simulate(nanobind::module_& module);
void init_xla_ffi(nanobind::module_& module);

}  // namespace tensorkey::python
