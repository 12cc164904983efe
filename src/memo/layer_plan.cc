// How it is settled in what chunks a layer runs: by what this engine knows, what other processes
// have stored, a probe, or, for another shape of rows, its short form.
#include <tensorkey/canonical.h>
#include <tensorkey/error.h>
#include <tensorkey/probe.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <unordered_set>

#include "memo/layer_impl.h"

namespace tensorkey {
namespace internal {
namespace {

constexpr std::size_t kProbeRows = 16;

// Positions of the first different rows, as many as the probe can use.
Positions different_rows(const LayerCall& call) {
  std::unordered_set<Key> seen;
  Positions rows;
  const std::vector<Key> keys = keys_of(call, {});
  for (std::size_t i = 0; i < keys.size() && rows.size() < kProbeRows; ++i) {
    if (seen.insert(keys[i]).second) rows.push_back(static_cast<std::int64_t>(i));
  }
  return rows;
}

std::span<const std::int64_t> row_dims(const TensorView& view) noexcept {
  return view.shape.empty() ? view.shape : view.shape.subspan(1);
}

std::string encode_dims(std::span<const std::int64_t> dims) {
  std::vector<std::string> items;
  for (const std::int64_t dim : dims) items.push_back(canonical::integer(dim));
  return canonical::tuple(items);
}

}  // namespace

Signature::Signature(const LayerCall& call) : own_(!call.ids.empty()) {
  std::vector<std::string> items;
  if (own_) items.push_back(canonical::text("own keys"));
  for (const TupleMember& member : call.members) {
    if (own_) break;
    const auto dims = row_dims(member.view);
    members_.push_back({.dtype = member.view.dtype,
                        .params = std::string(member.view.dtype_params),
                        .dims = {dims.begin(), dims.end()}});
    items.push_back(
        canonical::tuple({canonical::text(to_string(member.view.dtype)),
                          canonical::text(member.view.dtype_params), encode_dims(dims)}));
  }
  encoded_ = canonical::tuple(items);
}

bool Signature::matches(const LayerCall& call) const noexcept {
  if (own_ || !call.ids.empty()) return own_ && !call.ids.empty();
  return std::ranges::equal(
      members_, call.members, [](const Member& known, const TupleMember& member) {
        return known.dtype == member.view.dtype && known.params == member.view.dtype_params &&
               std::ranges::equal(known.dims, row_dims(member.view));
      });
}

std::size_t rows_of(const LayerCall& call) {
  std::size_t rows = call.ids.size();
  if (call.ids.empty()) {
    if (call.members.empty()) throw LayerBypassed("no tensor among the inputs");
    const TensorView& first = call.members[0].view;
    if (first.shape.empty()) throw LayerBypassed("an input of rank 0 has no rows");
    rows = static_cast<std::size_t>(std::max<std::int64_t>(first.shape[0], 0));
  }
  if (rows == 0) throw LayerBypassed("a batch of 0 rows");
  return rows;
}

std::vector<Key> keys_of(const LayerCall& call, std::string_view scope) {
  const KeyOptions options{.scope = scope, .secret = call.secret};
  std::vector<Key> keys(rows_of(call));
  if (!call.ids.empty()) {
    own_keys(call.ids, keys, options);
    return keys;
  }
  try {
    if (call.members.size() == 1) {
      row_keys(call.members[0].view, keys, options);
    } else {
      tuple_row_keys(call.members, keys, options);
    }
  } catch (const Error& error) {
    throw LayerBypassed(std::string("an input has no key: ") + error.what());
  }
  return keys;
}

Digest scope_of(const Digest& about, const Digest& weights, std::uint32_t chunk) {
  const std::string encoded = canonical::tuple(
      {canonical::text("tensorkey layer"), canonical::integer(2), canonical::bytes(about),
       canonical::bytes(weights), canonical::integer(chunk)});
  return blake3(std::as_bytes(std::span(encoded)));
}

namespace {

constexpr std::uint32_t kDefaultChunk = 32;  // the smallest size without scalar tails in float32
constexpr std::size_t kRowsForAChunk = 16;
constexpr const char* kUnproven = "unproven: probe=False";
constexpr const char* kVouched = "unproven: only stored answers so far";
constexpr std::size_t kMostPlans = 256;
constexpr std::size_t kMostScopes = std::size_t{1} << 16;
constexpr auto kPause = std::chrono::milliseconds(2);
constexpr auto kPoll = std::chrono::milliseconds(100);

Decision from(KnownVerdict known) {
  return {.verdict = std::move(known.verdict), .by_row = std::move(known.by_row)};
}

}  // namespace

std::uint32_t LayerCore::first_chunk(std::size_t rows, bool resolve) {
  if (options.rows_are_batches) return 1;
  if (options.chunk != 0) return options.chunk;
  const std::lock_guard lock(mutex);
  if (chunk != 0) return chunk;
  const std::uint32_t found = rows >= kRowsForAChunk ? kDefaultChunk : 1;
  if (resolve) chunk = found;
  return found;
}

// Refuses loudly at first; a layer that was accepted runs uncached where it is not.
void LayerCore::refuse(const Decision& decision) {
  bool quiet;
  {
    const std::lock_guard lock(mutex);
    quiet = accepted;
    shown = std::make_shared<const Decision>(decision);
  }
  if (!decision.unfit.empty()) {
    if (quiet || !decision.fault) throw LayerBypassed(decision.unfit, true);
    throw Error(ErrorCode::kInvalidArgument, decision.unfit);
  }
  if (quiet) throw LayerBypassed("refused by the probe: " + decision.verdict.text, true);
  throw Error(
      ErrorCode::kUnsupported,
      "[CachedLayer] the rows of this layer cannot be cached one by one: " + decision.verdict.text);
}

// Whether nothing more can be found out about a plan from this call.
bool LayerCore::is_settled(const Decision* decision, const LayerCall& call,
                           std::size_t rows) const noexcept {
  if (decision == nullptr) return false;
  if (!options.probe || call.vouched || !decision->unfit.empty() || decision->verdict.refused) {
    return true;
  }
  return !decision->vouched && (decision->verdict.complete || decision->short_form || rows < 2);
}

// REQUIRES: the mutex.
std::shared_ptr<Plan> LayerCore::plan_of(const LayerCall& call) {
  const auto found = std::ranges::find_if(plans, [&](const KnownPlan& known) {
    return known.plan->about == call.about && known.plan->signature.matches(call);
  });
  return found == plans.end() ? nullptr : found->plan;
}

// The same, made if there is none. REQUIRES: the mutex.
std::shared_ptr<Plan> LayerCore::plan_for(const LayerCall& call) {
  std::shared_ptr<Plan> plan = plan_of(call);
  if (plan) return plan;
  if (plans.size() >= kMostPlans) plans.clear();
  plan = std::make_shared<Plan>(call.about, Signature(call));
  plans.push_back({.plan = plan, .latest = nullptr});
  return plan;
}

// The placement of a settled plan. REQUIRES: the mutex.
std::shared_ptr<Placement> LayerCore::place(const std::shared_ptr<Plan>& plan,
                                            const Digest& weights) {
  const auto known = std::ranges::find(plans, plan, &KnownPlan::plan);
  if (known != plans.end() && known->latest && known->latest->weights == weights) {
    last = known->latest;
    return last;
  }
  const Digest scope = scope_of(plan->about, weights, plan->decision->verdict.chunk);
  last = std::make_shared<Placement>(
      Placement{.plan = plan, .decision = plan->decision, .weights = weights, .scope = scope});
  if (known != plans.end()) known->latest = last;
  const std::uint64_t id = scope_id(last->scope_bytes());
  if (scope_set.insert(id).second) scopes.push_back(id);
  if (scopes.size() > kMostScopes) {
    scope_set.erase(scopes.front());
    scopes.pop_front();
  }
  return last;
}

std::shared_ptr<Placement> LayerCore::known_placement(const LayerCall& call) {
  const std::lock_guard lock(mutex);
  const std::shared_ptr<Plan> plan = plan_of(call);
  return plan && plan->decision ? place(plan, call.weights) : nullptr;
}

std::shared_ptr<Placement> LayerCore::placement_of(const LayerCall& call, LayerRunner& runner,
                                                   AnswerState& answer) {
  const std::size_t rows = rows_of(call);
  std::shared_ptr<Plan> plan;
  {
    const std::lock_guard lock(mutex);
    if (last && last->weights == call.weights && last->plan->about == call.about &&
        is_settled(last->decision.get(), call, rows) && last->plan->signature.matches(call)) {
      return last;
    }
    plan = plan_for(call);
    if (is_settled(plan->decision.get(), call, rows)) return place(plan, call.weights);
  }
  const Clock::time_point start = Clock::now();
  settle(*plan, call, runner, rows);
  answer.seconds_aside += seconds_between(start, Clock::now());
  const std::lock_guard lock(mutex);
  return place(plan, call.weights);
}

// One thread at a time settles a plan; the others wait for it.
void LayerCore::settle(Plan& plan, const LayerCall& call, LayerRunner& runner, std::size_t rows) {
  Clock::time_point next_poll = Clock::now();
  for (;;) {
    {
      const std::lock_guard lock(mutex);
      if (is_settled(plan.decision.get(), call, rows)) return;
      if (!plan.settler) {
        plan.settler = std::this_thread::get_id();
        break;
      }
      if (*plan.settler == std::this_thread::get_id()) {
        throw LayerBypassed("the layer calls itself while it is probed");
      }
    }
    if (Clock::now() >= next_poll) {
      runner.poll();
      next_poll = Clock::now() + kPoll;
    }
    std::this_thread::sleep_for(kPause);
  }
  struct Done {
    ~Done() {
      const std::lock_guard lock(engine.mutex);
      plan.settler.reset();
    }
    LayerCore& engine;
    Plan& plan;
  } done{*this, plan};
  std::optional<Decision> found = find_out(plan, call, runner, rows);
  if (!found) return;
  const std::lock_guard lock(mutex);
  replace(plan, *std::move(found));
  note_proven(plan);
}

// REQUIRES: the mutex, and a decision.
void LayerCore::note_proven(const Plan& plan) {
  const Decision& decision = *plan.decision;
  if (decision.unfit.empty() && !decision.verdict.refused && decision.verdict.complete &&
      !decision.short_form && !decision.vouched) {
    accepted = true;
    if (proven.size() >= kMostPlans) proven.clear();
    proven.emplace_back(plan.about, plan.decision);
  }
}

// None if nothing more can be found out from this call.
std::optional<Decision> LayerCore::find_out(Plan& plan, const LayerCall& call, LayerRunner& runner,
                                            std::size_t rows) {
  const Positions different = different_rows(call);
  std::shared_ptr<const Decision> same_layer;
  std::shared_ptr<const Decision> before;
  {
    const std::lock_guard lock(mutex);
    before = plan.decision;
    for (const auto& [about, decision] : proven) {
      if (about == plan.about) same_layer = decision;
    }
  }
  if (before && !before->vouched && different.size() < 2) return std::nullopt;
  const std::uint32_t asked = first_chunk(rows, true);
  std::optional<Decision> known;
  if (options.probe) known = stored(call, asked);
  if (known && (known->verdict.complete || call.vouched || different.size() < 2)) return known;
  if (!options.probe || call.vouched) {
    Decision decision{.verdict = {.chunk = asked, .text = kUnproven}};
    if (same_layer) {
      decision.verdict.chunk = same_layer->verdict.chunk;
      decision.by_row = same_layer->by_row;
    } else if (!options.rows_are_batches) {
      decision = run_probe(runner, different, asked, true);
    }
    decision.vouched = call.vouched;
    if (call.vouched && decision.unfit.empty()) decision.verdict.text = kVouched;
    if (options.probe && decision.unfit.empty()) {  // others find the rows, and prove it
      decision.verdict.complete = false;
      share(plan, decision, call.secret, 0);
    }
    return decision;
  }
  const Decision* const unproven = before ? before.get() : known ? &*known : nullptr;
  if (unproven != nullptr && !unproven->verdict.refused && nothing_missing(call, *unproven)) {
    return before ? std::nullopt : known;
  }
  if (!before && !known && same_layer) {
    Decision decision{.verdict = same_layer->verdict, .by_row = same_layer->by_row};
    decision.short_form = true;
    return decision;
  }
  const Clock::time_point start = Clock::now();
  Decision decision = run_probe(runner, different, known ? known->verdict.chunk : asked, false);
  if (!decision.unfit.empty()) return decision;
  // Another process may have found out meanwhile.
  known = stored(call, asked);
  if (known && !decision.verdict.refused &&
      (known->verdict.refused || known->verdict.chunk < decision.verdict.chunk)) {
    if (known->verdict.complete || !decision.verdict.complete) return known;
    decision.verdict.chunk = known->verdict.chunk;
  }
  share(plan, decision, call.secret, seconds_between(start, Clock::now()));
  return decision;
}

// Whether all rows are there, so that nothing is to be run.
bool LayerCore::nothing_missing(const LayerCall& call, const Decision& decision) {
  const Digest scope = scope_of(call.about, call.weights, decision.verdict.chunk);
  const std::string_view bytes(reinterpret_cast<const char*>(scope.data()), scope.size());
  return memo.missing(keys_of(call, bytes)).empty();
}

std::optional<Decision> LayerCore::stored(const LayerCall& call, std::uint32_t asked) {
  std::optional<KnownVerdict> known =
      records.verdict(Records::verdict_place(call.about, Signature(call).encoded(), call.secret));
  if (!known || (known->slot_accepted && !options.accept_slot)) return std::nullopt;
  const std::uint32_t its = known->verdict.chunk;
  if (its != 1 && its != asked && (options.chunk != 0 || options.rows_are_batches)) {
    return std::nullopt;
  }
  return from(*std::move(known));
}

void LayerCore::share(const Plan& plan, const Decision& decision, const Secret& secret,
                      double seconds) {
  const auto place = Records::verdict_place(plan.about, plan.signature.encoded(), secret);
  records.store(place,
                {.verdict = decision.verdict,
                 .by_row = decision.by_row,
                 .slot_accepted = options.accept_slot && decision.verdict.chunk != 1},
                seconds);
}

Decision LayerCore::run_probe(LayerRunner& runner, const Positions& rows, std::uint32_t asked,
                              bool leaves_only) {
  runner.prepare(rows);
  try {
    ProbeResult found = probe(runner, rows,
                              {.chunk = asked,
                               .state_only = options.rows_are_batches,
                               .leaves_only = leaves_only,
                               .accept_slot = options.accept_slot});
    const std::lock_guard lock(mutex);
    stats.probe_runs += found.runs;
    stats.probe_rows += found.rows;
    return {.verdict = std::move(found.verdict), .by_row = std::move(found.by_row)};
  } catch (const UnfitOutput& error) {
    return {
        .verdict = {.chunk = asked, .text = error.what()}, .unfit = error.what(), .fault = true};
  } catch (const LayerBypassed& reason) {
    if (!reason.for_good()) throw;
    return {.verdict = {.chunk = asked, .text = std::string("not run: ") + reason.what()},
            .unfit = reason.what()};
  }
}

void LayerCore::decide(const Placement& placement, Decision decision) {
  const std::lock_guard lock(mutex);
  Plan& plan = *placement.plan;
  if (plan.decision != placement.decision) return;
  replace(plan, std::move(decision));
  note_proven(plan);
}

// What others have found, or what is yet to be found out by this call.
LayerCore::TaskPlacement LayerCore::task_placement(const LayerCall& call, std::uint32_t asked,
                                                   std::size_t leaves, std::size_t rows) {
  std::shared_ptr<Plan> plan;
  const auto settled = [&] {
    return is_settled(plan->decision.get(), call, rows) && !plan->decision->short_form;
  };
  {
    const std::lock_guard lock(mutex);
    plan = plan_for(call);
    if (settled()) return {.placement = place(plan, call.weights)};
  }
  std::optional<Decision> found;
  if (options.probe) found = stored(call, asked);
  bool created = false;
  const std::lock_guard lock(mutex);
  if (found && found->verdict.complete && !settled()) {
    replace(*plan, *std::move(found));
    note_proven(*plan);
  } else if (!plan->decision) {
    created = true;
    Decision unproven{.verdict = {.chunk = asked, .complete = !options.probe, .text = kUnproven}};
    unproven.by_row.assign(leaves, 1);
    replace(*plan, std::move(unproven));
  }
  return {.placement = place(plan, call.weights),
          .probing = options.probe && (created || !settled())};
}

std::uint32_t LayerCore::task_chunk(const LayerCall& call, std::size_t rows) {
  std::shared_ptr<const Decision> known;
  {
    const std::lock_guard lock(mutex);
    if (const std::shared_ptr<Plan> plan = plan_of(call)) known = plan->decision;
  }
  const std::uint32_t asked = first_chunk(rows == 0 ? kDefaultChunk : rows, true);
  if (!known) {
    std::optional<Decision> found = stored(call, asked);
    if (!found) return asked;
    known = std::make_shared<const Decision>(*std::move(found));
  }
  if (known->verdict.refused || !known->unfit.empty()) {
    throw LayerBypassed(
        known->unfit.empty() ? "refused by the probe: " + known->verdict.text : known->unfit, true);
  }
  return known->verdict.chunk;
}

// REQUIRES: the mutex.
void LayerCore::replace(Plan& plan, Decision decision) {
  plan.decision = std::make_shared<const Decision>(std::move(decision));
  for (KnownPlan& known : plans) {
    if (known.plan.get() == &plan) known.latest = nullptr;
  }
  if (last && last->plan.get() == &plan) last = nullptr;
}

void LayerCore::forget_forms(bool pending) {
  for (KnownPlan& known : plans) {
    if (known.latest && (!pending || known.latest->form_pending)) known.latest = nullptr;
  }
  last = nullptr;
}

// In the child of a fork: the other threads are gone.
void LayerCore::forget_settlers() noexcept {
  for (const KnownPlan& known : plans) known.plan->settler.reset();
}

LayerCore::LayerCore(std::shared_ptr<ActivationCache> the_cache, const LayerOptions& the_options)
    : cache(std::move(the_cache)),
      options(the_options),
      memo(cache, {.codec = the_options.codec}),
      records(cache),
      bypass(the_options.bypass),
      mutex([this] { forget_settlers(); }) {}

}  // namespace internal
}  // namespace tensorkey
