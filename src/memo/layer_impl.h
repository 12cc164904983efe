// What a LayerEngine is made of: shared by how calls are answered (layer_answer.cc), how it is
// settled in what chunks a layer runs (layer_plan.cc), and the public face (layer.cc).
//
//   plan       for `about` and the dtypes and shapes of a row: what the probe found
//   placement  a plan under weights: the scope of the rows, the form of the output
//
// What threads share is immutable and replaced as a whole, or guarded by the engine's mutex, which
// is held for moments only: never while a layer runs or a store is asked.
#pragma once

#include <tensorkey/layer.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include <tensorkey/hints.h>

#include "base/fork.h"
#include "memo/layer_form.h"
#include "memo/layer_records.h"

namespace tensorkey {
namespace internal {

using Positions = std::vector<std::int64_t>;

// The dtypes and shapes of the rows of a call.
class Signature {
 public:
  explicit Signature(const LayerCall& call);
  [[nodiscard]] bool matches(const LayerCall& call) const noexcept;
  // Encoded canonically: ("own keys",), or for each member (dtype, parameters, dims).
  [[nodiscard]] const std::string& encoded() const noexcept { return encoded_; }

 private:
  struct Member {
    DType dtype;
    std::string params;
    std::vector<std::int64_t> dims;
  };
  bool own_;
  std::vector<Member> members_;
  std::string encoded_;
};

struct Decision {
  Verdict verdict = {};
  std::vector<std::uint8_t> by_row = {};
  std::string unfit = {};   // not empty: why no call can be answered
  bool fault = false;       // unfit because of an output that has neither rows nor one value
  bool short_form = false;  // the first chunk of misses is yet to run twice
  bool vouched = false;     // nothing was measured: the first call that is not is to be
};

struct Placement;

struct Plan {
  Plan(const Digest& the_about, Signature the_signature)
      : about(the_about), signature(std::move(the_signature)) {}

  const Digest about;
  const Signature signature;
  // Guarded by the engine's mutex.
  std::shared_ptr<const Decision> decision;  // null: not yet settled
  std::optional<std::thread::id> settler;
};

struct Placement {
  const std::shared_ptr<Plan> plan;
  const std::shared_ptr<const Decision> decision;
  const Digest weights;
  const Digest scope;
  // Guarded by the engine's mutex.
  std::shared_ptr<const Form> form = nullptr;  // null: not yet known
  bool form_pending = false;

  [[nodiscard]] std::string_view scope_bytes() const noexcept {
    return {reinterpret_cast<const char*>(scope.data()), scope.size()};
  }
};

inline double seconds_between(std::chrono::steady_clock::time_point from,
                              std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Whether chunks of a batch are not what the layer alone would run: see CallCosts.
[[nodiscard]] constexpr bool is_uneven(std::size_t rows, std::size_t chunk) noexcept {
  return chunk == 1 ? rows > 1 : rows % chunk != 0;
}

// Rows of a call. Throws LayerBypassed if it has none.
[[nodiscard]] std::size_t rows_of(const LayerCall& call);
// Their keys. Throws LayerBypassed if a tensor has none, and as own_keys() does.
[[nodiscard]] std::vector<Key> keys_of(const LayerCall& call, std::string_view scope);
[[nodiscard]] Digest scope_of(const Digest& about, const Digest& weights, std::uint32_t chunk);

class LayerCore;

// An answer in the making, then one.
struct AnswerState {
  explicit AnswerState(std::shared_ptr<LayerCore> the_core) : core(std::move(the_core)) {}

  std::shared_ptr<LayerCore> core;
  std::optional<MemoBatch> batch;
  std::shared_ptr<const Form> form;
  std::vector<LeafShape> leaves;
  Deviation deviation;
  std::uint64_t misses = 0;
  std::uint64_t rows_run = 0;
  double seconds_layer = 0;
  bool uneven = false;  // see CallCosts
  std::uint64_t rows_whole = 0;
  double seconds_whole = 0;
  double seconds_aside = 0;  // waiting for others, and once for a plan: no cost of a call
  std::uint64_t layer = 0;   // changes when the layer does
};

class LayerCore {
 public:
  using Clock = std::chrono::steady_clock;

  LayerCore(std::shared_ptr<ActivationCache> cache, const LayerOptions& options);

  // layer_answer.cc: false if the plan has changed meanwhile.
  [[nodiscard]] bool attempt(const LayerCall& call, LayerRunner& runner, AnswerState& answer);
  void observe(const AnswerState& answer, double seconds);

  // layer_plan.cc
  [[nodiscard]] std::shared_ptr<Placement> placement_of(const LayerCall& call, LayerRunner& runner,
                                                        AnswerState& answer);
  [[nodiscard]] std::shared_ptr<Placement> known_placement(const LayerCall& call);
  // Of a call in a graph, which cannot be called back. `probing`: what is decided is provisional.
  struct TaskPlacement {
    std::shared_ptr<Placement> placement;
    bool probing = false;
  };
  [[nodiscard]] TaskPlacement task_placement(const LayerCall& call, std::uint32_t asked,
                                             std::size_t leaves, std::size_t rows);
  // In place of the placement's decision, unless that has been replaced already.
  void decide(const Placement& placement, Decision decision);
  [[nodiscard]] std::uint32_t task_chunk(const LayerCall& call, std::size_t rows);
  void share(const Plan& plan, const Decision& decision, const Secret& secret, double seconds);
  [[noreturn]] void refuse(const Decision& decision);
  // What a process has stored of the plan of a call, if it can be followed.
  [[nodiscard]] bool nothing_missing(const LayerCall& call, const Decision& decision);
  [[nodiscard]] std::optional<Decision> stored(const LayerCall& call, std::uint32_t asked);
  // Of all placements, or of pending ones. REQUIRES: the mutex.
  void forget_forms(bool pending);
  // Of a chunk before anything is known.
  [[nodiscard]] std::uint32_t first_chunk(std::size_t rows, bool resolve);

  std::shared_ptr<ActivationCache> cache;
  const LayerOptions options;
  Memo memo;
  Records records;
  Bypass bypass;
  std::atomic<std::uint64_t> hits_seen{0};  // by verify: the seed of its choice

  // Guarded by mutex, which is the newest that a thread takes.
  struct KnownPlan {
    std::shared_ptr<Plan> plan;
    std::shared_ptr<Placement> latest;  // owns the plan too; null: none
  };
  std::vector<KnownPlan> plans;
  std::shared_ptr<Placement> last;
  std::vector<std::pair<Digest, std::shared_ptr<const Decision>>> proven;  // in full
  std::shared_ptr<const Decision> shown;
  std::uint32_t chunk = 0;  // 0: not yet resolved
  bool accepted = false;    // rows were cached for good reason: later refusals are no errors
  std::deque<std::uint64_t> scopes;
  std::unordered_set<std::uint64_t> scope_set;
  LayerStats stats;
  Passes passes;
  MemoStats observed;  // as of the last call: what came since then is the next one's
  ForkMutex mutex;

 private:
  [[nodiscard]] std::shared_ptr<Plan> plan_of(const LayerCall& call);
  [[nodiscard]] std::shared_ptr<Plan> plan_for(const LayerCall& call);
  [[nodiscard]] bool is_settled(const Decision* decision, const LayerCall& call,
                                std::size_t rows) const noexcept;
  void settle(Plan& plan, const LayerCall& call, LayerRunner& runner, std::size_t rows);
  [[nodiscard]] std::optional<Decision> find_out(Plan& plan, const LayerCall& call,
                                                 LayerRunner& runner, std::size_t rows);
  [[nodiscard]] Decision run_probe(LayerRunner& runner, const Positions& rows, std::uint32_t asked,
                                   bool leaves_only);
  [[nodiscard]] std::shared_ptr<Placement> place(const std::shared_ptr<Plan>& plan,
                                                 const Digest& weights);
  void replace(Plan& plan, Decision decision);
  void note_proven(const Plan& plan);
  void forget_settlers() noexcept;
};

}  // namespace internal

struct LayerAnswer::Impl : internal::AnswerState {
  using AnswerState::AnswerState;
};

struct LayerEngine::Impl : internal::LayerCore {
  using LayerCore::LayerCore;
};

}  // namespace tensorkey
