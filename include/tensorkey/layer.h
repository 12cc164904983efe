// The engine of a cached layer, shared by all frontends: how a batch is answered, in chunks of how
// many rows misses run, whether rows may be cached one by one at all, and whether hits are true.
// It knows no framework: a frontend lends a LayerRunner, which runs the layer on rows of its batch.
//
//   LayerEngine engine(std::make_shared<ActivationCache>(), {.frontend = "torch"});
//   LayerAnswer answer = engine.answer({.members = members, .about = about, .weights = weights},
//                                      runner);
//   for each leaf i of answer.leaves(): allocate its shape and dtype
//   answer.assemble(outs);                      // rows in the order of the batch
//   answer.finish(seconds_of_the_call);         // what it took, for stats and for `bypass`
//
// *Scope.* Rows are looked up under BLAKE3 of the canonical encoding (docs/key_format.md) of
//
//   ("tensorkey layer", 2, about, weights, chunk)
//
// `about` is the digest of what the answer depends on besides rows and weights: frontend, method,
// code, environment, plain arguments, a codec that is lossy; `weights` that of the contents of
// parameters and buffers.
//
// *Plan.* What the probe finds (chunk, clean or refused) belongs to `about`, the dtypes and shapes
// of a row. It is stored in the cache, so that all processes of a directory follow one; a chunk of
// one row wins. A shape of rows that is new under a known `about` gets the short form: its first
// chunk of misses runs twice, rotated by one slot.
//
// *Form.* How the leaves make up the layer's own output (a named tuple, a dict) is the frontend's:
// bytes that it gives with the first output and gets back with every answer. Leaves that are the
// same for every row are kept once, with the form, under the scope.
//
// A LayerEngine is thread-safe; a LayerAnswer belongs to one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <tensorkey/bypass.h>
#include <tensorkey/cache.h>
#include <tensorkey/codec.h>
#include <tensorkey/export.h>
#include <tensorkey/key.h>
#include <tensorkey/memo.h>

namespace tensorkey {

// The output of one run, on the host. The views live as long as it does.
class TENSORKEY_EXPORT LayerOutput {
 public:
  virtual ~LayerOutput() = default;
  // All tensors of the output, in the order of its form. Each has a row for each row that was run,
  // or is the same for every row: which, is found out by runs of two sizes.
  [[nodiscard]] virtual std::span<const TensorView> leaves() const = 0;
  // Names a leaf in messages: "last_hidden_state", "[0]".
  [[nodiscard]] virtual std::string path(std::size_t leaf) const = 0;
  // How the output is made of its leaves. Equal for all runs of one plan, whatever the rows and
  // their number.
  [[nodiscard]] virtual std::string form() const = 0;
  // What the layer took, copying of inputs and outputs left out.
  [[nodiscard]] virtual double seconds() const = 0;

 protected:
  LayerOutput() = default;
  LayerOutput(const LayerOutput&) = default;
  LayerOutput& operator=(const LayerOutput&) = default;
};

// The layer, as one call sees it. Called by the thread of the call alone; what it throws passes
// through answer() unchanged, and to the threads that wait for the same rows.
class TENSORKEY_EXPORT LayerRunner {
 public:
  virtual ~LayerRunner() = default;

  // These positions will be asked for by run(), before anything else is: a batch that is fetched
  // on demand is fetched here. Positions are distinct and ascending. Called several times in a call
  // if more is asked for; what was prepared stays.
  virtual void prepare(std::span<const std::int64_t> positions) { static_cast<void>(positions); }
  // Runs the layer on copies of these rows of the batch in fresh memory. Positions may repeat.
  // Throws LayerBypassed for a chunk that is too large for this machine.
  virtual std::unique_ptr<LayerOutput> run(std::span<const std::int64_t> positions) = 0;
  // Content keys of these rows, with no scope: what is stored beside a caller's own key.
  virtual std::vector<Key> input_keys(std::span<const std::int64_t> positions) {
    static_cast<void>(positions);
    return {};
  }

  // For the probe. Names of buffers and attributes of the layer that changed since the last call.
  virtual std::vector<std::string> changes() = 0;
  // Puts buffers back as they were at the beginning.
  virtual void restore() = 0;
  // The random states that the layer may draw from, comparable as bytes.
  virtual std::string random_state() = 0;
  virtual void set_random_state(std::string_view state) = 0;

  // Called ten times a second while answer() waits for other threads; may throw.
  virtual void poll() {}

 protected:
  LayerRunner() = default;
  LayerRunner(const LayerRunner&) = default;
  LayerRunner& operator=(const LayerRunner&) = default;
};

// The call cannot be answered from the cache; the layer is to run on the whole batch, and the text
// says why. No failure of anything.
class TENSORKEY_EXPORT LayerBypassed : public std::exception {
 public:
  // for_good: so it will be for every other call of the plan, which then need not try.
  explicit LayerBypassed(std::string why, bool for_good = false)
      : why_(std::move(why)), for_good_(for_good) {}
  [[nodiscard]] const char* what() const noexcept override { return why_.c_str(); }
  [[nodiscard]] bool for_good() const noexcept { return for_good_; }

 private:
  std::string why_;
  bool for_good_;
};

// The runner was stopped from outside, by Ctrl-C say: no failure of the layer. Whoever waits for
// rows of the batch computes them himself.
class TENSORKEY_EXPORT LayerAbandoned : public std::exception {
 public:
  explicit LayerAbandoned(std::exception_ptr cause) noexcept { cause_.swap(cause); }
  [[nodiscard]] const char* what() const noexcept override { return "the layer was stopped"; }
  [[nodiscard]] const std::exception_ptr& cause() const noexcept { return cause_; }

 private:
  std::exception_ptr cause_;
};

// What the probe found.
struct Verdict {
  std::uint32_t chunk = 1;
  bool refused = false;  // rows must not be cached one by one
  bool complete = true;  // false while neighbours could not be measured: only one different row
  std::string text;      // the evidence, for people
};

struct LayerOptions {
  std::uint32_t chunk = 0;        // rows that run together: 1 or a multiple of 32; 0: "auto", 32 if
                                  // the first call has at least 16 rows, else 1
  bool rows_are_batches = false;  // the caller makes one row of a whole input: chunk 1, the probe
                                  // looks at the layer's own state alone, and every leaf of an
                                  // output is one row, its first dim 1
  bool probe = true;
  bool accept_slot = false;  // bits="slot": a row's bits may depend on its place in the chunk
  double verify = 0;         // share of hits that is computed again and compared
  double tolerance = 0;      // absolute difference that verify accepts; 0: none, bitwise
  Codec codec = Codec::kRaw;
  BypassMode bypass = BypassMode::kAuto;
};

// A call. Borrowed for as long as answer() runs; `members` also while the LayerAnswer lives.
struct LayerCall {
  std::span<const TupleMember> members = {};  // rows by content ...
  std::span<const OwnId> ids = {};            // ... or, if there are any, by the caller's own keys
  Digest about{};
  Digest weights{};
  bool pending = false;  // the weights were not read in this call: see LayerEngine::confirm
  std::optional<std::uint64_t> epoch = std::nullopt;  // as it was before they were looked at
  bool vouched = false;  // the runner gives stored answers, so there is nothing to probe
  std::optional<std::span<const std::uint8_t, 32>> secret = std::nullopt;
};

// What verify found in hits that were computed again.
struct Deviation {
  std::uint64_t rows = 0;  // of them different
  double largest = 0;      // absolute difference; infinity for other than numbers
  std::string where;       // path of the leaf
};

// What an output leaf looks like for the whole batch.
struct LeafShape {
  DType dtype = DType::kUInt8;
  std::vector<std::int64_t> shape;  // the batch's first dim included where it is by row
  bool by_row = true;
};

class LayerEngine;
class LayerTask;
struct TaskOptions;

class TENSORKEY_EXPORT LayerAnswer {
 public:
  LayerAnswer(LayerAnswer&&) noexcept;
  LayerAnswer& operator=(LayerAnswer&&) noexcept;
  ~LayerAnswer();

  [[nodiscard]] std::size_t rows() const noexcept;
  [[nodiscard]] std::string_view form() const noexcept;
  [[nodiscard]] std::span<const LeafShape> leaves() const noexcept;
  // Rows that were not run for this call: found, or computed by others, or equal to another one.
  [[nodiscard]] std::uint64_t hits() const noexcept;
  [[nodiscard]] std::uint64_t rows_run() const noexcept;  // padding included
  [[nodiscard]] double seconds_layer() const noexcept;    // in running them
  [[nodiscard]] const Deviation& deviation() const noexcept;

  // Writes leaf i in C order into outs[i]; sizes are those of leaves(). Throws kInvalidArgument
  // otherwise, and LayerBypassed if the rows differ in shape and so make no tensor.
  void assemble(std::span<const std::span<std::byte>> outs) const;
  // Reports the call to the engine: seconds since it began, in all.
  void finish(double seconds);

 private:
  friend class LayerEngine;
  struct Impl;
  explicit LayerAnswer(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

// Beside MemoStats.
struct LayerStats {
  std::uint64_t probe_runs = 0;
  std::uint64_t probe_rows = 0;
  std::uint64_t verified = 0;   // hits computed again
  std::uint64_t deviating = 0;  // of them different
  double largest_deviation = 0;
  std::uint64_t pending = 0;  // rows not yet confirmed
  std::uint64_t dropped_pending = 0;
  double seconds_frontend = 0;     // of calls, beside the layer and the parts of MemoStats
  std::optional<Verdict> verdict;  // of the last call; none yet
};

class TENSORKEY_EXPORT LayerEngine {
 public:
  // Several engines may share a cache. Throws kInvalidArgument for options out of range.
  LayerEngine(std::shared_ptr<ActivationCache> cache, const LayerOptions& options);
  ~LayerEngine();
  LayerEngine(const LayerEngine&) = delete;
  LayerEngine& operator=(const LayerEngine&) = delete;

  // Answers a batch: looks up, probes and runs what is needed, stores, waits for rows of other
  // threads and processes, verifies. Throws LayerBypassed where the layer should run without the
  // cache; kUnsupported, with the evidence, at the first call of a layer that the probe refuses;
  // kInvalidArgument, with the leaf's path, for an output that has neither a row for each input row
  // nor the same value for all of them, where nothing was answered before (else LayerBypassed); and
  // what the runner throws.
  [[nodiscard]] LayerAnswer answer(const LayerCall& call, LayerRunner& runner);

  // The same for a layer that runs inside a graph: see layer_task.h. The call is by content and not
  // pending. Throws as answer() does.
  [[nodiscard]] LayerTask begin(const LayerCall& call, const TaskOptions& options);
  // In chunks of how many rows such a graph should run, for batches of `rows` rows (0: not known):
  // what is known of the plan, or what is asked. The data of the members are not looked at, nor
  // their first dims. Throws LayerBypassed if the probe has refused the layer.
  [[nodiscard]] std::uint32_t task_chunk(const LayerCall& call, std::size_t rows);

  // Positions of rows that answer() would have to run, of equal ones the first, and why as far as
  // this process knows; neither counted nor claimed.
  [[nodiscard]] std::vector<MissingRow> missing(const LayerCall& call);

  // Rows computed in pending calls stay in this process until it is known under which weights they
  // were computed: confirm() offers them to the tiers below memory, drop_pending() removes them.
  // Returns their number. pending_full(): it is time for one of them.
  std::size_t confirm();
  std::size_t drop_pending();
  [[nodiscard]] bool pending_full() const noexcept;
  // How often pending rows were dropped. A frontend with threads asks before it looks at the
  // weights and gives it to the call: what another thread finds out meanwhile then counts.
  [[nodiscard]] std::uint64_t epoch() const noexcept;

  // The scope under which rows of this call are, if their plan is known to this engine.
  [[nodiscard]] std::optional<Digest> scope(const LayerCall& call) const;
  // Drops the entries of all scopes that this engine has used, not what the probe found; returns
  // their number.
  std::size_t clear();

  [[nodiscard]] Bypass& bypass() noexcept;
  [[nodiscard]] Memo& memo() noexcept;
  [[nodiscard]] ActivationCache& cache() const noexcept;
  [[nodiscard]] LayerStats stats() const;
  // What might help, in words: see hints.h.
  [[nodiscard]] std::vector<std::string> hints() const;
  void reset_stats();

 private:
  friend class LayerAnswer;
  friend class LayerTask;
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace tensorkey
