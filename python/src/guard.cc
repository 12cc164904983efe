// Guard and StrictSchedule: whether the tensors of a layer are, as far as PyTorch tells, what they
// were, and when to look at their bytes instead. A guard is asked on every call, so nothing in it
// looks up a name: tensors are described by the exchange API, versions and flags come from the
// getters of torch.Tensor's own type, hooks are the sizes of dicts.
#include <tensorkey/fingerprint.h>

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <tensorkey/error.h>

#include "acquire_loan.h"
#include "acquire_types.h"
#include "module.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

// A getter of torch.Tensor, called as CPython would after it has found it.
class Getter {
 public:
  explicit Getter(const char* name) {
    const nb::object descriptor = imported("torch", "Tensor").attr(name);
    if (!Py_IS_TYPE(descriptor.ptr(), &PyGetSetDescr_Type)) {
      throw Error(ErrorCode::kUnsupported,
                  std::string("[Guard] torch.Tensor.") + name + " is no getter in this PyTorch");
    }
    // Never freed: it belongs to PyTorch, which cannot be unloaded.
    const auto* getset =
        reinterpret_cast<const PyGetSetDescrObject*>(nb::object(descriptor).release().ptr());
    definition_ = getset->d_getset;
  }

  [[nodiscard]] nb::object operator()(PyObject* tensor) const {
    return nb::steal(definition_->get(tensor, definition_->closure));
  }

 private:
  const PyGetSetDef* definition_;
};

struct Getters {
  Getter version{"_version"};
  Getter requires_grad{"requires_grad"};
};

const Getters& getters() {
  static const Getters state;  // a failed load is tried again
  return state;
}

// None: a tensor made in inference mode counts no versions.
std::optional<std::int64_t> version_of(const Getters& get, PyObject* tensor) {
  const nb::object version = get.version(tensor);
  if (!version.is_valid()) {
    PyErr_Clear();
    return std::nullopt;
  }
  return PyLong_AsLongLong(version.ptr());
}

const std::byte* data_of(const dlpack::Tensor& tensor) {
  return static_cast<const std::byte*>(tensor.data) + tensor.byte_offset;
}

class Guard {
 public:
  Guard(const nb::sequence& tensors, const nb::sequence& empty, const nb::sequence& dicts) {
    const Getters& get = getters();
    for (const nb::handle tensor : tensors) add_tensor(get, tensor.ptr());
    for (const nb::handle dict : empty) empty_.push_back(checked_dict(dict));
    for (const nb::handle dict : dicts) add_dict(checked_dict(dict));
  }

  [[nodiscard]] bool unchanged() const {
    return std::ranges::all_of(dicts_, [&](const Dict& dict) { return same(dict); }) &&
           same_tensors();
  }

  [[nodiscard]] bool hooked() const {
    return std::ranges::any_of(empty_,
                               [](const nb::object& dict) { return PyDict_Size(dict.ptr()) > 0; });
  }

  [[nodiscard]] bool trainable() const {
    const Getters& get = getters();
    return std::ranges::any_of(tensors_, [&](const Seen& seen) {
      const nb::object answer = get.requires_grad(seen.tensor.ptr());
      if (!answer.is_valid()) throw nb::python_error();
      return answer.ptr() == Py_True;
    });
  }

  int traverse(visitproc visit, void* arg) const {
    for (const Seen& seen : tensors_) Py_VISIT(seen.tensor.ptr());
    for (const nb::object& dict : empty_) Py_VISIT(dict.ptr());
    for (const Dict& dict : dicts_) Py_VISIT(dict.dict.ptr());
    for (const nb::object& value : values_) Py_VISIT(value.ptr());
    return 0;
  }

  void clear() {
    // First out of the object, then dropped: dropping may run anything.
    const auto tensors = std::exchange(tensors_, {});
    const auto empty = std::exchange(empty_, {});
    const auto dicts = std::exchange(dicts_, {});
    const auto values = std::exchange(values_, {});
  }

 private:
  struct Seen {
    nb::object tensor;
    const std::byte* data;
    std::int64_t version;
    std::uint32_t dtype;
    std::int32_t rank;
    std::size_t dims;  // where its dims and then its strides are in dims_
  };
  struct Dict {
    nb::object dict;
    std::size_t first;  // where its values are in values_
    Py_ssize_t size;
  };

  static nb::object checked_dict(nb::handle dict) {
    if (!PyDict_Check(dict.ptr())) throw nb::type_error("[Guard] expected a sequence of dicts");
    return nb::borrow(dict);
  }

  static std::uint32_t dtype_bits(const dlpack::Tensor& tensor) {
    return std::uint32_t{tensor.dtype.code} << 16 | tensor.dtype.bits;
  }

  void add_tensor(const Getters& get, PyObject* tensor) {
    if (kind_of(Py_TYPE(tensor)) != Kind::kTorch) {
      throw Error(ErrorCode::kUnsupported, std::string("[Guard] a ") + Py_TYPE(tensor)->tp_name +
                                               " has no version; expected a torch.Tensor");
    }
    const std::optional<std::int64_t> version = version_of(get, tensor);
    if (!version) {
      throw Error(ErrorCode::kUnsupported,
                  "[Guard] a tensor made in inference mode has no version; pass x.clone()");
    }
    const dlpack::Tensor described = torch_tensor(tensor).tensor;
    const auto rank = static_cast<std::size_t>(described.ndim);
    tensors_.push_back({.tensor = nb::borrow(tensor),
                        .data = data_of(described),
                        .version = *version,
                        .dtype = dtype_bits(described),
                        .rank = described.ndim,
                        .dims = dims_.size()});
    dims_.insert(dims_.end(), described.shape, described.shape + rank);
    dims_.insert(dims_.end(), described.strides, described.strides + rank);
  }

  void add_dict(nb::object dict) {
    const std::size_t first = values_.size();
    PyObject* value = nullptr;
    for (Py_ssize_t position = 0; PyDict_Next(dict.ptr(), &position, nullptr, &value) != 0;) {
      values_.push_back(nb::borrow(value));
    }
    const Py_ssize_t size = PyDict_Size(dict.ptr());
    dicts_.push_back({.dict = std::move(dict), .first = first, .size = size});
  }

  [[nodiscard]] bool same(const Dict& seen) const {
    PyObject* dict = seen.dict.ptr();
    if (PyDict_Size(dict) != seen.size) return false;
    const nb::object* expected = values_.data() + seen.first;
    PyObject* value = nullptr;
    for (Py_ssize_t position = 0; PyDict_Next(dict, &position, nullptr, &value) != 0; ++expected) {
      if (value != expected->ptr()) return false;
    }
    return true;
  }

  [[nodiscard]] bool same_tensors() const {
    const Getters& get = getters();
    const dlpack::ExchangeApi& api = torch_exchange_api();
    for (const Seen& seen : tensors_) {
      dlpack::Tensor now;
      if (api.tensor_from_object(seen.tensor.ptr(), &now) != 0) {
        PyErr_Clear();
        return false;
      }
      if (data_of(now) != seen.data || now.ndim != seen.rank || dtype_bits(now) != seen.dtype ||
          version_of(get, seen.tensor.ptr()) != seen.version) {
        return false;
      }
      const std::int64_t* dims = dims_.data() + seen.dims;
      if (!std::equal(now.shape, now.shape + now.ndim, dims) ||
          !std::equal(now.strides, now.strides + now.ndim, dims + now.ndim)) {
        return false;
      }
    }
    return true;
  }

  std::vector<Seen> tensors_;
  std::vector<std::int64_t> dims_;
  std::vector<nb::object> empty_;
  std::vector<Dict> dicts_;
  std::vector<nb::object> values_;
};

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return nb::inst_ready(self) ? nb::inst_ptr<Guard>(self)->traverse(visit, arg) : 0;
}

int clear(PyObject* self) {
  if (nb::inst_ready(self)) nb::inst_ptr<Guard>(self)->clear();
  return 0;
}

PyType_Slot guard_slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                             {Py_tp_clear, reinterpret_cast<void*>(clear)},
                             {0, nullptr}};

constexpr const char* kGuardDoc =
    R"(The torch tensors of a layer as they were when this was made.

Sees what counts a version or moves memory: optimiser steps, ``copy_``, ``load_state_dict``,
``p.data = ...``; and another object in one of `dicts`. Does not see writes through ``p.data``,
NumPy or another alias: for these the bytes must be read.

Parameters
----------
tensors
    Torch tensors. Held alive.
empty
    Dicts of hooks.
dicts
    Dicts whose values must stay the same objects, in order.

Raises
------
tensorkey.errors.Unsupported
    For what is no torch tensor, or was made in inference mode.
)";

}  // namespace

void init_guard(nb::module_& m) {
  nb::class_<Guard>(m, "Guard", nb::type_slots(guard_slots), kGuardDoc)
      .def(nb::init<const nb::sequence&, const nb::sequence&, const nb::sequence&>(), "tensors"_a,
           "empty"_a = nb::tuple(), "dicts"_a = nb::tuple(),
           nb::sig("def __init__(self, tensors: Sequence[object], empty: Sequence[object] = (), "
                   "dicts: Sequence[object] = ()) -> None"))
      .def("unchanged", &Guard::unchanged, "Whether tensors and dicts are what they were.")
      .def("hooked", &Guard::hooked, "Whether one of the dicts of hooks holds any now.")
      .def("trainable", &Guard::trainable, "Whether one of the tensors requires a gradient now.");

  nb::class_<StrictSchedule>(m, "StrictSchedule",
                             "When to check strictly: on every N-th call, so that it costs 1% of "
                             "the layer. Not thread-safe.")
      .def(nb::init<>())
      .def("due", &StrictSchedule::due, "Whether this call is to be checked; counts the call.")
      .def("demand", &StrictSchedule::demand, "The next call is to be checked.")
      .def("observe_strict", &StrictSchedule::observe_strict, "seconds"_a,
           "What a strict check took.")
      .def("observe_layer", &StrictSchedule::observe_layer, "seconds"_a,
           "What the layer took in a call that ran it.")
      .def_prop_ro("interval", &StrictSchedule::interval, "N at present.");
}

}  // namespace tensorkey::python
