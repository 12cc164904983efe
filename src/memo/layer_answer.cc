// A call: rows are looked up, what is missing runs in chunks, what others compute is awaited, and
// some hits are computed again.
#include <tensorkey/error.h>
#include <tensorkey/probe.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <string>

#include "memo/gap.h"
#include "memo/layer_call.h"

namespace tensorkey {
namespace internal {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPollSeconds = 0.1;

std::string with_leaf(const LayerOutput& output, std::size_t leaf) {
  return output.leaves().size() > 1 ? " in " + output.path(leaf) : "";
}

}  // namespace

Positions padded(std::span<const std::int64_t> positions, std::size_t chunk) {
  Positions rows(positions.begin(), positions.end());
  rows.resize(chunk, rows.back());
  return rows;
}

bool Call::run() {
  if (!decision_.unfit.empty() || decision_.verdict.refused) engine_.refuse(decision_);
  look_up();
  load_form();
  do {
    if (!batch().missing().empty() && !compute()) return false;
    wait();
  } while (!batch().missing().empty());
  if (!answer_.form) load_form();  // who computed the rows has published it before
  if (!answer_.form) run_for_form();
  describe();
  if (engine_.options.verify > 0) verify();
  price();
  const std::lock_guard lock(engine_.mutex);
  const Decision& now = *placement_->plan->decision;
  engine_.accepted |= now.verdict.complete && !now.vouched;
  engine_.shown = placement_->plan->decision;
  return true;
}

void Call::look_up() {
  const Keep keep = call_.pending ? Keep::kPending : Keep::kNow;
  const KeyOptions options{.scope = placement_->scope_bytes(), .secret = call_.secret};
  if (!call_.ids.empty()) {
    const std::vector<Key> keys = keys_of(call_, placement_->scope_bytes());
    answer_.batch.emplace(engine_.memo.lookup(keys, options, keep, epoch_));
    return;
  }
  try {
    answer_.batch.emplace(engine_.memo.lookup(call_.members, options, keep, epoch_));
  } catch (const Error& error) {
    throw LayerBypassed(std::string("an input has no key: ") + error.what());
  }
}

// What this engine knows of the output, or what another process has stored.
void Call::load_form() {
  {
    const std::lock_guard lock(engine_.mutex);
    answer_.form = placement_->form;
  }
  if (answer_.form) return;
  std::optional<Form> stored = engine_.records.form(
      Records::form_place(placement_->scope, placement_->plan->signature.encoded(), call_.secret));
  const bool fits = stored && (engine_.options.rows_are_batches
                                   ? std::ranges::count(stored->by_row, std::uint8_t{0}) == 0
                                   : stored->by_row == decision_.by_row);
  if (!fits) return;
  answer_.form = std::make_shared<const Form>(*std::move(stored));
  const std::lock_guard lock(engine_.mutex);
  if (!placement_->form) placement_->form = answer_.form;
}

void Call::note_unfit(const std::string& why, bool fault) {
  Decision decision = decision_;
  decision.unfit = why;
  decision.fault = fault;
  engine_.decide(*placement_, decision);
  engine_.refuse(decision);
}

// Runs the missing rows; all of them before any is stored. False if the plan has changed.
bool Call::compute() {
  std::vector<Part> parts;
  try {
    if (!run_parts(parts)) return false;
  } catch (const UnfitOutput& error) {
    note_unfit(error.what(), true);
  } catch (const LayerBypassed& reason) {
    if (reason.for_good()) note_unfit(reason.what(), false);
    throw;  // who waits for these rows runs them
  } catch (const LayerAbandoned&) {
    throw;
  } catch (...) {
    batch().fail(std::current_exception());
    throw;
  }
  insert(parts);
  return true;
}

bool Call::run_parts(std::vector<Part>& parts) {
  const auto missing = batch().missing();
  runner_.prepare(missing);
  answer_.misses += missing.size();
  for (std::size_t first = 0; first < missing.size(); first += chunk()) {
    const std::size_t count = std::min(chunk(), missing.size() - first);
    const Positions positions = padded(missing.subspan(first, count), chunk());
    Output output = run_chunk(positions);
    if (first == 0 && decision_.short_form && !short_form(positions, count, *output)) return false;
    std::vector<Key> inputs;
    if (!call_.ids.empty()) inputs = runner_.input_keys(missing.subspan(first, count));
    parts.push_back(
        {.first = first, .count = count, .output = std::move(output), .inputs = std::move(inputs)});
  }
  return true;
}

Output Call::run_chunk(const Positions& positions) {
  Output output = runner_.run(positions);
  answer_.rows_run += positions.size();
  answer_.seconds_layer += output->seconds();
  check(*output);
  return output;
}

void Call::check(const LayerOutput& output) {
  if (answer_.form) return check_output(*answer_.form, output, chunk());
  std::vector<std::uint8_t> by_row = decision_.by_row;
  if (engine_.options.rows_are_batches) by_row.assign(output.leaves().size(), 1);
  answer_.form = std::make_shared<const Form>(form_of(output, chunk(), std::move(by_row)));
  form_is_new_ = true;
}

// The first chunk of rows of another shape: turned by one slot, do they keep their bits? False if
// the plan has changed by what was found.
bool Call::short_form(const Positions& positions, std::size_t count, const LayerOutput& output) {
  if (count < 2 && chunk() > 1) return true;  // nothing to see yet
  Positions turned = positions;
  std::rotate(turned.begin(), turned.begin() + (turned.size() > 1 ? 1 : 0), turned.end());
  const Output other = runner_.run(turned);
  {
    const std::lock_guard lock(engine_.mutex);
    ++engine_.stats.probe_runs;
    engine_.stats.probe_rows += turned.size();
  }
  check_output(*answer_.form, *other, chunk());
  Positions slots(count);
  Positions places(count);  // where each stands in `other`
  for (std::size_t i = 0; i < count; ++i) {
    slots[i] = static_cast<std::int64_t>(i);
    places[i] = static_cast<std::int64_t>((i + chunk() - 1) % chunk());
  }
  const Gap found = gap_of_outputs(output, slots, *other, places, answer_.form->by_row);
  Decision decision = decision_;
  decision.short_form = false;
  const std::string in_chunk = std::to_string(found.rows) + " of " + std::to_string(count) +
                               " rows change one slot further in a chunk of " +
                               std::to_string(chunk()) + ", by up to " + gap_text(found) +
                               with_leaf(output, found.leaf);
  if (found.rows == 0) {
    decision.verdict.text = "clean in short: " + std::to_string(count) +
                            " rows of this shape keep their bits in a second run" +
                            (chunk() > 1 ? ", one slot further" : "");
  } else if (chunk() == 1) {
    decision.verdict.refused = true;
    decision.verdict.text = "two runs on the same rows differ, by up to " + gap_text(found) +
                            with_leaf(output, found.leaf);
  } else if (!found.slight()) {
    decision.verdict.refused = true;
    decision.verdict.text = in_chunk;
  } else if (engine_.options.accept_slot) {
    decision.verdict.text = "slot: " + in_chunk + ": slot differences accepted (bits=\"slot\")";
  } else {
    decision.verdict.chunk = 1;
    decision.verdict.text = "slot: " + in_chunk + ": runs one row at a time";
  }
  engine_.share(*placement_->plan, decision, call_.secret, output.seconds());
  const bool same = !decision.verdict.refused && decision.verdict.chunk == chunk();
  engine_.decide(*placement_, std::move(decision));
  return same;
}

void Call::insert(const std::vector<Part>& parts) {
  try {
    publish(parts[0].output->seconds());
    for (const Part& part : parts) {
      batch().insert(part.first, part.count, row_leaves(*answer_.form, *part.output),
                     part.output->seconds(), part.inputs);
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kUnsupported) {
      note_unfit(std::string("its output cannot be stored: ") + error.what(), false);
    }
    throw LayerBypassed(std::string("the rows of its output differ in shape: ") + error.what());
  }
}

// Lets others know of a form that was not there. One of weights that nobody has read goes with the
// rows that are dropped: also if that happens now.
void Call::publish(double seconds) {
  if (!form_is_new_) return;
  form_is_new_ = false;
  const auto dropped = [this] { return call_.pending && epoch_ != engine_.memo.epoch(); };
  if (dropped()) return;
  engine_.records.store(
      Records::form_place(placement_->scope, placement_->plan->signature.encoded(), call_.secret),
      *answer_.form, seconds, call_.pending ? Keep::kPending : Keep::kNow);
  if (dropped()) return engine_.records.settle(false);
  const std::lock_guard lock(engine_.mutex);
  if (dropped()) return;
  placement_->form = answer_.form;
  placement_->form_pending = call_.pending;
}

void Call::wait() {
  const Clock::time_point start = Clock::now();
  MemoBatch::Wait outcome = batch().wait(0);
  while (outcome == MemoBatch::Wait::kTimeout) {
    runner_.poll();  // before the first wait: it may let other threads of the frontend run
    outcome = batch().wait(kPollSeconds);
  }
  answer_.seconds_aside += seconds_between(start, Clock::now());
}

// What the layer alone takes for this batch, if the policy asks for it. Rows under own keys may be
// dear to fetch.
void Call::price() {
  answer_.uneven = answer_.rows_run > 0 && is_uneven(batch().rows(), chunk());
  if (!answer_.uneven || !call_.ids.empty() || !engine_.bypass.wants_price()) return;
  const Clock::time_point start = Clock::now();
  Positions all(batch().rows());
  std::iota(all.begin(), all.end(), 0);
  try {
    runner_.prepare(all);
    answer_.seconds_whole = runner_.run(all)->seconds();
    answer_.rows_whole = all.size();
  } catch (const LayerBypassed&) {  // too large for this machine, say
  } catch (const UnfitOutput&) {
  }
  answer_.seconds_aside += seconds_between(start, Clock::now());
}

// All rows are known, but what the output is made of is not.
void Call::run_for_form() {
  Positions positions;
  for (std::size_t i = 0; i < std::min(chunk(), batch().rows()); ++i) {
    positions.push_back(static_cast<std::int64_t>(i));
  }
  runner_.prepare(positions);
  try {
    const Output output = run_chunk(padded(positions, chunk()));
    publish(output->seconds());
  } catch (const UnfitOutput& error) {
    note_unfit(error.what(), true);
  }
}

void Call::describe() {
  const Form& form = *answer_.form;
  const Entry& example = *batch().example();
  const std::size_t constants = form.constants.size();
  if (example.tensor_count() != form.by_row.size() - constants) {
    throw LayerBypassed("its rows are stored with other leaves than its output has now");
  }
  answer_.leaves.reserve(form.by_row.size());
  std::size_t row = 0;
  std::size_t constant = 0;
  for (const std::uint8_t by_row : form.by_row) {
    LeafShape& leaf = answer_.leaves.emplace_back();
    leaf.by_row = by_row != 0;
    if (by_row == 0) {
      leaf.dtype = form.constants[constant].dtype;
      leaf.shape = form.constants[constant++].shape;
      continue;
    }
    const TensorParts tensor = example.tensor(row++);
    leaf.dtype = tensor.dtype;
    leaf.shape.reserve(1 + tensor.shape.size());
    leaf.shape.push_back(static_cast<std::int64_t>(batch().rows()));
    leaf.shape.insert(leaf.shape.end(), tensor.shape.begin(), tensor.shape.end());
  }
}

bool LayerCore::attempt(const LayerCall& call, LayerRunner& runner, AnswerState& answer) {
  answer.batch.reset();
  answer.form.reset();
  answer.misses = 0;
  std::shared_ptr<Placement> placement = placement_of(call, runner, answer);
  return Call(*this, call, runner, answer, std::move(placement)).run();
}

// Calls of other threads that end in between are mixed up with this one; their sum is right.
void LayerCore::observe(const AnswerState& answer, double seconds) {
  const MemoStats now = memo.stats();
  const std::uint64_t rows = answer.batch->rows();
  const std::uint64_t hits = rows - std::min<std::uint64_t>(answer.misses, rows);
  CallCosts costs{.calls = 1,
                  .rows = rows,
                  .hits = hits,
                  .rows_run = answer.rows_run,
                  .seconds_layer = answer.seconds_layer,
                  .uneven = answer.uneven,
                  .rows_whole = answer.rows_whole,
                  .seconds_whole = answer.seconds_whole};
  const std::lock_guard lock(mutex);
  costs.seconds_saved = now.seconds_saved - observed.seconds_saved;
  costs.seconds_digest = now.seconds_digest - observed.seconds_digest;
  costs.seconds_lookup = now.seconds_lookup - observed.seconds_lookup;
  costs.seconds_insert = now.seconds_insert - observed.seconds_insert;
  costs.seconds_copy = now.seconds_copy - observed.seconds_copy;
  observed = now;
  costs.seconds_frontend = seconds - answer.seconds_aside - costs.seconds_layer -
                           costs.seconds_digest - costs.seconds_lookup - costs.seconds_insert -
                           costs.seconds_copy;
  stats.seconds_frontend += costs.seconds_frontend;
  if (bypass.observe(costs)) passes.interrupt();
  passes.observe({.rows = rows, .hits = hits, .layer = answer.layer});
}

}  // namespace internal
}  // namespace tensorkey
