// A tier below memory: where entries are kept that outlive a process or do not fit into it. The
// disk is one, a pack another; whoever adds a tier implements this and nothing else.
//
// No call throws for what the store meets: a bad entry is a miss, a store that is gone is a counted
// one, an entry that cannot be written is dropped and counted. All calls are thread-safe, and none
// waits for longer than it says. What a store that is only read leaves out does nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include <tensorkey/cache.h>
#include <tensorkey/entry.h>
#include <tensorkey/entry_format.h>
#include <tensorkey/key.h>

#include "base/function_ref.h"

namespace tensorkey::internal {

class Store {
 public:
  // take(i, parts, scope): the entry under keys[i], verified; `parts` is borrowed until it returns.
  using Take = FunctionRef<void(std::size_t, const EntryParts&, std::uint64_t)>;

  Store() = default;
  virtual ~Store() = default;
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Calls take for each key that is there, in any order.
  virtual void find(std::span<const Key> keys, const Secret& secret, Take take) = 0;
  // `out` has a row of equal length for each key. Where found[i] is false and there is an entry
  // whose first tensor is raw and as long as a row, its values become row i, and found[i] true; the
  // row is unspecified if not.
  virtual void read(std::span<const Key> keys, std::span<std::byte> out, std::span<bool> found,
                    const Secret& secret) = 0;
  [[nodiscard]] virtual bool contains(const Key& key) = 0;

  // Accepts entries that another thread writes; this process finds them from now on. Where too much
  // is waiting to be written, the call waits for at most `patience` seconds, then drops them. What
  // is there already is left as it is.
  virtual void put(std::span<const EntryPtr>, std::uint64_t /*scope*/, const Secret&,
                   double /*patience*/) {}
  // Writes entries; every process finds them when the call returns.
  virtual void publish(std::span<const EntryPtr>, std::uint64_t /*scope*/, const Secret&) {}
  virtual bool remove(const Key&) { return false; }
  virtual std::size_t purge(std::uint64_t /*scope*/) { return 0; }
  virtual void clear() {}
  // Whether everything that was accepted has been written or dropped, after at most `seconds`.
  virtual bool flush(double /*seconds*/) { return true; }
  // Looks now at what others have written, instead of within some milliseconds.
  virtual void refresh() {}
  // Tells that a key was found so often in a faster tier, and what its entry cost.
  virtual void touch(const Key&, double /*cost*/, double /*hits*/) {}

  // Unlike the others this throws, kUnavailable, for a store that cannot be read to its end.
  // Calls take for every entry of a scope, or of all scopes: the key, its bytes in the format of
  // entries, and when it was stored.
  using Export = FunctionRef<void(const Key&, std::uint64_t scope, std::int64_t stored,
                                  std::span<const std::byte> encoded)>;
  virtual void export_entries(const std::optional<std::uint64_t>& scope, Export take) = 0;

  [[nodiscard]] virtual DiskStats stats() = 0;
  virtual void reset_stats() = 0;

  // --- One computation over the processes that share the store; see Leases.

  // Whether there are others, so that leases are worth their cost.
  [[nodiscard]] virtual bool shared() { return false; }
  virtual void lease(std::span<const Key> keys, std::span<std::uint8_t> mine) {
    std::fill(mine.begin(), mine.begin() + static_cast<std::ptrdiff_t>(keys.size()), 1);
  }
  virtual void release(std::span<const Key>) noexcept {}
  [[nodiscard]] virtual bool distrusted(const Key&) const noexcept { return false; }
  virtual void distrust(const Key&) {}
};

}  // namespace tensorkey::internal
