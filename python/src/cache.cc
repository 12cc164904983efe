// The activation cache as tensorkey.ActivationCache (python/tensorkey/_cache.py) builds on it.
#include <tensorkey/cache.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
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
#include "writable.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

std::uint64_t scope_of(nb::handle scope, const char* where) {
  return scope_id(key_options(scope, nb::none(), false, where).scope);
}

std::size_t memory_of(std::int64_t memory) { return memory < 0 ? 0 : std::size_t(memory); }

// Below memory a call may wait for a disk or for another process.
using MaybeRelease = std::optional<nb::gil_scoped_release>;
void release_for_store(const ActivationCache& cache, MaybeRelease& release) {
  if (cache.has_store()) release.emplace();
}

void make(ActivationCache* self, std::int64_t memory, double ttl, std::string disk,
          std::uint64_t disk_limit, std::size_t index_limit, unsigned mode, bool allow_network,
          double lease_timeout, std::string pack, nb::handle secret) {
  CacheOptions options{.memory = memory_of(memory),
                       .ttl = ttl,
                       .disk = std::move(disk),
                       .disk_limit = disk_limit,
                       .index_limit = index_limit,
                       .mode = mode,
                       .allow_network = allow_network,
                       .lease_timeout = lease_timeout,
                       .pack = std::move(pack)};
  const KeyOptions keyed = key_options(nb::bytes("", 0), secret, false, "ActivationCache");
  if (keyed.secret) std::ranges::copy(*keyed.secret, options.secret.emplace().begin());
  const nb::gil_scoped_release release;
  new (self) ActivationCache(options);
}

std::optional<SharedEntry> get(ActivationCache& cache, const Key& key) {
  EntryPtr entry;
  {
    MaybeRelease release;
    release_for_store(cache, release);
    entry = cache.find(key);
  }
  if (!entry) return std::nullopt;
  return SharedEntry{std::move(entry)};
}

nb::list get_many(ActivationCache& cache, const std::vector<Key>& keys) {
  std::vector<EntryPtr> entries(keys.size());
  {
    MaybeRelease release;
    release_for_store(cache, release);
    cache.find(keys, entries);
  }
  nb::list result;
  for (EntryPtr& entry : entries) {
    if (entry) {
      result.append(SharedEntry{std::move(entry)});
    } else {
      result.append(nb::none());
    }
  }
  return result;
}

std::size_t put_many(ActivationCache& cache, const std::vector<Key>& keys, nb::handle rows,
                     double seconds, nb::handle scope) {
  const std::uint64_t id = scope_of(scope, "ActivationCache.put_many");
  const Borrowed borrowed(rows.ptr());
  const nb::gil_scoped_release release;
  return cache.insert_rows(keys, borrowed.view(), seconds, id);
}

bool read(ActivationCache& cache, const Key& key, nb::handle destination) {
  const Writable out(destination);
  MaybeRelease release;
  release_for_store(cache, release);
  return cache.read(key, out.bytes());
}

std::vector<bool> read_many(ActivationCache& cache, const std::vector<Key>& keys,
                            nb::handle destination) {
  const Writable out(destination);
  const auto found = std::make_unique<bool[]>(keys.size());
  {
    MaybeRelease release;
    release_for_store(cache, release);
    cache.read(keys, out.bytes(), {found.get(), keys.size()});
  }
  return std::vector<bool>(found.get(), found.get() + keys.size());
}

// In slices, so that Ctrl-C ends it.
bool flush(ActivationCache& cache, std::optional<double> timeout) {
  using Clock = std::chrono::steady_clock;
  constexpr double kSlice = 0.1;
  const Clock::time_point start = Clock::now();
  const nb::gil_scoped_release release;
  for (;;) {
    const std::chrono::duration<double> past = Clock::now() - start;
    const double left = timeout ? *timeout - past.count() : kSlice;
    if (cache.flush(std::clamp(left, 0.0, kSlice))) return true;
    if (left <= 0) return false;
    check_signals();
  }
}

std::size_t pack(ActivationCache& cache, const std::string& path, nb::handle scope) {
  std::optional<std::uint64_t> id;
  if (!scope.is_none()) id = scope_of(scope, "ActivationCache.pack");
  const nb::gil_scoped_release release;
  return cache.pack(path, id);
}

bool put(ActivationCache& cache, const Key& key, nb::handle value, double seconds,
         nb::handle scope) {
  const std::uint64_t id = scope_of(scope, "ActivationCache.put");
  const BorrowedValue borrowed(value, "ActivationCache.put");
  const MaybeReleaseGil release(cache.has_store() ? kReleaseGilBytes : borrowed.bytes());
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
  EntryPtr entry;
  {
    MaybeRelease release;
    release_for_store(cache, release);
    entry = cache.find(key);
  }
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
  const MaybeReleaseGil release(cache.has_store() ? kReleaseGilBytes : bytes.size());
  return cache.load(bytes, id, options.secret);
}

nb::list snapshot(const ActivationCache& cache) {
  nb::list entries;
  for (const EntryInfo& info : cache.snapshot()) {
    entries.append(nb::make_tuple(info.key, info.bytes, info.seconds, info.pinned));
  }
  return entries;
}

nb::object to_dict(const std::optional<DiskStats>& stats) {
  if (!stats) return nb::none();
  nb::dict result;
  result["state"] = stats->state;
  result["bound"] = stats->bound;
  result["bytes"] = stats->bytes;
  result["entries"] = stats->entries;
  result["index_bound"] = stats->index_bound;
  result["index_bytes"] = stats->index_bytes;
  result["hits"] = stats->hits;
  result["misses"] = stats->misses;
  result["insertions"] = stats->insertions;
  result["inserted_bytes"] = stats->inserted_bytes;
  result["written_bytes"] = stats->written_bytes;
  result["rejections"] = stats->rejections;
  result["dropped"] = stats->dropped;
  result["evictions"] = stats->evictions;
  result["corrupt"] = stats->corrupt;
  result["stale"] = stats->stale;
  result["expired"] = stats->expired;
  result["errors"] = stats->errors;
  result["lease_waits"] = stats->lease_waits;
  result["lease_timeouts"] = stats->lease_timeouts;
  result["rebuilds"] = stats->rebuilds;
  return result;
}

CacheStats unlocked_stats(const ActivationCache& cache) {
  MaybeRelease release;
  release_for_store(cache, release);
  return cache.stats();
}

nb::dict stats(const ActivationCache& cache) {
  const CacheStats stats = unlocked_stats(cache);
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
  result["stored_hits"] = stats.stored_hits;
  result["distinct"] = stats.distinct;
  result["disk"] = to_dict(stats.disk);
  result["pack"] = to_dict(stats.pack);
  return result;
}

}  // namespace

void init_cache(nb::module_& m) {
  using Self = ActivationCache;
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Self>(m, "ActivationCache", "What tensorkey.ActivationCache is made of.")
      .def("__init__", &make, "memory"_a, "ttl"_a, "disk"_a, "disk_limit"_a, "index_limit"_a,
           "mode"_a, "allow_network"_a, "lease_timeout"_a, "pack"_a, "secret"_a.none())
      .def("get", &get, "key"_a,
           "Return the entry under a key, or None. It counts as a hit or a miss.")
      .def("get_many", &get_many, "keys"_a,
           nb::sig("def get_many(self, keys: collections.abc.Sequence[Key]) -> "
                   "list[Entry | None]"),
           "Return the entries under several keys, None where there is none: one call for a batch\n"
           "takes a fraction of what a call a key does, of what is on disk above all.")
      .def("read", &read, "key"_a, "destination"_a,
           nb::sig("def read(self, key: Key, destination: object) -> bool"),
           "Copy the values of the first tensor into a writable, C-contiguous buffer.\n\n"
           "False if there is no such entry, or if its values are of another size or compressed;\n"
           "`destination` may have been written to then. From disk no copy is made in between.")
      .def("read_many", &read_many, "keys"_a, "destination"_a,
           nb::sig("def read_many(self, keys: collections.abc.Sequence[Key], "
                   "destination: object) -> list[bool]"),
           "Copy the values of several entries into the rows of a table, such as a NumPy array of\n"
           "shape (len(keys), ...): what read() does for each of them. A row whose flag is False\n"
           "may have been written to.")
      .def("put", &put, "key"_a, "value"_a.none(), "seconds"_a = 0.0, "scope"_a = nb::bytes("", 0),
           nb::sig("def put(self, key: Key, value: object, seconds: float = 0.0, "
                   "scope: bytes | str = b'') -> bool"),
           "Store a copy of a tensor, of a dict of tensors or of a list of tensors.\n\n"
           "A key that is there already keeps its entry: equal keys have equal values. `seconds`\n"
           "is what it cost to compute, and decides what is worth keeping; `scope` is what\n"
           "purge() finds it by. False if it was not worth its room.")
      .def("put_many", &put_many, "keys"_a, "rows"_a, "seconds"_a = 0.0,
           "scope"_a = nb::bytes("", 0),
           nb::sig("def put_many(self, keys: collections.abc.Sequence[Key], rows: object, "
                   "seconds: float = 0.0, scope: bytes | str = b'') -> int"),
           "Store row i of a tensor under keys[i], each as an entry of its own; return how many\n"
           "were worth their room. `seconds` is what each row took.")
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
      .def("__contains__", &Self::contains, "key"_a, Unlocked())
      .def("__len__", [](const Self& self) { return unlocked_stats(self).entries; })
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
      .def("flush", &flush, "timeout"_a.none() = nb::none(),
           "Wait until all that was stored is on disk, at most `timeout` seconds; False if it is\n"
           "not. A clean exit does so by itself.")
      .def("refresh", &Self::refresh, Unlocked(),
           "Look now at what other processes have stored, instead of within some milliseconds.")
      .def("pack", &pack, "path"_a, "scope"_a.none() = nb::none(),
           nb::sig("def pack(self, path: str, scope: bytes | str | None = None) -> int"))
      .def("pin", &Self::pin, "key"_a, Unlocked(),
           "Keep an entry whatever happens; False if it is not there.")
      .def("unpin", &Self::unpin, "key"_a, Unlocked(), "Let a pinned entry go again.")
      .def(
          "resize", [](Self& self, std::int64_t memory) { self.resize(memory_of(memory)); },
          "memory"_a, Unlocked())
      .def_prop_ro("has_store", &Self::has_store, "Whether there is a tier below memory.")
      .def("infos", &snapshot, nb::sig("def infos(self) -> list[tuple[Key, int, float, bool]]"))
      .def("counters", &stats, nb::sig("def counters(self) -> dict[str, typing.Any]"))
      .def("reset_stats", &Self::reset_stats, Unlocked(), "Set the counters to zero.")
      .def("trace", &Self::trace, "path"_a, "limit"_a, Unlocked());
}

}  // namespace tensorkey::python
