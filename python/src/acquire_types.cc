#include "acquire_types.h"

#include <nanobind/nanobind.h>

#include <array>
#include <string>
#include <string_view>

#include "acquire_loan.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

// Open addressing by the type's address; at most half full, never emptied. The types are held, so
// no other type can come to lie at a remembered address.
constexpr std::size_t kSlots = 256;

struct Slot {
  PyTypeObject* type;
  Kind kind;
};

std::array<Slot, kSlots> slots{};
std::size_t used = 0;

Slot& slot_of(PyTypeObject* type) noexcept {
  auto place = (reinterpret_cast<std::uintptr_t>(type) >> 4) * 0x9E3779B97F4A7C15U;
  place >>= 64 - 8;
  while (slots[place].type != nullptr && slots[place].type != type) place = (place + 1) % kSlots;
  return slots[place];
}

struct Name {
  std::string module;
  std::string name;
};

Name name_of(PyTypeObject* type) {
  Name result;
  const nb::handle handle(reinterpret_cast<PyObject*>(type));
  const auto module = nb::steal(PyObject_GetAttrString(handle.ptr(), "__module__"));
  const char* text =
      module.is_valid() && PyUnicode_Check(module.ptr()) ? PyUnicode_AsUTF8(module.ptr()) : nullptr;
  if (text != nullptr) result.module = text;
  PyErr_Clear();
  const std::string_view full(type->tp_name);
  result.name = full.substr(full.rfind('.') + 1);
  return result;
}

// Whether the module of that name holds this very type: a class that only calls itself
// numpy.ndarray is not one.
bool is_found_by_name(PyTypeObject* type, const Name& name) {
  PyObject* module = PyDict_GetItemString(PyImport_GetModuleDict(), name.module.c_str());
  if (module == nullptr) return false;
  const auto found = nb::steal(PyObject_GetAttrString(module, name.name.c_str()));
  PyErr_Clear();
  return found.ptr() == reinterpret_cast<PyObject*>(type);
}

bool has_base(PyTypeObject* type, std::string_view module, std::string_view name) {
  PyObject* bases = type->tp_mro;
  for (Py_ssize_t i = 0; bases != nullptr && i < PyTuple_GET_SIZE(bases); ++i) {
    const Name base = name_of(reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(bases, i)));
    if (base.module == module && base.name == name) return true;
  }
  return false;
}

Kind kind_by_name(PyTypeObject* type) {
  if (type == &PyBytes_Type || type == &PyByteArray_Type || type == &PyMemoryView_Type) {
    return Kind::kExporter;
  }
  const Name name = name_of(type);
  const auto is = [&](std::string_view module, std::string_view class_name) {
    return name.module == module && name.name == class_name;
  };
  Kind kind = Kind::kOther;
  if (is("torch", "Tensor") || is("torch.nn.parameter", "Parameter")) {
    kind = Kind::kTorch;
  } else if (is("numpy", "ndarray") || is("numpy", "memmap")) {
    kind = Kind::kNumpy;
  } else if ((name.module == "numpy" || name.module == "ml_dtypes") &&
             has_base(type, "numpy", "generic")) {
    kind = Kind::kNumpyScalar;
  } else if (name.module.starts_with("jaxlib") && name.name == "ArrayImpl") {
    kind = Kind::kJax;
  } else if (is("tensorflow.python.framework.ops", "EagerTensor")) {
    kind = Kind::kTensorflow;
  } else if (is("tensorflow.python.ops.resource_variable_ops", "ResourceVariable")) {
    kind = Kind::kTensorflowVariable;
  } else if (name.module.starts_with("keras.src.backend") && name.name == "Variable") {
    kind = Kind::kKerasVariable;
  }
  return kind != Kind::kOther && is_found_by_name(type, name) ? kind : Kind::kOther;
}

// Refused classes, looked up for each base of a class from the most derived on. A module that ends
// in '*' stands for all that begin so; an empty name stands for every class. The text says what to
// do instead; "" stands for a tensor without a value.
struct Refused {
  std::string_view module;
  std::string_view name;
  std::string_view instead;
};

constexpr std::string_view kListCure =
    "it has no dtype and shape of its own; pass numpy.asarray(x) or the framework's tensor";
constexpr std::string_view kNumberCure =
    "it has no dtype of its own; pass numpy.float32(x), numpy.int64(x) or a tensor";

constexpr Refused kRefused[] = {
    {"builtins", "str", "pass x.encode() to key its UTF-8 bytes"},
    {"builtins", "list", kListCure},
    {"builtins", "tuple", kListCure},
    {"builtins", "bool", kNumberCure},
    {"builtins", "int", kNumberCure},
    {"builtins", "float", kNumberCure},
    {"builtins", "complex", kNumberCure},
    {"builtins", "NoneType", "pass a tensor"},
    {"builtins", "dict", "pass its tensors to tuple_key, or one of them"},
    {"builtins", "set", "it has no order; pass a tensor"},
    {"numpy.ma*", "MaskedArray", "pass x.filled(value), or data and mask to tuple_key"},
    {"numpy", "ndarray", "an unknown subclass may mean anything; pass numpy.asarray(x)"},
    {"numpy", "generic", "an unknown subclass may mean anything; pass numpy.asarray(x)"},
    {"pandas*", "", "pass x.to_numpy()"},
    {"polars*", "", "pass x.to_numpy()"},
    {"scipy.sparse*", "", "pass x.toarray(), or its data and indices to tuple_key"},
    {"torch._subclasses*", "FakeTensor", ""},
    {"torch._subclasses*", "FunctionalTensor", ""},
    {"torch.fx*", "Proxy", ""},
    {"torch.nn.parameter", "UninitializedTensorMixin", "run the lazy module once first"},
    {"torch.distributed*", "DTensor", "pass x.to_local() or x.full_tensor()"},
    {"torch.masked*", "MaskedTensor", "pass x.get_data() and x.get_mask() to tuple_key"},
    {"torch.nested*", "NestedTensor", "pass x.values() and x.offsets() to tuple_key"},
    {"torch", "Tensor", "an unknown subclass may mean anything; pass x.as_subclass(torch.Tensor)"},
    {"torch._C", "TensorBase", "pass a torch.Tensor"},
    {"jax*", "Tracer", ""},
    {"jax*", "PRNGKeyArray", "pass jax.random.key_data(x)"},
    {"jax*", "Array", "pass jax.numpy.asarray(x)"},
    {"tensorflow*", "RaggedTensor", "pass x.flat_values and x.nested_row_splits to tuple_key"},
    {"tensorflow*", "SparseTensor", "pass tf.sparse.to_dense(x)"},
    {"tensorflow*", "IndexedSlices", "pass tf.convert_to_tensor(x)"},
    {"tensorflow*", "TensorArray", "pass x.stack()"},
    {"tensorflow.python.ops.variables", "Variable", "pass x.read_value()"},
    {"tensorflow.python.framework.tensor", "Tensor", ""},
    {"tensorflow.python.framework.ops", "Tensor", ""},
    {"keras*", "KerasTensor", ""},
    {"keras.src.backend*", "Variable", "an unknown subclass may mean anything; pass x.value"},
};

bool matches(const Refused& refused, const Name& name) {
  if (!refused.name.empty() && refused.name != name.name) return false;
  if (!refused.module.ends_with('*')) return refused.module == name.module;
  const std::string_view stem = refused.module.substr(0, refused.module.size() - 1);
  // "pandas*" is pandas and pandas.core, not pandas_like; "jax*" is jaxlib too.
  return name.module.starts_with(stem) &&
         (name.module.size() == stem.size() || name.module[stem.size()] == '.' ||
          name.module.starts_with("jaxlib"));
}

}  // namespace

Kind kind_of(PyTypeObject* type) {
  const Slot& slot = slot_of(type);
  if (slot.type != nullptr) return slot.kind;
  const Kind kind = kind_by_name(type);
  // Python code may have run: look for the slot again.
  if (kind != Kind::kOther && used < kSlots / 2) {
    Slot& free = slot_of(type);
    if (free.type == nullptr) {
      Py_INCREF(type);
      free = {type, kind};
      ++used;
    }
  }
  return kind;
}

std::string type_name(PyObject* object) {
  const Name name = name_of(Py_TYPE(object));
  return name.module.empty() || name.module == "builtins" ? name.name
                                                          : name.module + "." + name.name;
}

void refuse_by_name(PyObject* object) {
  PyObject* bases = Py_TYPE(object)->tp_mro;
  for (Py_ssize_t i = 0; bases != nullptr && i < PyTuple_GET_SIZE(bases); ++i) {
    const Name base = name_of(reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(bases, i)));
    for (const Refused& refused : kRefused) {
      if (!matches(refused, base)) continue;
      if (refused.instead.empty()) has_no_value(object);
      not_a_tensor(object, refused.instead);
    }
  }
}

}  // namespace tensorkey::python
