// The activation cache as tensorkey.ActivationCache (python/tensorkey/_cache.py) builds on it.
#include <tensorkey/cache.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <tensorkey/entry_format.h>
#include <tensorkey/error.h>

#include "entry.h"
#include "errors.h"
#include "failure.h"
#include "module.h"
#include "options.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

std::uint64_t scope_of(nb::handle scope, const char* where) {
  return scope_id(key_options(scope, nb::none(), false, where).scope);
}

std::size_t memory_of(std::int64_t memory) { return memory < 0 ? 0 : std::size_t(memory); }

std::optional<SharedEntry> get(ActivationCache& cache, const Key& key) {
  EntryPtr entry = cache.find(key);
  if (!entry) return std::nullopt;
  return SharedEntry{std::move(entry)};
}

bool put(ActivationCache& cache, const Key& key, nb::handle value, double seconds,
         nb::handle scope) {
  const std::uint64_t id = scope_of(scope, "ActivationCache.put");
  const BorrowedValue borrowed(value, "ActivationCache.put");
  const MaybeReleaseGil release(borrowed.bytes());
  return static_cast<bool>(cache.insert(borrowed.parts(key, seconds), id));
}

// What the caller's function returns, as an entry. Its exceptions become PythonFailure, which other
// threads can be given too.
EntryPtr compute(const Key& key, const nb::callable& function) {
  const nb::gil_scoped_acquire acquire;
  try {
    const auto start = std::chrono::steady_clock::now();
    const nb::object value = function();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const BorrowedValue borrowed(value, "ActivationCache.get_or_compute");
    return make_entry(borrowed.parts(key, took.count()));
  } catch (nb::python_error& error) {
    if (PythonFailure(error).is_exception()) throw PythonFailure(error);
    throw Abandoned(error);
  }
}

SharedEntry get_or_compute(ActivationCache& cache, const Key& key, const nb::callable& function,
                           nb::handle scope) {
  const std::uint64_t id = scope_of(scope, "ActivationCache.get_or_compute");
  const nb::gil_scoped_release release;
  for (;;) {
    bool mine = false;
    try {
      return {cache.get_or_compute(
          key,
          [&] {
            mine = true;
            return compute(key, function);
          },
          id, check_signals)};
    } catch (const Abandoned&) {
      if (mine) throw;
    }
  }
}

nb::bytes dump(ActivationCache& cache, const Key& key, nb::handle secret) {
  const KeyOptions options = key_options(nb::bytes("", 0), secret, false, "ActivationCache.dump");
  const EntryPtr entry = cache.find(key);
  if (!entry) {
    throw Error(ErrorCode::kNotFound, "[ActivationCache.dump] " + key.hex() + " is not there");
  }
  const std::size_t size = encoded_size(*entry, options.secret.has_value());
  auto result =
      nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!result.is_valid()) throw nb::python_error();
  auto* out = reinterpret_cast<std::byte*>(PyBytes_AS_STRING(result.ptr()));
  const MaybeReleaseGil release(size);
  encode_entry(*entry, std::span(out, size), options.secret);
  return result;
}

bool load(ActivationCache& cache, const nb::bytes& data, nb::handle scope, nb::handle secret) {
  const KeyOptions options = key_options(scope, secret, false, "ActivationCache.load");
  const std::uint64_t id = scope_id(options.scope);
  const std::span bytes(static_cast<const std::byte*>(data.data()), data.size());
  const MaybeReleaseGil release(bytes.size());
  return cache.load(bytes, id, options.secret);
}

nb::list snapshot(const ActivationCache& cache) {
  nb::list entries;
  for (const EntryInfo& info : cache.snapshot()) {
    entries.append(nb::make_tuple(info.key, info.bytes, info.seconds, info.pinned));
  }
  return entries;
}

nb::dict stats(const ActivationCache& cache) {
  const CacheStats stats = cache.stats();
  nb::dict result;
  result["bound"] = stats.bound;
  result["bytes"] = stats.bytes;
  result["metadata"] = stats.metadata;
  result["pinned"] = stats.pinned;
  result["entries"] = stats.entries;
  result["hits"] = stats.hits;
  result["misses_new"] = stats.misses_new;
  result["misses_evicted"] = stats.misses_evicted;
  result["misses_expired"] = stats.misses_expired;
  result["insertions"] = stats.insertions;
  result["evictions"] = stats.evictions;
  result["expirations"] = stats.expirations;
  result["rejections"] = stats.rejections;
  result["corrupt"] = stats.corrupt;
  result["waits"] = stats.waits;
  result["distinct"] = stats.distinct;
  return result;
}

}  // namespace

void init_cache(nb::module_& m) {
  using Self = ActivationCache;
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Self>(m, "ActivationCache", "What tensorkey.ActivationCache is made of.")
      .def(
          "__init__",
          [](Self* self, std::int64_t memory, double ttl) {
            new (self) Self({.memory = memory_of(memory), .ttl = ttl});
          },
          "memory"_a, "ttl"_a)
      .def("get", &get, "key"_a,
           "Return the entry under a key, or None. It counts as a hit or a miss.")
      .def("put", &put, "key"_a, "value"_a.none(), "seconds"_a = 0.0, "scope"_a = nb::bytes("", 0),
           nb::sig("def put(self, key: Key, value: object, seconds: float = 0.0, "
                   "scope: bytes | str = b'') -> bool"),
           "Store a copy of a tensor, of a dict of tensors or of a list of tensors.\n\n"
           "A key that is there already keeps its entry: equal keys have equal values. `seconds`\n"
           "is what it cost to compute, and decides what is worth keeping; `scope` is what\n"
           "purge() finds it by. False if it was not worth its room.")
      .def("get_or_compute", &get_or_compute, "key"_a, "function"_a, "scope"_a = nb::bytes("", 0),
           nb::sig("def get_or_compute(self, key: Key, function: "
                   "collections.abc.Callable[[], object], scope: bytes | str = b'') -> Entry"),
           "Return the entry under a key, or what `function` makes and put() stores.\n\n"
           "It runs in one thread at a time for each key; the others wait for it. What it raises\n"
           "reaches all who wait, and is not stored. It may ask for other keys.")
      .def("dump", &dump, "key"_a, nb::kw_only(), "secret"_a.none() = nb::none(),
           nb::sig("def dump(self, key: Key, *, secret: bytes | None = None) -> bytes"),
           "Return the entry under a key as bytes (docs/entry_format.md). With a secret of 32\n"
           "bytes only its holders can have written it. Counts as a lookup.")
      .def("load", &load, "data"_a, nb::kw_only(), "scope"_a = nb::bytes("", 0),
           "secret"_a.none() = nb::none(),
           nb::sig("def load(self, data: bytes, *, scope: bytes | str = b'', "
                   "secret: bytes | None = None) -> bool"),
           "Store what dump() returned. False if it is no whole entry, was written with another\n"
           "secret, or is not worth its room: counted, never raised.")
      .def("__contains__", &Self::contains, "key"_a)
      .def("__len__", [](const Self& self) { return self.stats().entries; })
      .def("remove", &Self::remove, "key"_a, Unlocked(),
           "Drop the entry under a key; False if there was none.")
      .def(
          "purge",
          [](Self& self, nb::handle scope) {
            const std::uint64_t id = scope_of(scope, "ActivationCache.purge");
            const nb::gil_scoped_release release;
            return self.purge(id);
          },
          "scope"_a, nb::sig("def purge(self, scope: bytes | str) -> int"),
          "Drop the entries that were stored for a scope; return their number.")
      .def("clear", &Self::clear, Unlocked(), "Drop all entries. The counters stay.")
      .def("pin", &Self::pin, "key"_a, Unlocked(),
           "Keep an entry whatever happens; False if it is not there.")
      .def("unpin", &Self::unpin, "key"_a, Unlocked(), "Let a pinned entry go again.")
      .def(
          "resize", [](Self& self, std::int64_t memory) { self.resize(memory_of(memory)); },
          "memory"_a, Unlocked())
      .def("infos", &snapshot, nb::sig("def infos(self) -> list[tuple[Key, int, float, bool]]"))
      .def("counters", &stats, nb::sig("def counters(self) -> dict[str, int]"))
      .def("reset_stats", &Self::reset_stats, Unlocked(), "Set the counters to zero.")
      .def("trace", &Self::trace, "path"_a, "limit"_a, Unlocked());
}

}  // namespace tensorkey::python
