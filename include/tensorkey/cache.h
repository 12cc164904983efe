// The activation cache: entries under keys, never more bytes than its bound, the most useful ones
// kept, and one computation for each missing key however many threads ask for it.
//
//   ActivationCache cache({.memory = std::size_t{2} << 30});
//   EntryPtr entry = cache.get_or_compute(key, [&] { return make_entry(...); });
//   if (EntryPtr known = cache.find(key)) use(known->tensor(0).data);
//
// All calls are thread-safe; hits take no exclusive lock. A miss is a null pointer. The bound
// covers values and metadata, the index and the policy's own memory, and entries that left the
// cache while a caller still holds them; room is reserved before a byte is written. What to keep is
// decided by the policy of docs/eviction.md, from how often an entry is asked for, what it costs to
// compute again and its size. After fork() the child goes on with what it inherited; computations
// of other threads are gone there, and whoever needs their keys computes them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <tensorkey/entry.h>
#include <tensorkey/entry_format.h>
#include <tensorkey/export.h>
#include <tensorkey/key.h>
#include <tensorkey/view.h>

namespace tensorkey {

struct CacheOptions {
  std::size_t memory = std::size_t{1} << 30;  // bytes; at least 64 KiB, or 0: no memory tier
  double ttl = 0;                             // seconds that an entry lives; 0: for ever

  // A directory that keeps entries over runs and shares them with other processes; empty: none.
  std::string disk = {};
  std::uint64_t disk_limit = 0;  // bytes, at least 4 MiB; 0: what the directory says, or 10 GiB
  std::size_t index_limit = std::size_t{256} << 20;  // bytes of memory for what is on disk where
  unsigned mode = 0;           // of the directory: 0 for its owner alone; 0770 for a team
  bool allow_network = false;  // also where SQLite is known to lose: see docs/sharing.md
  double lease_timeout = -1;   // seconds to wait for what another process computes; negative: as
                               // long as computing it would take, at most 0.5
  std::string pack = {};       // a file that pack() wrote, read beside the others; empty: none
  // 32 bytes: entries outside of the process are under a MAC that only their holders can make.
  std::optional<std::array<std::uint8_t, 32>> secret = std::nullopt;
};

// Of a tier below memory: the directory, or a pack.
struct DiskStats {
  std::string state = {};         // "" while all is well; "read-only", or why it cannot be used now
  std::uint64_t bound = 0;        // bytes of disk
  std::uint64_t bytes = 0;        // of them taken, the index and preallocated room included
  std::uint64_t entries = 0;      // of all processes
  std::uint64_t index_bound = 0;  // bytes of memory that the copy of the index may take
  std::uint64_t index_bytes = 0;
  std::uint64_t hits = 0;
  std::uint64_t misses = 0;
  std::uint64_t insertions = 0;      // entries written
  std::uint64_t inserted_bytes = 0;  // of them
  std::uint64_t written_bytes = 0;   // with what was written again so as to keep it
  std::uint64_t rejections = 0;      // not worth what would have to go for it
  std::uint64_t dropped = 0;  // accepted, but not written: queue full, disk full, store locked
  std::uint64_t evictions = 0;
  std::uint64_t corrupt = 0;  // records that were not whole: misses
  std::uint64_t stale = 0;    // records that were gone when they were to be read: misses
  std::uint64_t expired = 0;
  std::uint64_t errors = 0;       // calls of the system or of SQLite that failed
  std::uint64_t lease_waits = 0;  // keys that another process was computing
  std::uint64_t lease_timeouts = 0;
  std::uint64_t rebuilds = 0;  // of a damaged index
};

// One consistent snapshot; hits + misses() == lookups().
struct CacheStats {
  std::size_t bound = 0;     // bytes
  std::size_t bytes = 0;     // of them taken or reserved
  std::size_t metadata = 0;  // of these, what is not in entries: index and policy
  std::size_t pinned = 0;    // bytes of pinned entries
  std::size_t entries = 0;
  std::uint64_t hits = 0;
  std::uint64_t misses_new = 0;      // keys not seen before, as far as the policy remembers
  std::uint64_t misses_evicted = 0;  // keys seen before: evicted, refused or removed since
  std::uint64_t misses_expired = 0;  // there, but older than ttl
  std::uint64_t insertions = 0;
  std::uint64_t evictions = 0;
  std::uint64_t expirations = 0;
  std::uint64_t rejections = 0;   // computed, but not worth or not fitting the room: not stored
  std::uint64_t corrupt = 0;      // encoded entries that load() refused
  std::uint64_t waits = 0;        // of the hits, those that another thread was computing
  std::uint64_t stored_hits = 0;  // of the hits, those that came from disk or a pack
  std::uint64_t distinct = 0;     // keys ever asked for, estimated (HyperLogLog, about 1.6 %)
  std::optional<DiskStats> disk = std::nullopt;
  std::optional<DiskStats> pack = std::nullopt;

  [[nodiscard]] std::uint64_t misses() const noexcept {
    return misses_new + misses_evicted + misses_expired;
  }
  [[nodiscard]] std::uint64_t lookups() const noexcept { return hits + misses(); }
};

// An entry of a snapshot().
struct EntryInfo {
  Key key;
  std::uint64_t scope = 0;
  std::size_t bytes = 0;
  double seconds = 0;
  bool pinned = false;
};

// The number under which purge() finds the entries stored for a scope.
TENSORKEY_EXPORT std::uint64_t scope_id(std::string_view scope);

class TENSORKEY_EXPORT ActivationCache {
 public:
  // Throws kInvalidArgument for options out of range; kUnavailable, with the remedy, for
  // a directory that is refused or can neither be read nor made, and for a pack that cannot be
  // read; kCorruption for a file that is no pack.
  explicit ActivationCache(const CacheOptions& options = {});
  ~ActivationCache();
  ActivationCache(const ActivationCache&) = delete;
  ActivationCache& operator=(const ActivationCache&) = delete;

  // Lookups. They count as hits or misses.
  [[nodiscard]] EntryPtr find(const Key& key);
  // out[i] = find(keys[i]). Throws kInvalidArgument unless the sizes agree.
  void find(std::span<const Key> keys, std::span<EntryPtr> out);
  // Copies the values of the first tensor, if it is there and has exactly out.size() bytes: the
  // cheapest hit, no reference is taken. `out` is unspecified after false.
  bool read(const Key& key, std::span<std::byte> out);
  // The same for the rows of a table: found[i] = whether row i of `out`, which has keys.size() rows
  // of equal length, was read; it is unspecified if not. From disk each row is read in place.
  // Throws kInvalidArgument unless found.size() is keys.size() and out.size() a multiple of it.
  void read(std::span<const Key> keys, std::span<std::byte> out, std::span<bool> found);

  // Whether there is a tier below memory, so that calls may wait for a disk.
  [[nodiscard]] bool has_store() const noexcept;
  // Neither counted nor seen by the policy.
  [[nodiscard]] bool contains(const Key& key) const;

  // The entry as it is stored now; null if it was rejected. A key that is there already keeps its
  // entry: equal keys have equal values. Throws as make_entry does.
  EntryPtr insert(const EntryParts& parts, std::uint64_t scope = 0);

  // The same for the rows of a table: row i, a tensor without a name, under keys[i]; `seconds` is
  // what each took. Returns how many were accepted. Throws kInvalidArgument unless `rows` has rank
  // 1 or more and keys.size() rows, kUnsupported for dates.
  std::size_t insert_rows(std::span<const Key> keys, const TensorView& rows, double seconds = 0,
                          std::uint64_t scope = 0);

  // find(), or the entry that `compute` makes; it is called by one thread at a time for each key,
  // the others wait for it. It must not return null, and its entry must have this key. What it
  // throws reaches all who wait and is not stored; the next caller tries again. Throws
  // kInvalidArgument if compute asks for its own key. While it waits it calls poll() ten times a
  // second, which may throw.
  EntryPtr get_or_compute(const Key& key, const std::function<EntryPtr()>& compute,
                          std::uint64_t scope = 0, const std::function<void()>& poll = {});

  // Inserts an entry from its bytes (docs/entry_format.md). Bytes that are no whole entry, or that
  // a holder of this secret did not write, are a counted refusal: false, and nothing is stored.
  // False also for an entry that is rejected.
  bool load(std::span<const std::byte> encoded, std::uint64_t scope = 0,
            const Secret& secret = std::nullopt);

  bool remove(const Key& key);             // whether it was there
  std::size_t purge(std::uint64_t scope);  // number of entries removed
  void clear();
  // A pinned entry is neither evicted nor does it expire. False if the key is not there.
  bool pin(const Key& key);
  bool unpin(const Key& key);
  // Evicts down to a smaller bound before it returns; what callers hold goes when they let go.
  void resize(std::size_t memory);

  // Whether all that was inserted is on disk, or was dropped, after at most `seconds`. A destructor
  // waits for it, too.
  bool flush(double seconds = std::numeric_limits<double>::infinity());
  // Looks now at what other processes have written, instead of within some milliseconds.
  void refresh();
  // Writes the entries of a scope, or all of them, into one sealed file that CacheOptions::pack
  // reads anywhere; returns their number. The file is made anew, readable by its owner alone.
  // Throws kExhausted and kIo, and kUnavailable for a directory that cannot be read to its end;
  // the file is then as it was.
  std::size_t pack(const std::string& path, std::optional<std::uint64_t> scope = std::nullopt);

  // What is in memory now, in no order.
  [[nodiscard]] std::vector<EntryInfo> snapshot() const;
  [[nodiscard]] CacheStats stats() const;
  void reset_stats();

  // Appends every access as a line "key size cost time" (docs/eviction.md) until the file has
  // `limit` bytes. The file is made anew, readable by its owner alone. Throws kIo if it cannot be
  // opened or is a link. An empty path ends the trace.
  void trace(const std::string& path, std::size_t limit = std::size_t{64} << 20);

 private:
  friend class Memo;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tensorkey
