// Iteration, and the tensors that it makes. Keys are copied out of the table before any Python code
// runs; a mapping that changed in between says so, as a dict does.
#include <string>
#include <vector>

#include "mapping.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

PackageFunction build_structure{"tensorkey._structure", "build"};
PackageFunction rebuild_tensor{"tensorkey._rebuild", "tensor"};

struct Iteration {
  nb::object owner;  // not valid: exhausted
  Mapping* mapping;
  TensorKeyMap<Item>::const_iterator next;
  std::uint64_t changes;
  Yield yield;
  bool reversed;
  // By identity the objects are held, so that none dies meanwhile; `next` is not used.
  std::vector<nb::object> objects;
  std::size_t at = 0;
};

void finish(Iteration& self) {
  const nb::object owner = std::move(self.owner);
  const std::vector<nb::object> objects = std::move(self.objects);
}

void check_unchanged(const Iteration& self) {
  if (self.changes == self.mapping->changes) return;
  PyErr_Format(PyExc_RuntimeError, "%s changed during iteration",
               self.mapping->is_set ? "TensorKeySet" : "TensorKeyDict");
  throw nb::python_error();
}

PyObject* result_of(Yield yield, const nb::object& key, const nb::object& value) {
  switch (yield) {
    case Yield::kKeys: return nb::object(key).release().ptr();
    case Yield::kValues: return nb::object(value).release().ptr();
    case Yield::kItems: return nb::make_tuple(key, value).release().ptr();
  }
  return nullptr;
}

PyObject* next_object(Iteration& self) {
  while (self.at < self.objects.size()) {
    const std::size_t at = self.reversed ? self.objects.size() - 1 - self.at : self.at;
    ++self.at;
    const nb::object object = self.objects[at];
    const Looked looked(*self.mapping, object.ptr(), "TensorKeyDict");
    check_unchanged(self);
    const Entry entry = looked.find(*self.mapping);
    if (entry == self.mapping->entries.end()) continue;  // modified since iteration began
    return result_of(self.yield, object, entry->second.value);
  }
  finish(self);
  return nullptr;
}

PyObject* next(PyObject* object) {
  return guarded([&]() -> PyObject* {
    auto& self = *nb::inst_ptr<Iteration>(object);
    if (!self.owner.is_valid()) return nullptr;
    check_unchanged(self);
    if (self.mapping->by == By::kIdentity) return next_object(self);
    if (self.next == self.mapping->entries.cend()) {
      finish(self);
      return nullptr;
    }
    const auto entry = self.next;
    self.next = TensorKeyMap<Item>::const_iterator(self.reversed ? entry.node()->previous
                                                                 : entry.node()->next);
    if (self.yield == Yield::kValues) return Py_NewRef(entry->second.value.ptr());
    const By by = self.mapping->by;
    const Copied copied(entry->first, entry->second, by == By::kContent);
    return result_of(self.yield, make_key(by, copied), copied.item.value);
  });
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  if (!nb::inst_ready(object)) return 0;
  const auto& self = *nb::inst_ptr<Iteration>(object);
  Py_VISIT(self.owner.ptr());
  for (const nb::object& held : self.objects) Py_VISIT(held.ptr());
  return 0;
}

int clear(PyObject* object) {
  if (nb::inst_ready(object)) finish(*nb::inst_ptr<Iteration>(object));
  return 0;
}

PyType_Slot slots[] = {{Py_tp_iter, reinterpret_cast<void*>(PyObject_SelfIter)},
                       {Py_tp_iternext, reinterpret_cast<void*>(next)},
                       {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                       {Py_tp_clear, reinterpret_cast<void*>(clear)},
                       {0, nullptr}};

}  // namespace

Copied::Copied(const TensorView& key, const Item& item_, bool with_data)
    : dtype(key.dtype),
      params(key.dtype_params),
      dims(key.shape.begin(), key.shape.end()),
      item(item_) {
  if (with_data) data = nb::bytearray(key.data, byte_count(key));
}

nb::str Copied::dtype_text() const {
  const std::string_view name = to_string(dtype);
  return nb::str(name.data(), name.size());
}

nb::str Copied::params_text() const { return nb::str(params.data(), params.size()); }

nb::tuple Copied::shape() const {
  nb::list shape;
  for (const std::int64_t dim : dims) shape.append(dim);
  return nb::tuple(shape);
}

nb::object make_key(By by, const Copied& entry) {
  if (by == By::kStructure) return build_structure(entry.item.extra);
  return rebuild_tensor(framework_name(entry.item.framework), entry.dtype_text(),
                        entry.params_text(), entry.shape(), entry.data);
}

nb::object iterate(nb::handle owner, Mapping& mapping, Yield yield, bool reversed) {
  Iteration iteration{.owner = nb::borrow(owner),
                      .mapping = &mapping,
                      .next = reversed ? mapping.entries.last() : mapping.entries.cbegin(),
                      .changes = mapping.changes,
                      .yield = yield,
                      .reversed = reversed,
                      .objects = {}};
  if (mapping.by == By::kIdentity) iteration.objects = live_objects(mapping);
  iteration.changes = mapping.changes;
  return nb::cast(std::move(iteration));
}

void init_map_iterator(nb::module_& m) {
  nb::class_<Iteration>(m, "TensorKeyIterator", nb::type_slots(slots),
                        "What iter() of a TensorKeyDict or TensorKeySet gives.");
}

}  // namespace tensorkey::python
