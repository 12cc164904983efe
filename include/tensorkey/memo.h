// The memo engine: a batch of rows goes in, the rows seen before are read, the others are listed
// for the caller to compute, and the answer is assembled in the order of the batch. It knows no
// framework: a frontend converts, runs its layer on the missing rows, and converts back.
//
//   Memo memo(std::make_shared<ActivationCache>());
//   MemoBatch batch = memo.lookup(members, {.scope = fingerprint});
//   do {
//     for (std::size_t first = 0; first < batch.missing().size(); first += 32)
//       batch.insert(first, 32, outputs of the rows at batch.missing()[first ...], seconds);
//   } while (batch.wait() != MemoBatch::Wait::kDone);  // rows that other threads compute
//   batch.assemble(outs);                       // rows() rows, hits and computed ones, in order
//
// Memo is thread-safe; a MemoBatch belongs to one thread. Rows are told apart by their tuple keys
// (or content keys, for one tensor), so the promise is that of keys: 128-bit collision resistance.
// Each missing row is computed by one thread at a time: the batch that lists it leads, the others
// wait for it. A batch that is dropped gives up what it leads, and who waits computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <tensorkey/cache.h>
#include <tensorkey/entry.h>
#include <tensorkey/export.h>
#include <tensorkey/key.h>
#include <tensorkey/view.h>

namespace tensorkey {

// hits + misses == lookups, always.
struct MemoStats {
  std::uint64_t batches = 0;
  std::uint64_t lookups = 0;     // rows asked for
  std::uint64_t hits = 0;        // rows that need not be run
  std::uint64_t duplicates = 0;  // of the hits, those answered by another row of their own batch
  std::uint64_t waits = 0;       // of the hits, those that another thread was computing
  std::uint64_t misses = 0;      // distinct rows to be run: the sum of the reasons below
  std::uint64_t misses_new = 0;  // not seen before, as far as the policy remembers
  std::uint64_t misses_evicted = 0;
  std::uint64_t misses_expired = 0;
  std::uint64_t rejections = 0;   // computed, not stored
  std::uint64_t padded_rows = 0;  // rows run only to fill a chunk
  std::uint64_t bytes_read = 0;   // of answers that came from the cache
  double seconds_saved = 0;       // what the hits cost when they were computed
  double seconds_spent = 0;       // in computing misses, as told to insert()
  double seconds_digest = 0;      // in making keys
  double seconds_lookup = 0;      // in finding entries
  double seconds_insert = 0;      // in storing entries
  double seconds_copy = 0;        // in assembling answers
};

// A row that is in no tier.
struct MissingRow {
  enum class Why : std::uint8_t {
    kNew,      // not seen before, as far as the policy remembers
    kEvicted,  // seen before: evicted, refused or removed since
    kExpired,  // older than ttl
  };
  std::int64_t position = 0;
  Why why = Why::kNew;

  friend bool operator==(const MissingRow&, const MissingRow&) = default;
};

class Memo;

class TENSORKEY_EXPORT MemoBatch {
 public:
  MemoBatch(MemoBatch&&) noexcept;
  MemoBatch& operator=(MemoBatch&&) noexcept;
  ~MemoBatch();

  [[nodiscard]] std::size_t rows() const noexcept;

  // Position in the batch of each row to compute: the first of each distinct key, ascending. Rows
  // that another thread computes are not listed. Valid until wait().
  [[nodiscard]] std::span<const std::int64_t> missing() const noexcept;

  // A row that is known (a hit, or one inserted): it tells dtype and shape. Null if there is none.
  [[nodiscard]] const Entry* example() const noexcept;

  // outputs[k][j] is leaf k of the answer to row missing()[first + j], for j < count; an output may
  // have more rows (padding). They are copied, kept for assemble(), and offered to the store;
  // seconds is the time the whole chunk took. Throws kInvalidArgument unless each output has rank 1
  // or more and count rows, and unless rows have the leaves, dtypes and shapes of those already
  // known. A row may have no leaf at all.
  // `inputs`, of a batch looked up by the caller's own keys: content keys of the `count` rows, kept
  // with the entries; or empty.
  void insert(std::size_t first, std::size_t count, std::span<const TensorView> outputs,
              double seconds, std::span<const Key> inputs = {});

  // The computation failed: who waits for rows of this batch gets `error`, nothing is stored, and
  // the next caller tries again. A batch that is dropped instead hands its rows over to who waits.
  void fail(const std::exception_ptr& error) noexcept;

  // Waits for the rows that other threads compute, at most `seconds` (negative: for ever). kDone:
  // all rows are known. kMore: missing() lists rows that others gave up; compute them and wait
  // again. kTimeout: call again. Throws what the other's computation threw. REQUIRES: all rows
  // listed so far were inserted.
  enum class Wait : std::uint8_t { kDone, kMore, kTimeout };
  Wait wait(double seconds = -1);

  // Writes rows() * bytes-of-a-row bytes of leaf k into outs[k]. Throws kInvalidArgument if
  // a missing row was not inserted, if rows differ in leaves, dtype or shape, or unless each out
  // has exactly the size.
  void assemble(std::span<const std::span<std::byte>> outs) const;

  // The same for the rows that are known; the others are left alone. Nothing is written, whatever
  // the sizes, if none is.
  void read(std::span<const std::span<std::byte>> outs) const;

  // Whether a row was found or inserted.
  [[nodiscard]] bool is_known(std::size_t row) const noexcept;
  // The first row of the batch that is equal to this one.
  [[nodiscard]] std::int64_t first_of(std::size_t row) const noexcept;
  // The entry of a row of the batch. REQUIRES: it is known.
  [[nodiscard]] const Entry& entry(std::size_t row) const noexcept;
  // Whether the row was not for this batch to compute. A row that another one of the batch answers
  // is as that one.
  [[nodiscard]] bool was_hit(std::size_t row) const noexcept;

 private:
  friend class Memo;
  struct Impl;
  explicit MemoBatch(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

struct MemoOptions {
  Codec codec = Codec::kRaw;  // how answers are kept; lossy ones are rounded before the first use
};

// Whether a batch computes what is missing as one of many: others wait for its rows, and it waits
// for theirs; or alone, so that rows may be computed twice.
enum class Flight : std::uint8_t { kShared, kAlone };

// What computed rows are kept for. Pending ones go to memory alone, where this process may hit
// them; settle() gives them to the tiers below memory, or takes them back.
enum class Keep : std::uint8_t { kNow, kPending };

class TENSORKEY_EXPORT Memo {
 public:
  // Several Memos may share a cache. Throws kInvalidArgument for a null one.
  explicit Memo(std::shared_ptr<ActivationCache> cache, const MemoOptions& options = {});
  ~Memo();
  Memo(const Memo&) = delete;
  Memo& operator=(const Memo&) = delete;

  // The members are tensors whose first dim is the batch: one makes content keys, several make
  // tuple keys. Throws as row_keys and tuple_row_keys do; kInvalidArgument if the batch sizes
  // differ.
  // `epoch`, of pending rows: epoch() as it was before it was looked at what the rows depend on.
  [[nodiscard]] MemoBatch lookup(std::span<const TupleMember> members, const KeyOptions& options,
                                 Keep keep = Keep::kNow,
                                 std::optional<std::uint64_t> epoch = std::nullopt,
                                 Flight flight = Flight::kShared);
  // The same for rows that have keys already, such as the caller's own.
  [[nodiscard]] MemoBatch lookup(std::span<const Key> keys, const KeyOptions& options,
                                 Keep keep = Keep::kNow,
                                 std::optional<std::uint64_t> epoch = std::nullopt);
  // The first row of each distinct key that is in no tier, ascending: neither counted nor claimed.
  // Keys have scope and secret in them.
  [[nodiscard]] std::vector<MissingRow> missing(std::span<const Key> keys) const;

  // Ends the wait of pending rows: true offers them to the tiers below memory, false removes them
  // from memory too. Returns their number.
  std::size_t settle(bool valid);
  // How often pending rows were removed: those of an earlier epoch answer their own batch alone.
  [[nodiscard]] std::uint64_t epoch() const noexcept;
  [[nodiscard]] std::size_t pending() const;
  // Whether it is time to settle: 64 MiB of entries wait for a tier below memory, or 2^20 keys for
  // none. Rows computed beyond twice that answer their own batch alone.
  [[nodiscard]] bool pending_full() const noexcept;

  [[nodiscard]] MemoStats stats() const;
  void reset_stats();
  [[nodiscard]] ActivationCache& cache() const noexcept;

 private:
  friend class MemoBatch;
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace tensorkey
