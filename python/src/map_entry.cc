// One tensor, one entry: what it is looked up by, and what is stored.
#include <bit>
#include <cstring>
#include <string>

#include <tensorkey/error.h>

#include "mapping.h"
#include "options.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

PackageFunction identity_token{"tensorkey._identity", "token"};
PackageFunction describe_structure{"tensorkey._structure", "describe"};

// What a weak reference calls when its object dies. `address` finds the entry, the weak reference
// itself tells whether it is still the same one.
struct Funeral {
  std::shared_ptr<Mapping*> life;
  std::uint64_t address;
};

TensorView address_view(const std::uint64_t& address, const std::int64_t (&size)[1]) {
  return view(&address, size);
}

PyObject* bury(PyObject* capsule, PyObject* reference) {
  return guarded([&]() -> PyObject* {
    const auto* const funeral = static_cast<const Funeral*>(PyCapsule_GetPointer(capsule, nullptr));
    if (Mapping* const mapping = *funeral->life) {
      const std::int64_t size[1] = {1};
      const Entry entry = mapping->entries.find(address_view(funeral->address, size));
      if (entry != mapping->entries.end() && entry->second.extra.ptr() == reference) {
        const Item dead = std::move(entry->second);
        mapping->entries.erase(entry);
      }
    }
    return Py_NewRef(Py_None);
  });
}

PyMethodDef bury_method = {"forget", &bury, METH_O, nullptr};

nb::object weak_reference(Mapping& mapping, PyObject* tensor) {
  auto funeral = std::make_unique<Funeral>(
      Funeral{mapping.life, static_cast<std::uint64_t>(std::bit_cast<std::uintptr_t>(tensor))});
  nb::object capsule = nb::steal(PyCapsule_New(funeral.get(), nullptr, [](PyObject* self) {
    delete static_cast<Funeral*>(PyCapsule_GetPointer(self, nullptr));
  }));
  if (!capsule.is_valid()) throw nb::python_error();
  static_cast<void>(funeral.release());
  const nb::object callback = nb::steal(PyCFunction_New(&bury_method, capsule.ptr()));
  if (!callback.is_valid()) throw nb::python_error();
  nb::object reference = nb::steal(PyWeakref_NewRef(tensor, callback.ptr()));
  if (!reference.is_valid()) throw nb::python_error();
  return reference;
}

bool equal_objects(const nb::object& a, const nb::object& b) {
  const int equal = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
  if (equal < 0) throw nb::python_error();
  return equal == 1;
}

// The object of a weak reference; not valid if it has died.
nb::object referent(const nb::object& reference) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* object = nullptr;
  if (PyWeakref_GetRef(reference.ptr(), &object) < 0) throw nb::python_error();
  return nb::steal(object);
#else
  PyObject* const object = PyWeakref_GetObject(reference.ptr());
  return object == Py_None ? nb::object() : nb::borrow(object);
#endif
}

bool is_same_object(const Item& item, PyObject* tensor, const nb::object& token) {
  return referent(item.extra).ptr() == tensor && equal_objects(item.token, token);
}

}  // namespace

Mapping::Mapping(By by_, bool canonical_, bool is_set_)
    : by(by_), is_set(is_set_), entries(MapOptions{.canonical = canonical_}) {
  if (canonical_ && by != By::kContent) {
    throw Error(ErrorCode::kInvalidArgument,
                "[TensorKeyDict] canonical=True concerns elements; expected by='content'");
  }
  if (by == By::kIdentity) life = std::make_shared<Mapping*>(this);
}

Mapping::~Mapping() {
  if (life != nullptr) *life = nullptr;
}

Looked::Looked(const Mapping& mapping, PyObject* tensor, std::string_view where) : tensor_(tensor) {
  if (mapping.by == By::kContent) {
    const Borrowed& borrowed = borrowed_.emplace(tensor);
    const bool canonical = mapping.entries.canonical();
    const std::size_t size = checked_bytes(borrowed.view(), where);
    const MaybeReleaseGil release(size);
    probe_.emplace(borrowed.view(), size, canonical);
    return;
  }
  if (mapping.by == By::kStructure) {
    const BorrowedStructure structure(tensor);
    bytes_ = structure_key(structure.view(), structure.structure()).bytes();
    size_[0] = static_cast<std::int64_t>(bytes_.size());
    probe_.emplace(view(bytes_.data(), size_), false, where);
    return;
  }
  const auto address = static_cast<std::uint64_t>(std::bit_cast<std::uintptr_t>(tensor));
  std::memcpy(bytes_.data(), &address, sizeof address);
  size_[0] = 1;
  probe_.emplace(TensorView{.data = bytes_.data(), .dtype = DType::kUInt64, .shape = size_}, false,
                 where);
  const auto known = mapping.entries.find(*probe_);
  if (known == mapping.entries.end() || referent(known->second.extra).ptr() != tensor) {
    const BorrowedStructure checked(tensor);  // refuses what has no key
  }
  token_ = identity_token(nb::handle(tensor));
}

Entry Looked::find(Mapping& mapping) const {
  const Entry entry = mapping.entries.find(*probe_);
  if (entry == mapping.entries.end() || mapping.by != By::kIdentity) return entry;
  return is_same_object(entry->second, tensor_, token_) ? entry : mapping.entries.end();
}

Item Looked::make_item(Mapping& mapping, nb::object value) const {
  Item item{.value = std::move(value)};
  switch (mapping.by) {
    case By::kContent: item.framework = borrowed_->framework(); break;
    case By::kStructure: item.extra = describe_structure(nb::handle(tensor_)); break;
    case By::kIdentity:
      item.extra = weak_reference(mapping, tensor_);
      item.token = token_;
      break;
  }
  return item;
}

std::pair<Entry, bool> Looked::insert(Mapping& mapping, Item item) const {
  if (const Entry entry = find(mapping); entry != mapping.entries.end()) return {entry, false};
  if (mapping.by == By::kIdentity) {
    // An object that was modified since, or that died without telling: its entry counts no more.
    const Entry stale = mapping.entries.find(*probe_);
    if (stale != mapping.entries.end()) {
      std::swap(stale->second, item);
      ++mapping.changes;
      return {stale, true};
    }
  }
  const auto result = mapping.entries.try_emplace(*probe_, std::move(item));
  ++mapping.changes;
  return result;
}

void Looked::throw_missing(std::string_view where) const {
  if (borrowed_) internal::throw_not_found(borrowed_->view(), where);
  throw Error(ErrorCode::kNotFound,
              "[" + std::string(where) + "] no entry for this tensor's " +
                  (token_.is_valid() ? "identity: it was never put in, or was written to since"
                                     : "structure"));
}

void set_item(Mapping& mapping, PyObject* tensor, nb::object value, std::string_view where) {
  const Looked looked(mapping, tensor, where);
  Entry entry = looked.find(mapping);
  if (entry == mapping.entries.end()) {
    const auto [place, inserted] = looked.insert(mapping, looked.make_item(mapping, value));
    if (inserted) return;
    entry = place;
  }
  std::swap(entry->second.value, value);  // the old value goes when the table is whole
}

nb::object take(Mapping& mapping, Entry entry) {
  Item item = std::move(entry->second);
  mapping.entries.erase(entry);
  ++mapping.changes;
  return std::move(item.value);
}

Entry find_entry(Mapping& mapping, const Mapping& other, TensorKeyMap<Item>::const_iterator entry) {
  const Entry found = mapping.entries.canonical() == other.entries.canonical()
                          ? mapping.entries.find_same(entry)
                          : mapping.entries.find(entry->first);
  if (found == mapping.entries.end() || mapping.by != By::kIdentity) return found;
  const Item& item = entry->second;
  const nb::object object = referent(item.extra);
  return object.is_valid() && is_same_object(found->second, object.ptr(), item.token)
             ? found
             : mapping.entries.end();
}

std::vector<nb::object> live_objects(Mapping& mapping) {
  std::vector<nb::object> objects;
  std::vector<Item> dead;
  for (Entry it = mapping.entries.begin(); it != mapping.entries.end();) {
    nb::object object = referent(it->second.extra);
    if (!object.is_valid()) {
      dead.push_back(std::move(it->second));
      it = mapping.entries.erase(it);
      continue;
    }
    objects.push_back(std::move(object));
    ++it;
  }
  std::vector<nb::object> unmodified;
  for (nb::object& object : objects) {
    const Looked looked(mapping, object.ptr(), "TensorKeyDict");
    if (looked.find(mapping) != mapping.entries.end()) {
      unmodified.push_back(std::move(object));
      continue;
    }
    const auto address = static_cast<std::uint64_t>(std::bit_cast<std::uintptr_t>(object.ptr()));
    const std::int64_t size[1] = {1};
    const Entry stale = mapping.entries.find(address_view(address, size));
    if (stale != mapping.entries.end()) {
      dead.push_back(std::move(stale->second));
      mapping.entries.erase(stale);
    }
  }
  return unmodified;
}

std::size_t count_entries(Mapping& mapping) {
  if (mapping.by == By::kIdentity) static_cast<void>(live_objects(mapping));
  return mapping.entries.size();
}

Framework framework_from_name(std::string_view name) {
  for (const Framework framework : {Framework::kBuffer, Framework::kNumpy, Framework::kTorch,
                                    Framework::kJax, Framework::kTensorflow}) {
    if (name == framework_name(framework)) return framework;
  }
  throw Error(ErrorCode::kInvalidArgument,
              "[TensorKeyDict] no framework is called '" + std::string(name) + "'");
}

}  // namespace tensorkey::python
