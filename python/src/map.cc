// TensorKeyDictBase and TensorKeySetBase: the operations on one entry, as type slots and plain
// methods, so that a lookup from Python costs no Python frame. tensorkey/mapping.py makes the
// public classes of them and adds the operations on whole mappings.
#include <nanobind/stl/string.h>

#include <string>

#include <tensorkey/error.h>

#include "mapping.h"
#include "module.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

By by_from_name(const std::string& name) {
  if (name == "content") return By::kContent;
  if (name == "structure") return By::kStructure;
  if (name == "identity") return By::kIdentity;
  throw Error(ErrorCode::kInvalidArgument,
              "[by] '" + name + "'; expected 'content', 'structure' or 'identity'");
}

const char* name_of(By by) {
  switch (by) {
    case By::kContent: return "content";
    case By::kStructure: return "structure";
    case By::kIdentity: return "identity";
  }
  return "";
}

void check_arguments(const char* name, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most) {
  if (given >= least && given <= most) return;
  PyErr_Format(PyExc_TypeError, "%s expected %zd to %zd arguments, got %zd", name, least, most,
               given);
  throw nb::python_error();
}

// --- type slots ---------------------------------------------------------------------------------

Py_ssize_t length(PyObject* self) {
  return guarded([&] { return static_cast<Py_ssize_t>(count_entries(mapping_of(self))); });
}

int contains(PyObject* self, PyObject* tensor) {
  return guarded([&]() -> int {
    Mapping& mapping = mapping_of(self);
    const Looked looked(mapping, tensor, "contains");
    return looked.find(mapping) != mapping.entries.end() ? 1 : 0;
  });
}

PyObject* subscript(PyObject* self, PyObject* tensor) {
  return guarded([&]() -> PyObject* {
    Mapping& mapping = mapping_of(self);
    const Looked looked(mapping, tensor, "TensorKeyDict");
    const Entry entry = looked.find(mapping);
    if (entry == mapping.entries.end()) looked.throw_missing("TensorKeyDict");
    return Py_NewRef(entry->second.value.ptr());
  });
}

int assign(PyObject* self, PyObject* tensor, PyObject* value) {
  return guarded([&]() -> int {
    Mapping& mapping = mapping_of(self);
    if (value != nullptr) {
      set_item(mapping, tensor, nb::borrow(value), "TensorKeyDict");
      return 0;
    }
    const Looked looked(mapping, tensor, "TensorKeyDict");
    const Entry entry = looked.find(mapping);
    if (entry == mapping.entries.end()) looked.throw_missing("TensorKeyDict");
    take(mapping, entry);
    return 0;
  });
}

PyObject* iterate_keys(PyObject* self) {
  return guarded([&]() -> PyObject* {
    return iterate(self, mapping_of(self), Yield::kKeys, false).release().ptr();
  });
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  if (!nb::inst_ready(self)) return 0;
  for (const auto& [key, item] : nb::inst_ptr<Mapping>(self)->entries) {
    Py_VISIT(item.value.ptr());
    Py_VISIT(item.extra.ptr());
    Py_VISIT(item.token.ptr());
  }
  return 0;
}

void clear_entries(Mapping& mapping) {
  TensorKeyMap<Item> old(MapOptions{.canonical = mapping.entries.canonical()});
  old.swap(mapping.entries);
  ++mapping.changes;
}

int clear_slot(PyObject* self) {
  if (nb::inst_ready(self)) clear_entries(*nb::inst_ptr<Mapping>(self));
  return 0;
}

// --- methods ------------------------------------------------------------------------------------

PyObject* get(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    check_arguments("get", count, 1, 2);
    Mapping& mapping = mapping_of(self);
    const Looked looked(mapping, args[0], "get");
    const Entry entry = looked.find(mapping);
    if (entry != mapping.entries.end()) return Py_NewRef(entry->second.value.ptr());
    return Py_NewRef(count == 2 ? args[1] : Py_None);
  });
}

PyObject* pop(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    check_arguments("pop", count, 1, 2);
    Mapping& mapping = mapping_of(self);
    const Looked looked(mapping, args[0], "pop");
    const Entry entry = looked.find(mapping);
    if (entry != mapping.entries.end()) return take(mapping, entry).release().ptr();
    if (count == 1) looked.throw_missing("pop");
    return Py_NewRef(args[1]);
  });
}

PyObject* set_default(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    check_arguments("setdefault", count, 1, 2);
    Mapping& mapping = mapping_of(self);
    const Looked looked(mapping, args[0], "setdefault");
    Entry entry = looked.find(mapping);
    if (entry == mapping.entries.end()) {
      Item item = looked.make_item(mapping, nb::borrow(count == 2 ? args[1] : Py_None));
      entry = looked.insert(mapping, std::move(item)).first;
    }
    return Py_NewRef(entry->second.value.ptr());
  });
}

// The last entry, as (key, value); the mapping is left alone if the key cannot be made.
std::pair<nb::object, nb::object> pop_last(Mapping& mapping, const char* where) {
  for (;;) {
    if (count_entries(mapping) == 0) {
      throw Error(ErrorCode::kNotFound, "[" + std::string(where) + "] the mapping is empty");
    }
    const auto entry = mapping.entries.last();
    const std::uint64_t changes = mapping.changes;
    nb::object key;
    if (mapping.by == By::kIdentity) {
      key = live_objects(mapping).back();
      const Looked looked(mapping, key.ptr(), where);
      const Entry found = looked.find(mapping);
      if (found != mapping.entries.end()) return {std::move(key), take(mapping, found)};
    } else {
      key = make_key(mapping.by, Copied(entry->first, entry->second, mapping.by == By::kContent));
      // Making it ran Python code: only if nothing changed is the entry still there.
      if (changes == mapping.changes) {
        return {std::move(key), take(mapping, Entry(entry.node()))};
      }
    }
  }
}

PyObject* pop_item(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto [key, value] = pop_last(mapping_of(self), "popitem");
    return nb::make_tuple(key, value).release().ptr();
  });
}

PyObject* clear_method(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    clear_entries(mapping_of(self));
    return Py_NewRef(Py_None);
  });
}

PyObject* add(PyObject* self, PyObject* tensor) {
  return guarded([&]() -> PyObject* {
    set_item(mapping_of(self), tensor, nb::object(), "add");
    return Py_NewRef(Py_None);
  });
}

bool remove_entry(PyObject* self, PyObject* tensor, const char* where, bool must_exist) {
  Mapping& mapping = mapping_of(self);
  const Looked looked(mapping, tensor, where);
  const Entry entry = looked.find(mapping);
  if (entry == mapping.entries.end()) {
    if (must_exist) looked.throw_missing(where);
    return false;
  }
  take(mapping, entry);
  return true;
}

PyObject* discard(PyObject* self, PyObject* tensor) {
  return guarded([&]() -> PyObject* {
    remove_entry(self, tensor, "discard", false);
    return Py_NewRef(Py_None);
  });
}

PyObject* remove(PyObject* self, PyObject* tensor) {
  return guarded([&]() -> PyObject* {
    remove_entry(self, tensor, "remove", true);
    return Py_NewRef(Py_None);
  });
}

PyObject* pop_key(PyObject* self, PyObject*) {
  return guarded(
      [&]() -> PyObject* { return pop_last(mapping_of(self), "pop").first.release().ptr(); });
}

template <class Function>
PyCFunction method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef dict_methods[] = {
    {"get", method(&get), METH_FASTCALL,
     "get($self, key, default=None, /)\n--\n\nThe value of an equal tensor, else `default`."},
    {"pop", method(&pop), METH_FASTCALL,
     "pop(key[, default])\n\nTake the entry of an equal tensor out and return its value; without "
     "one return\n`default`, or raise MissingKey if none is given."},
    {"setdefault", method(&set_default), METH_FASTCALL,
     "setdefault($self, key, default=None, /)\n--\n\nThe value of an equal tensor; without one, "
     "`default`, which is put in."},
    {"popitem", method(&pop_item), METH_NOARGS,
     "popitem($self, /)\n--\n\nTake out the last entry put in, and return it as (key, value)."},
    {"clear", method(&clear_method), METH_NOARGS, "clear($self, /)\n--\n\nTake out all entries."},
    {"__class_getitem__", &Py_GenericAlias, METH_O | METH_CLASS, "TensorKeyDict[int]"},
    {nullptr, nullptr, 0, nullptr}};

PyMethodDef set_methods[] = {
    {"add", method(&add), METH_O,
     "add($self, tensor, /)\n--\n\nPut a tensor in, unless an equal one is there."},
    {"discard", method(&discard), METH_O,
     "discard($self, tensor, /)\n--\n\nTake an equal tensor out, if there is one."},
    {"remove", method(&remove), METH_O,
     "remove($self, tensor, /)\n--\n\nTake an equal tensor out; raise MissingKey if there is "
     "none."},
    {"pop", method(&pop_key), METH_NOARGS,
     "pop($self, /)\n--\n\nTake out the last tensor put in, and return it."},
    {"clear", method(&clear_method), METH_NOARGS, "clear($self, /)\n--\n\nTake out all tensors."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot dict_slots[] = {{Py_mp_length, reinterpret_cast<void*>(length)},
                            {Py_mp_subscript, reinterpret_cast<void*>(subscript)},
                            {Py_mp_ass_subscript, reinterpret_cast<void*>(assign)},
                            {Py_sq_contains, reinterpret_cast<void*>(contains)},
                            {Py_tp_iter, reinterpret_cast<void*>(iterate_keys)},
                            {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                            {Py_tp_clear, reinterpret_cast<void*>(clear_slot)},
                            {Py_tp_hash, reinterpret_cast<void*>(PyObject_HashNotImplemented)},
                            {Py_tp_methods, dict_methods},
                            {0, nullptr}};

PyType_Slot set_slots[] = {{Py_sq_length, reinterpret_cast<void*>(length)},
                           {Py_sq_contains, reinterpret_cast<void*>(contains)},
                           {Py_tp_iter, reinterpret_cast<void*>(iterate_keys)},
                           {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                           {Py_tp_clear, reinterpret_cast<void*>(clear_slot)},
                           {Py_tp_hash, reinterpret_cast<void*>(PyObject_HashNotImplemented)},
                           {Py_tp_methods, set_methods},
                           {0, nullptr}};

template <class Base>
void init_base(nb::module_& m, const char* name, PyType_Slot* slots, const char* doc) {
  nb::class_<Base>(m, name, nb::type_slots(slots), doc)
      .def(
          "__init__",
          [](Base* self, const std::string& by, bool canonical) {
            new (self) Base(by_from_name(by), canonical);
          },
          "by"_a, "canonical"_a)
      .def_prop_ro(
          "by", [](const Base& self) { return name_of(self.by); },
          "What makes two tensors the same key: 'content', 'structure' or 'identity'.")
      .def_prop_ro(
          "canonical", [](const Base& self) { return self.entries.canonical(); },
          "Whether -0.0 counts as 0.0 and every NaN as one NaN.");
}

}  // namespace

Mapping& mapping_of(PyObject* self) {
  if (!nb::inst_ready(self)) {
    throw Error(ErrorCode::kInvalidArgument,
                "[TensorKeyDict] __init__ was not called; expected super().__init__() in the "
                "subclass");
  }
  return *nb::inst_ptr<Mapping>(self);
}

Mapping& checked_mapping(nb::handle object) {
  if (!nb::isinstance<DictBase>(object) && !nb::isinstance<SetBase>(object)) {
    throw Error(ErrorCode::kUnsupported,
                "[TensorKeyDict] expected a TensorKeyDict or a TensorKeySet");
  }
  return mapping_of(object.ptr());
}

void init_map(nb::module_& m) {
  init_base<DictBase>(m, "TensorKeyDictBase", dict_slots,
                      "The operations of a TensorKeyDict on one entry.");
  init_base<SetBase>(m, "TensorKeySetBase", set_slots,
                     "The operations of a TensorKeySet on one tensor.");
  init_map_iterator(m);
  init_map_bulk(m);
  init_unique(m);
}

}  // namespace tensorkey::python
