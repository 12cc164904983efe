// What TensorKeyDict and TensorKeySet are made of, whatever their keys go by: one table whose keys
// are the tensors themselves (content), structure keys, or addresses of objects (identity).
//
// REQUIRES everywhere: the GIL. It may be released while a large tensor is digested and whenever
// Python code runs (making a tensor, a weak reference, a value's destructor), so no iterator into
// the table is kept over such a call, and references are dropped only when the table is whole.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <tensorkey/key.h>
#include <tensorkey/map.h>

#include "acquire.h"
#include "errors.h"

namespace tensorkey::python {

enum class By : std::uint8_t { kContent, kStructure, kIdentity };

// What an entry holds besides its key.
struct Item {
  nanobind::object value = {};  // null in a set
  nanobind::object extra =
      {};  // structure: how to make such a tensor; identity: the weak reference
  nanobind::object token = {};  // identity: what a write changes
  Framework framework = Framework::kBuffer;
};

struct Mapping {
  Mapping(By by_, bool canonical_, bool is_set_);
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  By by;
  bool is_set;
  TensorKeyMap<Item> entries;
  std::uint64_t changes = 0;  // insertions and deletions: iteration sees them
  // Identity: where weak references find this mapping; holds null when it has died.
  std::shared_ptr<Mapping*> life;
};

// Two C++ types, so that there are two Python types.
struct DictBase : Mapping {
  DictBase(By by_, bool canonical_) : Mapping(by_, canonical_, false) {}
};
struct SetBase : Mapping {
  SetBase(By by_, bool canonical_) : Mapping(by_, canonical_, true) {}
};

using Entry = TensorKeyMap<Item>::iterator;

// A Python tensor that is looked up in a mapping: all that runs Python code or takes time is done
// when it is constructed, so the lookups are atomic. Throws as Borrowed does.
class Looked {
 public:
  Looked(const Mapping& mapping, PyObject* tensor, std::string_view where);
  Looked(const Looked&) = delete;
  Looked& operator=(const Looked&) = delete;

  // The entry of this tensor, or end(). An entry of a modified object is none.
  [[nodiscard]] Entry find(Mapping& mapping) const;
  // What is stored under it; runs Python code unless by content.
  [[nodiscard]] Item make_item(Mapping& mapping, nanobind::object value) const;
  // The entry of this tensor, made of `item` if there is none.
  std::pair<Entry, bool> insert(Mapping& mapping, Item item) const;
  [[noreturn]] void throw_missing(std::string_view where) const;

 private:
  PyObject* tensor_;  // borrowed: the caller holds it
  std::optional<Borrowed> borrowed_;
  Digest bytes_;          // structure: the key; identity: the address
  std::int64_t size_[1];  // the shape of bytes_
  nanobind::object token_;
  std::optional<internal::Probe> probe_;
};

// d[tensor] = value, s.add(tensor).
void set_item(Mapping& mapping, PyObject* tensor, nanobind::object value, std::string_view where);

// The entry's value, taken out of the mapping. REQUIRES: an entry of it.
nanobind::object take(Mapping& mapping, Entry entry);

// The entry of `mapping` that has the key of an entry of `other`. REQUIRES: the same `by`.
Entry find_entry(Mapping& mapping, const Mapping& other, TensorKeyMap<Item>::const_iterator entry);

// Identity: drops the entries of modified objects, and gives all others strongly. Runs Python code.
std::vector<nanobind::object> live_objects(Mapping& mapping);

// How many entries there are; by identity after dropping those of modified objects.
std::size_t count_entries(Mapping& mapping);

// What of an entry Python objects are made of. Taken in one go, since making an object may collect
// garbage, which may run anything, and then no iterator or view into the table is safe.
struct Copied {
  Copied(const TensorView& key, const Item& item_, bool with_data);

  DType dtype;
  std::string params;
  std::vector<std::int64_t> dims;
  nanobind::object data;  // a bytearray; not valid without data
  Item item;

  [[nodiscard]] nanobind::str dtype_text() const;
  [[nodiscard]] nanobind::str params_text() const;
  [[nodiscard]] nanobind::tuple shape() const;
};

// A new tensor with the entry's key. By structure the data are not needed. REQUIRES: not by
// identity.
nanobind::object make_key(By by, const Copied& entry);

// A function of a private module of the package, looked up at its first call and then kept.
struct PackageFunction {
  const char* module;
  const char* name;
  PyObject* function = nullptr;

  template <class... Args>
  nanobind::object operator()(Args&&... args) {
    if (function == nullptr) {
      nanobind::object found = nanobind::module_::import_(module).attr(name);
      function = found.release().ptr();
    }
    return nanobind::handle(function)(std::forward<Args>(args)...);
  }
};

// iter(mapping) and its like.
enum class Yield : std::uint8_t { kKeys, kValues, kItems };
nanobind::object iterate(nanobind::handle owner, Mapping& mapping, Yield yield, bool reversed);
void init_map_iterator(nanobind::module_& module);

// Operations on whole mappings (map_bulk.cc) and unique (map_unique.cc).
void init_map_bulk(nanobind::module_& module);
void init_unique(nanobind::module_& module);
void update_from(Mapping& mapping, Mapping& other);

Framework framework_from_name(std::string_view name);

// The mapping inside a TensorKeyDict or TensorKeySet. Throws Error if __init__ was not called.
// REQUIRES: an instance of one of them, as in a type slot or method.
Mapping& mapping_of(PyObject* self);

// The same for any object. Throws Error kUnsupported if it is neither.
Mapping& checked_mapping(nanobind::handle object);

// Runs `body` in a function that Python calls directly; its exceptions become Python's.
template <class Body>
auto guarded(Body&& body) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (...) {
    set_python_error();
    if constexpr (std::is_pointer_v<decltype(body())>) {
      return nullptr;
    } else {
      return -1;
    }
  }
}

}  // namespace tensorkey::python
