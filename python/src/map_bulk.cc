// Operations on whole mappings, for the methods that tensorkey/mapping.py builds on them.
#include <nanobind/stl/string.h>

#include <string>
#include <vector>

#include <tensorkey/error.h>

#include "mapping.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

nb::object or_none(const nb::object& object) { return object.is_valid() ? object : nb::none(); }

// Takes back what was inserted and replaced, unless all of it came to be.
class Rollback {
 public:
  explicit Rollback(Mapping& mapping) : mapping_(mapping), last_(mapping.entries.last()) {}
  Rollback(const Rollback&) = delete;
  Rollback& operator=(const Rollback&) = delete;
  ~Rollback() {
    if (done_) return;
    for (auto it = replaced_.rbegin(); it != replaced_.rend(); ++it) {
      std::swap(it->first->second.value, it->second);
    }
    while (mapping_.entries.last() != last_) {
      removed_.push_back(std::move(Entry(mapping_.entries.last().node())->second));
      mapping_.entries.erase(mapping_.entries.last());
    }
  }
  void replace(Entry entry, nb::object value) {
    replaced_.emplace_back(entry, std::move(value));
    std::swap(entry->second.value, replaced_.back().second);
  }
  // Room for what the destructor moves: it must not fail.
  void expect(std::size_t count) { removed_.reserve(count); }
  void commit() { done_ = true; }

 private:
  Mapping& mapping_;
  TensorKeyMap<Item>::const_iterator last_;
  std::vector<std::pair<Entry, nb::object>> replaced_;  // old values go when the table is whole
  std::vector<Item> removed_;
  bool done_ = false;
};

void update_by_identity(Mapping& mapping, Mapping& other) {
  for (const nb::object& object : live_objects(other)) {
    const Looked looked(other, object.ptr(), "update");
    const Entry entry = looked.find(other);
    if (entry == other.entries.end()) continue;
    set_item(mapping, object.ptr(), mapping.is_set ? nb::object() : entry->second.value, "update");
  }
}

// Every entry of mapping that is in other (`present`) or is not goes.
void drop(Mapping& mapping, Mapping& other, bool present) {
  std::vector<nb::object> dropped;
  dropped.reserve(mapping.entries.size());
  for (Entry it = mapping.entries.begin(); it != mapping.entries.end();) {
    const Entry following(it.node()->next);
    if ((find_entry(other, mapping, it) != other.entries.end()) == present) {
      dropped.push_back(nb::steal(take(mapping, it).release()));
    }
    it = following;
  }
}

bool contains_all(Mapping& mapping, Mapping& other) {
  static_cast<void>(count_entries(other));
  for (auto it = other.entries.cbegin(); it != other.entries.cend(); ++it) {
    if (find_entry(mapping, other, it) == mapping.entries.end()) return false;
  }
  return true;
}

bool disjoint(Mapping& mapping, Mapping& other) {
  static_cast<void>(count_entries(other));
  for (auto it = other.entries.cbegin(); it != other.entries.cend(); ++it) {
    if (find_entry(mapping, other, it) != mapping.entries.end()) return false;
  }
  return true;
}

// The values of the keys that both have, in pairs; None unless both have the same keys.
nb::object value_pairs(Mapping& mapping, Mapping& other) {
  if (count_entries(mapping) != count_entries(other)) return nb::none();
  std::vector<std::pair<nb::object, nb::object>> values;
  for (auto it = other.entries.cbegin(); it != other.entries.cend(); ++it) {
    const Entry found = find_entry(mapping, other, it);
    if (found == mapping.entries.end()) return nb::none();
    values.emplace_back(found->second.value, it->second.value);
  }
  nb::list pairs;
  for (const auto& [mine, theirs] : values) {
    pairs.append(nb::make_tuple(or_none(mine), or_none(theirs)));
  }
  return pairs;
}

std::vector<Copied> copy_entries(const Mapping& mapping, std::size_t most, bool with_data) {
  std::vector<Copied> copied;
  for (const auto& [key, item] : mapping.entries) {
    if (copied.size() == most) break;
    copied.emplace_back(key, item, with_data);
  }
  return copied;
}

// Entries as plain data, for pickle: framework, dtype, its parameters, shape, bytes, how to make a
// tensor of that structure, value.
nb::list export_entries(const Mapping& mapping) {
  nb::list out;
  for (const Copied& entry : copy_entries(mapping, mapping.entries.size(), true)) {
    out.append(nb::make_tuple(framework_name(entry.item.framework), entry.dtype_text(),
                              entry.params_text(), entry.shape(), nb::bytes(entry.data),
                              or_none(entry.item.extra), or_none(entry.item.value)));
  }
  return out;
}

[[noreturn]] void bad_entry(const char* what) {
  throw Error(ErrorCode::kInvalidArgument, std::string("[TensorKeyDict] a pickled entry has ") +
                                               what + "; expected what pickle wrote");
}

void import_entry(Mapping& mapping, const nb::tuple& fields) {
  if (fields.size() != 7 || mapping.by == By::kIdentity) bad_entry("the wrong fields");
  const auto dtype = dtype_from_name(nb::cast<std::string>(fields[1]));
  if (!dtype) bad_entry("a dtype that this version does not know");
  const auto params = nb::cast<std::string>(fields[2]);
  const auto dims = nb::cast<nb::tuple>(fields[3]);
  std::vector<std::int64_t> shape;
  for (const nb::handle dim : dims) shape.push_back(nb::cast<std::int64_t>(dim));
  const auto data = nb::cast<nb::bytes>(fields[4]);
  const TensorView key{
      .data = data.c_str(), .dtype = *dtype, .shape = shape, .dtype_params = params};
  check_view(key, "TensorKeyDict");
  if (byte_count(key) != data.size()) bad_entry("another number of bytes than its shape");
  const bool by_structure = mapping.by == By::kStructure;
  if (by_structure != !fields[5].is_none() || (by_structure && data.size() != Key::kSize)) {
    bad_entry("the fields of another kind of mapping");
  }
  Item item{.value = mapping.is_set ? nb::object() : nb::borrow(fields[6]),
            .extra = by_structure ? nb::borrow(fields[5]) : nb::object(),
            .framework = framework_from_name(nb::cast<std::string>(fields[0]))};
  if (mapping.entries.try_emplace(key, std::move(item)).second) ++mapping.changes;
}

// For repr: dtype, shape and structure or object of the first few entries, with their values.
nb::list describe(Mapping& mapping, std::size_t count) {
  nb::list out;
  for (const Copied& entry : copy_entries(mapping, count, false)) {
    out.append(nb::make_tuple(entry.dtype_text(), entry.shape(), or_none(entry.item.extra),
                              or_none(entry.item.value)));
  }
  return out;
}

}  // namespace

void update_from(Mapping& mapping, Mapping& other) {
  if (&mapping == &other) return;
  if (mapping.by == By::kIdentity) return update_by_identity(mapping, other);
  Rollback rollback(mapping);
  rollback.expect(other.entries.size());
  for (const auto& [key, item] : other.entries) {
    const internal::Probe probe = mapping.entries.probe(key, "update");
    const Entry found = mapping.entries.find(probe);
    if (found == mapping.entries.end()) {
      Item copy = item;
      if (mapping.is_set) copy.value.reset();
      mapping.entries.try_emplace(probe, std::move(copy));
      ++mapping.changes;
    } else if (!mapping.is_set) {
      rollback.replace(found, item.value);
    }
  }
  rollback.commit();
}

void init_map_bulk(nb::module_& m) {
  const auto on_two = [&m](const char* name, auto function, const char* signature) {
    m.def(
        name,
        [function](nb::handle self, nb::handle other) {
          return function(checked_mapping(self), checked_mapping(other));
        },
        nb::sig(signature));
  };
  on_two("map_update", &update_from, "def map_update(self: Any, other: Any, /) -> None");
  on_two("map_contains_all", &contains_all,
         "def map_contains_all(self: Any, other: Any, /) -> bool");
  on_two("map_disjoint", &disjoint, "def map_disjoint(self: Any, other: Any, /) -> bool");
  on_two("map_value_pairs", &value_pairs,
         "def map_value_pairs(self: Any, other: Any, /) -> list[tuple[Any, Any]] | None");
  m.def(
      "map_drop",
      [](nb::handle self, nb::handle other, bool present) {
        drop(checked_mapping(self), checked_mapping(other), present);
      },
      nb::sig("def map_drop(self: Any, other: Any, present: bool, /) -> None"));
  m.def(
      "map_export", [](nb::handle self) { return export_entries(checked_mapping(self)); },
      nb::sig("def map_export(self: Any, /) -> list[tuple[Any, ...]]"));
  m.def(
      "map_import",
      [](nb::handle self, const nb::list& entries) {
        Mapping& mapping = checked_mapping(self);
        for (const nb::handle entry : entries) import_entry(mapping, nb::cast<nb::tuple>(entry));
      },
      nb::sig("def map_import(self: Any, entries: list[tuple[Any, ...]], /) -> None"));
  m.def(
      "map_describe",
      [](nb::handle self, std::size_t count) { return describe(checked_mapping(self), count); },
      nb::sig("def map_describe(self: Any, count: int, /) -> list[tuple[str, tuple[int, ...], Any, "
              "Any]]"));
  m.def(
      "map_iterate",
      [](nb::handle self, const std::string& what, bool reversed) {
        const Yield yield = what == "keys"     ? Yield::kKeys
                            : what == "values" ? Yield::kValues
                                               : Yield::kItems;
        return iterate(self, checked_mapping(self), yield, reversed);
      },
      nb::sig("def map_iterate(self: Any, what: str, reversed: bool, /) -> Iterator[Any]"));
}

}  // namespace tensorkey::python
