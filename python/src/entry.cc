// Entry and EntryTensor: what a cache answers with, readable without a copy, writable never.
#include "entry.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <array>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include <tensorkey/codec.h>
#include <tensorkey/error.h>

#include "errors.h"
#include "module.h"
#include "options.h"
#include "view/walk.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

// A tensor of an entry; it keeps the entry alive.
struct EntryTensor {
  EntryPtr entry;
  std::size_t index;
  // Shape, then byte strides, as a buffer wants them: here for usual ranks.
  static constexpr std::size_t kUsualRank = 6;
  std::array<Py_ssize_t, 2 * kUsualRank> usual_dims;
  std::vector<Py_ssize_t> other_dims;
  std::vector<std::byte> decoded;  // unless the elements lie in the entry as they are

  [[nodiscard]] Py_ssize_t* dims() noexcept {
    return other_dims.empty() ? usual_dims.data() : other_dims.data();
  }
  [[nodiscard]] TensorParts parts() const { return entry->tensor(index); }
  [[nodiscard]] std::span<const std::byte> elements() const {
    const TensorParts tensor = parts();
    return tensor.codec == Codec::kRaw ? tensor.data : decoded;
  }
};

// How the struct module names the elements; of a dtype that it does not know, their bits as
// unsigned integers of that size.
const char* format_of(DType dtype) {
  switch (dtype) {
    case DType::kBool: return "?";
    case DType::kInt8: return "b";
    case DType::kInt16: return "h";
    case DType::kInt32: return "i";
    case DType::kInt64: return "q";
    case DType::kFloat16: return "e";
    case DType::kFloat32: return "f";
    case DType::kFloat64: return "d";
    case DType::kComplex64: return "Zf";
    case DType::kComplex128: return "Zd";
    default: break;
  }
  switch (item_size(dtype)) {
    case 1: return "B";
    case 2: return "H";
    case 4: return "I";
    default: return "Q";
  }
}

EntryTensor tensor_at(const EntryPtr& entry, std::size_t index) {
  const TensorParts parts = entry->tensor(index);
  EntryTensor tensor{
      .entry = entry, .index = index, .usual_dims = {}, .other_dims = {}, .decoded = {}};
  if (parts.codec != Codec::kRaw) {
    tensor.decoded.resize(decoded_size(parts));
    decode(parts, tensor.decoded);
  }
  const std::size_t rank = parts.shape.size();
  if (rank > EntryTensor::kUsualRank) tensor.other_dims.resize(2 * rank);
  Py_ssize_t* const dims = tensor.dims();
  auto stride = static_cast<Py_ssize_t>(item_size(parts.dtype));
  for (std::size_t i = rank; i-- > 0;) {
    dims[i] = static_cast<Py_ssize_t>(parts.shape[i]);
    dims[rank + i] = stride;
    stride *= std::max<Py_ssize_t>(dims[i], 1);
  }
  return tensor;
}

EntryTensor tensor_by_number(const SharedEntry& self, Py_ssize_t index) {
  const auto count = static_cast<Py_ssize_t>(self.entry->tensor_count());
  const Py_ssize_t place = index < 0 ? index + count : index;
  if (place < 0 || place >= count) throw nb::index_error("[Entry] no tensor has this number");
  return tensor_at(self.entry, static_cast<std::size_t>(place));
}

EntryTensor tensor_by_name(const SharedEntry& self, const std::string& name) {
  for (std::size_t i = 0; i < self.entry->tensor_count(); ++i) {
    if (self.entry->tensor(i).name == name) return tensor_at(self.entry, i);
  }
  throw Error(ErrorCode::kNotFound, "[Entry] no tensor is called " + name);
}

int tensor_get_buffer(PyObject* object, Py_buffer* out, int flags) {
  if ((flags & PyBUF_WRITABLE) != 0) {
    PyErr_SetString(PyExc_BufferError, "a tensor of an entry is read-only: copy it");
    out->obj = nullptr;
    return -1;
  }
  auto* self = nb::inst_ptr<EntryTensor>(object);
  const TensorParts parts = self->parts();
  const std::span<const std::byte> elements = self->elements();
  // Read-only: nothing writes through these pointers.
  out->buf = const_cast<std::byte*>(elements.data());
  out->obj = Py_NewRef(object);
  out->len = static_cast<Py_ssize_t>(elements.size());
  out->itemsize = static_cast<Py_ssize_t>(item_size(parts.dtype));
  out->readonly = 1;
  out->ndim = static_cast<int>(parts.shape.size());
  out->format = (flags & PyBUF_FORMAT) != 0 ? const_cast<char*>(format_of(parts.dtype)) : nullptr;
  out->shape = (flags & PyBUF_ND) != 0 ? self->dims() : nullptr;
  if ((flags & PyBUF_ND) == 0) out->ndim = 1;
  out->strides =
      (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->dims() + parts.shape.size() : nullptr;
  out->suboffsets = nullptr;
  out->internal = nullptr;
  return 0;
}

PyType_Slot tensor_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(tensor_get_buffer)},
                              {0, nullptr}};

nb::tuple shape_of(const EntryTensor& self) {
  nb::list shape;
  for (const std::int64_t dim : self.parts().shape) shape.append(dim);
  return nb::tuple(shape);
}

std::string describe(const TensorParts& parts) {
  std::string text = parts.name.empty() ? "" : std::string(parts.name) + ": ";
  text += to_string(parts.dtype);
  text += '[';
  for (std::size_t i = 0; i < parts.shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(parts.shape[i]);
  }
  return text + "]";
}

std::string repr(const SharedEntry& self) {
  const Entry& entry = *self.entry;
  std::string text = "<Entry " + entry.key().hex().substr(0, 16) + "...";
  for (std::size_t i = 0; i < entry.tensor_count(); ++i) {
    text += (i > 0 ? ", " : " ") + describe(entry.tensor(i));
  }
  return text + ">";
}

[[noreturn]] void refuse_pickle(const char* what) {
  throw Error(ErrorCode::kUnsupported, std::string("[") + what +
                                           "] it belongs to its process and cannot be pickled; "
                                           "copy its tensors");
}

}  // namespace

BorrowedValue::BorrowedValue(nb::handle value, const char* where) {
  if (PyDict_Check(value.ptr())) {
    for (const auto [name, tensor] : nb::borrow<nb::dict>(value)) {
      if (!nb::isinstance<nb::str>(name)) {
        throw Error(ErrorCode::kUnsupported,
                    std::string("[") + where + "] the name of a tensor is no str");
      }
      add(nb::cast<std::string>(name), tensor, where);
    }
  } else if (PyList_Check(value.ptr()) || PyTuple_Check(value.ptr())) {
    const auto tensors = nb::borrow<nb::sequence>(value);
    const bool several = nb::len(tensors) > 1;
    for (const nb::handle tensor : tensors) {
      add(several ? std::to_string(members_.size()) : "", tensor, where);
    }
  } else {
    add("", value, where);
  }
  if (members_.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                std::string("[") + where + "] there is no tensor; expected at least one");
  }
}

void BorrowedValue::add(std::string name, nb::handle tensor, const char* where) {
  auto member = std::make_unique<Member>();
  member->name = std::move(name);
  member->tensor = std::make_unique<Borrowed>(tensor.ptr());
  const TensorView& view = member->tensor->view();
  const std::size_t bytes = checked_bytes(view, where);
  if (!view.dtype_params.empty()) {
    throw Error(ErrorCode::kUnsupported, std::string("[") + where + "] an entry cannot hold " +
                                             std::string(to_string(view.dtype)));
  }
  std::span<const std::byte> data{static_cast<const std::byte*>(view.data), bytes};
  if (!internal::is_plain(view, false)) {
    member->gathered.resize(bytes);
    internal::read_logical(view, false, 0, member->gathered);
    data = member->gathered;
  }
  bytes_ += bytes;
  tensors_.push_back(
      {.name = member->name, .dtype = view.dtype, .shape = view.shape, .data = data});
  members_.push_back(std::move(member));
}

void init_entry(nb::module_& m) {
  nb::class_<EntryTensor>(m, "EntryTensor", nb::type_slots(tensor_slots),
                          "A tensor of an entry: a read-only buffer in C order.\n\n"
                          "Elements that buffers have no name for, such as bfloat16, are given as\n"
                          "their bits in unsigned integers; `dtype` says what they are.")
      .def_prop_ro("name", [](const EntryTensor& self) { return std::string(self.parts().name); })
      .def_prop_ro(
          "dtype",
          [](const EntryTensor& self) { return std::string(to_string(self.parts().dtype)); })
      .def_prop_ro("shape", &shape_of, nb::sig("def shape(self) -> tuple[int, ...]"))
      .def_prop_ro("nbytes", [](const EntryTensor& self) { return self.elements().size(); })
      .def(
          "__reduce__", [](const EntryTensor&) { refuse_pickle("EntryTensor"); },
          nb::sig("def __reduce__(self) -> typing.NoReturn"))
      .def("__repr__",
           [](const EntryTensor& self) { return "<EntryTensor " + describe(self.parts()) + ">"; });

  nb::class_<SharedEntry>(m, "Entry",
                          "What a cache holds under a key: tensors, never to be changed.\n\n"
                          "It stays readable after it left the cache, and its bytes count there\n"
                          "until it is dropped.")
      .def_prop_ro("key", [](const SharedEntry& self) { return self.entry->key(); })
      .def_prop_ro(
          "input", [](const SharedEntry& self) { return self.entry->input(); },
          "Content key of the input, beside a key of the caller's own; or None.")
      .def_prop_ro(
          "seconds", [](const SharedEntry& self) { return self.entry->seconds(); },
          "What it cost to compute.")
      .def_prop_ro(
          "nbytes", [](const SharedEntry& self) { return self.entry->footprint(); },
          "Bytes that it takes of the cache's bound.")
      .def("__len__", [](const SharedEntry& self) { return self.entry->tensor_count(); })
      .def("__getitem__", &tensor_by_number, "index"_a)
      .def("__getitem__", &tensor_by_name, "name"_a)
      .def(
          "__reduce__", [](const SharedEntry&) { refuse_pickle("Entry"); },
          nb::sig("def __reduce__(self) -> typing.NoReturn"))
      .def("__repr__", &repr);
}

}  // namespace tensorkey::python
