// Key, Keys, key(), row_keys(), tuple_key(), tuple_row_keys(), structure_key().
#include <tensorkey/key.h>

#include <nanobind/nanobind.h>
#include <nanobind/operators.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include <tensorkey/error.h>

#include "acquire.h"
#include "errors.h"
#include "module.h"
#include "options.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

nb::bytes to_bytes(const Key& key) { return nb::bytes(key.bytes().data(), Key::kSize); }

Key from_bytes(nb::bytes bytes) {
  if (bytes.size() != Key::kSize) {
    throw Error(ErrorCode::kInvalidArgument,
                "[Key] " + std::to_string(bytes.size()) + " bytes; expected exactly 32");
  }
  Digest digest;
  std::memcpy(digest.data(), bytes.c_str(), Key::kSize);
  return Key(digest);
}

// The keys of a batch: a sequence of Key over one buffer of 32 bytes each.
struct Keys {
  std::vector<Key> keys;
  Py_ssize_t shape[2];
  Py_ssize_t strides[2];
};

int keys_get_buffer(PyObject* object, Py_buffer* out, int flags) {
  if ((flags & PyBUF_WRITABLE) != 0) {
    PyErr_SetString(PyExc_BufferError, "keys are read-only");
    out->obj = nullptr;
    return -1;
  }
  auto* self = nb::inst_ptr<Keys>(object);
  self->shape[0] = static_cast<Py_ssize_t>(self->keys.size());
  self->shape[1] = static_cast<Py_ssize_t>(Key::kSize);
  self->strides[0] = static_cast<Py_ssize_t>(Key::kSize);
  self->strides[1] = 1;
  static char format[] = "B";
  out->buf = self->keys.data();
  out->obj = Py_NewRef(object);
  out->len = self->shape[0] * self->shape[1];
  out->itemsize = 1;
  out->readonly = 1;
  out->ndim = 2;
  out->format = (flags & PyBUF_FORMAT) != 0 ? format : nullptr;
  out->shape = (flags & PyBUF_ND) != 0 ? self->shape : nullptr;
  if (out->shape == nullptr) out->ndim = 1;
  out->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->strides : nullptr;
  out->suboffsets = nullptr;
  out->internal = nullptr;
  return 0;
}

PyType_Slot keys_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(keys_get_buffer)},
                            {0, nullptr}};

Key key_of(nb::handle tensor, nb::handle scope, nb::handle secret, bool canonical) {
  const KeyOptions options = key_options(scope, secret, canonical, "key");
  const Borrowed borrowed(tensor.ptr());
  const MaybeReleaseGil release(borrowed.view());
  return key(borrowed.view(), options);
}

Keys row_keys_of(nb::handle tensor, nb::handle scope, nb::handle secret, bool canonical) {
  const KeyOptions options = key_options(scope, secret, canonical, "row_keys");
  const Borrowed borrowed(tensor.ptr());
  const TensorView& view = borrowed.view();
  const std::size_t bytes = checked_bytes(view, "row_keys");
  Keys result;
  result.keys.resize(view.shape.empty() ? 0 : static_cast<std::size_t>(view.shape[0]));
  const MaybeReleaseGil release(bytes);
  row_keys(view, result.keys, options);
  return result;
}

void borrow_members(BorrowedMembers& out, const nb::dict& members) {
  for (const auto [path, tensor] : members) {
    out.add(nb::cast<std::string>(path), tensor.ptr());
  }
}

Key tuple_key_of(const nb::dict& members, nb::handle scope, nb::handle secret, bool canonical) {
  const KeyOptions options = key_options(scope, secret, canonical, "tuple_key");
  BorrowedMembers borrowed;
  borrow_members(borrowed, members);
  const auto views = borrowed.members();
  const MaybeReleaseGil release(borrowed.bytes());
  return tuple_key(views, options);
}

Keys tuple_row_keys_of(const nb::dict& members, nb::handle scope, nb::handle secret,
                       bool canonical) {
  const KeyOptions options = key_options(scope, secret, canonical, "tuple_row_keys");
  BorrowedMembers borrowed;
  borrow_members(borrowed, members);
  const auto views = borrowed.members();
  Keys result;
  if (!views.empty() && !views[0].view.shape.empty()) {
    result.keys.resize(static_cast<std::size_t>(views[0].view.shape[0]));
  }
  const MaybeReleaseGil release(borrowed.bytes());
  tuple_row_keys(views, result.keys, options);
  return result;
}

Key structure_key_of(nb::handle tensor) {
  const BorrowedStructure borrowed(tensor.ptr());
  return structure_key(borrowed.view(), borrowed.structure());
}

std::size_t index_of(Py_ssize_t index, std::size_t size) {
  if (index < 0) index += static_cast<Py_ssize_t>(size);
  if (index < 0 || static_cast<std::size_t>(index) >= size) {
    throw nb::index_error("index out of range");
  }
  return static_cast<std::size_t>(index);
}

std::ptrdiff_t count_of(const Keys& keys, const Key& key) {
  return std::ranges::count(keys.keys, key);
}

constexpr const char* kKeyDoc =
    R"(The content key of a tensor: 32 bytes, the same in every process, framework and machine.

Parameters
----------
x
    A tensor of NumPy, PyTorch, JAX, TensorFlow or Keras, or any other exporter of a buffer or of
    ``__dlpack__``. It is read, never kept; on a device it is copied to the host first.
scope : bytes or str
    What else the answer depends on; it becomes part of the key.
secret : bytes, optional
    A tenant's secret of exactly 32 bytes: nobody without it can compute the key.
canonical : bool
    Whether -0.0 counts as 0.0 and every NaN as one NaN. By default keys are bitwise.

Returns
-------
Key

Raises
------
Unsupported
    A TypeError: what is given has no key (no tensor, a dtype or layout without one, a tensor
    without a value while a model is traced).
InvalidArgument
    A ValueError: a secret of another length than 32.

Examples
--------
>>> import array, tensorkey as tk
>>> tk.key(array.array("f", [1, 2])) == tk.key(memoryview(array.array("f", [1, 2])))
True
)";

constexpr const char* kRowKeysDoc =
    R"(The keys of all rows of a batch: ``row_keys(x)[i] == key(x[i])``, many times faster.

Parameters are those of :func:`key`; `x` has at least one dimension.

Returns
-------
Keys
    A sequence of `Key`, and a read-only buffer of shape (n, 32) and dtype uint8.

Examples
--------
>>> import tensorkey as tk
>>> rows = memoryview(bytes(range(8))).cast("B", (4, 2))
>>> len(tk.row_keys(rows))
4
)";

constexpr const char* kTupleKeyDoc =
    R"(The key of several tensors that make one item, such as ids and mask.

Parameters
----------
members : dict of str to tensor
    Tensors under the paths that name them; their order does not matter.
scope, secret, canonical
    As for :func:`key`.

Returns
-------
Key

Examples
--------
>>> import tensorkey as tk
>>> tk.tuple_key({"ids": b"ab", "mask": b"11"}) == tk.tuple_key({"mask": b"11", "ids": b"ab"})
True
)";

constexpr const char* kTupleRowKeysDoc =
    R"(The tuple keys of all rows of several tensors with one batch size.

Parameters are those of :func:`tuple_key`; the result is that of :func:`row_keys`.

Examples
--------
>>> import tensorkey as tk
>>> len(tk.tuple_row_keys({"ids": b"abc", "mask": b"111"}))
3
)";

constexpr const char* kStructureKeyDoc =
    R"(The key of what a tensor is apart from its elements.

Shape, dtype, byte order, strides, layout, device, pinned memory and requires_grad: for results that
depend on nothing else, such as plans, masks and buffers.

Examples
--------
>>> import tensorkey as tk
>>> tk.structure_key(b"ab") == tk.structure_key(b"cd")
True
)";

}  // namespace

void init_key(nb::module_& m) {
  nb::class_<Key>(m, "Key",
                  "32 bytes that stand for a tensor. Ordered, hashable, picklable, immutable.")
      .def(nb::new_([](nb::bytes bytes) { return from_bytes(std::move(bytes)); }), "bytes"_a,
           "A key of exactly 32 bytes.")
      .def_prop_ro("bytes", &to_bytes, "The 32 bytes.")
      .def("hex", &Key::hex, "64 hexadecimal digits.")
      .def_static(
          "from_hex",
          [](const std::string& text) {
            const auto key = Key::from_hex(text);
            if (!key) {
              throw Error(ErrorCode::kInvalidArgument,
                          "[Key.from_hex] expected 64 hexadecimal digits");
            }
            return *key;
          },
          "text"_a, "The key with these 64 hexadecimal digits.")
      .def("__bytes__", &to_bytes)
      .def("__hash__",
           [](const Key& key) {
             const auto hash = static_cast<Py_hash_t>(std::hash<Key>{}(key));
             return hash == -1 ? Py_hash_t{-2} : hash;
           })
      .def("__repr__", [](const Key& key) { return "Key('" + key.hex() + "')"; })
      .def("__reduce__",
           [](nb::handle self) {
             return nb::make_tuple(self.type(), nb::make_tuple(to_bytes(nb::cast<Key>(self))));
           })
      .def(nb::self == nb::self, nb::sig("def __eq__(self, arg: object, /) -> bool"))
      .def(nb::self != nb::self, nb::sig("def __ne__(self, arg: object, /) -> bool"))
      .def(nb::self < nb::self)
      .def(nb::self <= nb::self)
      .def(nb::self > nb::self)
      .def(nb::self >= nb::self);

  nb::class_<Keys>(m, "Keys", nb::type_slots(keys_slots),
                   "The keys of a batch: a sequence of Key, and a read-only (n, 32) uint8 buffer.")
      .def("__len__", [](const Keys& self) { return self.keys.size(); })
      .def("__getitem__",
           [](const Keys& self, Py_ssize_t index) {
             return self.keys[index_of(index, self.keys.size())];
           })
      .def("__getitem__",
           [](const Keys& self, const nb::slice& slice) {
             const auto [start, stop, step, length] = slice.compute(self.keys.size());
             Keys part;
             for (std::size_t i = 0; i < length; ++i) {
               part.keys.push_back(
                   self.keys[static_cast<std::size_t>(start + static_cast<Py_ssize_t>(i) * step)]);
             }
             return part;
           })
      .def("__contains__",
           [](const Keys& self, const Key& key) { return count_of(self, key) != 0; })
      .def(
          "__contains__", [](const Keys&, nb::handle) { return false; }, "value"_a.none())
      .def("count", &count_of, "value"_a, "How many rows have this key.")
      .def(
          "index",
          [](const Keys& self, const Key& key) {
            const auto found = std::ranges::find(self.keys, key);
            if (found == self.keys.end()) throw nb::value_error("no row has this key");
            return found - self.keys.begin();
          },
          "value"_a, "The first row with this key; ValueError if there is none.")
      .def(
          "__eq__", [](const Keys& self, const Keys& other) { return self.keys == other.keys; },
          nb::is_operator(), nb::sig("def __eq__(self, arg: object, /) -> bool"))
      .def("__repr__", [](const Keys& self) {
        return "<Keys: " + std::to_string(self.keys.size()) + " rows>";
      });

  const nb::bytes no_scope("", 0);
  const nb::object none = nb::none();
  m.def("key", &key_of, "x"_a.none(), nb::kw_only(), "scope"_a.none() = no_scope,
        "secret"_a.none() = none, "canonical"_a = false, kKeyDoc,
        nb::sig("def key(x: object, *, scope: bytes | str = b'', secret: bytes | None = None, "
                "canonical: bool = False) -> Key"));
  m.def("row_keys", &row_keys_of, "x"_a.none(), nb::kw_only(), "scope"_a.none() = no_scope,
        "secret"_a.none() = none, "canonical"_a = false, kRowKeysDoc,
        nb::sig("def row_keys(x: object, *, scope: bytes | str = b'', secret: bytes | None = None, "
                "canonical: bool = False) -> Keys"));
  m.def("tuple_key", &tuple_key_of, "members"_a, nb::kw_only(), "scope"_a.none() = no_scope,
        "secret"_a.none() = none, "canonical"_a = false, kTupleKeyDoc,
        nb::sig("def tuple_key(members: dict[str, object], *, scope: bytes | str = b'', "
                "secret: bytes | None = None, canonical: bool = False) -> Key"));
  m.def("tuple_row_keys", &tuple_row_keys_of, "members"_a, nb::kw_only(),
        "scope"_a.none() = no_scope, "secret"_a.none() = none, "canonical"_a = false,
        kTupleRowKeysDoc,
        nb::sig("def tuple_row_keys(members: dict[str, object], *, scope: bytes | str = b'', "
                "secret: bytes | None = None, canonical: bool = False) -> Keys"));
  m.def("structure_key", &structure_key_of, "x"_a.none(), kStructureKeyDoc,
        nb::sig("def structure_key(x: object) -> Key"));
}

}  // namespace tensorkey::python
