// A call whose layer runs in a graph: what it is to run, and what is made of what comes out.
#include <tensorkey/layer_task.h>

#include <tensorkey/error.h>
#include <tensorkey/probe.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "memo/gap.h"
#include "memo/layer_impl.h"
#include "memo/layer_verify.h"

namespace tensorkey {
namespace {

using internal::AgainChunk;
using internal::Decision;
using internal::HostTensor;
using internal::LayerCore;
using internal::Positions;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kProbeChunks = 3;
constexpr std::size_t kComparedRows = 16;  // one by one with the whole batch

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "[LayerTask] " + message);
}

std::string path_of(std::size_t leaf) { return "[" + std::to_string(leaf) + "]"; }

// Tensors of somebody else's.
class Borrowed final : public LayerOutput {
 public:
  explicit Borrowed(std::span<const TensorView> leaves) : leaves_(leaves) {}
  [[nodiscard]] std::span<const TensorView> leaves() const override { return leaves_; }
  [[nodiscard]] std::string path(std::size_t leaf) const override { return path_of(leaf); }
  [[nodiscard]] std::string form() const override { return {}; }
  [[nodiscard]] double seconds() const override { return 0; }

 private:
  std::span<const TensorView> leaves_;
};

// Copies of tensors.
class Held final : public LayerOutput {
 public:
  explicit Held(std::span<const TensorView> leaves) {
    tensors_.reserve(leaves.size());
    for (const TensorView& leaf : leaves) tensors_.push_back(internal::host_copy(leaf));
    for (const HostTensor& tensor : tensors_) views_.push_back(tensor.view());
  }
  [[nodiscard]] std::span<const TensorView> leaves() const override { return views_; }
  [[nodiscard]] std::string path(std::size_t leaf) const override { return path_of(leaf); }
  [[nodiscard]] std::string form() const override { return {}; }
  [[nodiscard]] double seconds() const override { return 0; }

 private:
  std::vector<HostTensor> tensors_;
  std::vector<TensorView> views_;
};

// What a chunk is run for.
struct Step {
  enum class For : std::uint8_t {
    kFilled,  // the probe: a chunk filled with one row
    kTurned,  // the probe: the first chunk of misses, one slot further
    kMisses,
    kAgain,  // verify
  };
  For purpose = For::kMisses;
  std::size_t first = 0;  // of the missing rows
  std::size_t count = 0;
  AgainChunk again = {};
};

// Misses that wait for the probe's verdict.
struct Waiting {
  std::size_t first;
  std::size_t count;
  Held output;
  double seconds;
};

void check_leaves(std::span<const TensorView> outputs, std::span<const LeafShape> leaves,
                  std::size_t rows) {
  if (outputs.size() != leaves.size()) {
    invalid(std::to_string(outputs.size()) + " tensors; expected " + std::to_string(leaves.size()));
  }
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    const TensorView& output = outputs[k];
    check_view(output, "LayerTask");
    if (output.dtype == leaves[k].dtype && !output.shape.empty() &&
        output.shape[0] == static_cast<std::int64_t>(rows) &&
        std::ranges::equal(output.shape.subspan(1), leaves[k].shape)) {
      continue;
    }
    invalid("output " + path_of(k) + " is not what was said; expected " +
            std::string(to_string(leaves[k].dtype)) + " and " + std::to_string(rows) + " rows");
  }
}

}  // namespace

struct LayerTask::Impl : internal::AnswerState {
  using AnswerState::AnswerState;

  std::size_t rows = 0;
  std::uint32_t chunk = 1;
  Whole whole = Whole::kNot;
  Positions positions;
  Positions targets;
  Positions sources;

  std::shared_ptr<internal::Placement> placement;
  Secret secret;
  std::optional<std::array<std::uint8_t, 32>> own_secret;  // what `secret` is of
  std::vector<LeafShape> rows_of_leaves;
  std::vector<std::uint8_t> by_row;
  std::vector<Step> steps;
  std::size_t delivered = 0;
  double seconds_host = 0;

  // The probe.
  bool probing = false;
  std::size_t probe_end = 0;  // its steps come first
  std::vector<Held> filled;
  std::optional<Held> compared;
  std::optional<Held> turned;
  std::vector<Waiting> waiting;

  // The rows that fill chunks of the probe, by their place among the missing ones.
  [[nodiscard]] std::vector<std::size_t> filling() const {
    const std::size_t count = std::min<std::size_t>(chunk, batch->missing().size());
    return {0, count / 2};
  }
  void plan();
  void add(Step step, const Positions& run, std::size_t answered);
  void insert(const Step& step, std::span<const TensorView> outputs, double seconds);
  void conclude();
  [[nodiscard]] Decision judged() const;
  void finish();
};

// A step that runs these positions; the first `answered` slots are the answers of their rows.
void LayerTask::Impl::add(Step step, const Positions& run, std::size_t answered) {
  steps.push_back(std::move(step));
  positions.insert(positions.end(), run.begin(), run.end());
  for (std::size_t i = 0; i < run.size(); ++i) {
    targets.push_back(i < answered ? run[i] : static_cast<std::int64_t>(rows));
  }
}

// In what order what is run.
void LayerTask::Impl::plan() {
  const auto missing = batch->missing();
  const auto misses_at = [&](std::size_t first) {
    return missing.subspan(first, std::min<std::size_t>(chunk, missing.size() - first));
  };
  probing = probing && !missing.empty();
  const bool neighbours = chunk > 1 && missing.size() > 1;
  if (probing && neighbours) {
    for (const std::size_t row : filling()) {
      add({.purpose = Step::For::kFilled}, Positions(chunk, missing[row]), 0);
    }
  }
  for (std::size_t first = 0; first < missing.size(); first += chunk) {
    const auto part = misses_at(first);
    const Positions run = internal::padded(part, chunk);
    add({.first = first, .count = part.size()}, run, part.size());
    if (!probing) continue;
    if (first == 0 && (neighbours || chunk == 1)) {
      Positions other = run;
      std::rotate(other.begin(), other.begin() + (chunk > 1 ? 1 : 0), other.end());
      add({.purpose = Step::For::kTurned}, other, 0);
    }
    if (first == 0 || (chunk == 1 && first < kComparedRows)) probe_end = steps.size();
  }
  uneven = !missing.empty() && internal::is_uneven(rows, chunk);
  const bool compares = probing && chunk == 1 && rows > 1;
  if (compares || (uneven && core->bypass.wants_price())) whole = Whole::kCompare;
  if (core->options.verify > 0) {
    const Positions chosen = internal::choose_hits(*core, *batch, chunk);
    for (AgainChunk& again : internal::chunks_again(*core, chosen, chunk)) {
      const Positions run = again.positions;
      add({.purpose = Step::For::kAgain, .again = std::move(again)}, run, 0);
    }
  }
  sources.resize(rows);
  for (std::size_t row = 0; row < rows; ++row) {
    const bool found = batch->is_known(row);
    sources[row] = found ? static_cast<std::int64_t>(row) : batch->first_of(row);
  }
  misses = missing.size();
}

void LayerTask::Impl::insert(const Step& step, std::span<const TensorView> outputs,
                             double seconds) {
  batch->insert(step.first, step.count, outputs, seconds);
}

// What the probe's chunks show.
Decision LayerTask::Impl::judged() const {
  Decision decision = *placement->decision;
  decision.short_form = false;
  decision.vouched = false;
  Verdict& verdict = decision.verdict;
  verdict.chunk = chunk;
  const Waiting& first = waiting.front();
  const auto slots = [](std::size_t from, std::size_t count, std::size_t modulo) {
    Positions result(count);
    for (std::size_t i = 0; i < count; ++i) {
      result[i] = static_cast<std::int64_t>((from + i) % modulo);
    }
    return result;
  };
  const auto leaf_text = [&](const Gap& gap) {
    return internal::gap_text(gap) + (by_row.size() > 1 ? " in " + path_of(gap.leaf) : "");
  };
  const auto compare = [&](const LayerOutput& one, const Positions& its, const LayerOutput& other,
                           const Positions& others) {
    return internal::gap_of_outputs(one, its, other, others, by_row);
  };
  if (chunk == 1) {
    const Gap again = compare(first.output, {0}, *turned, {0});
    if (again.rows > 0) {
      verdict.refused = true;
      verdict.text = "two runs on the same row differ, by up to " + leaf_text(again);
      return decision;
    }
    for (const Waiting& one : waiting) {
      if (!compared) break;
      const std::int64_t row = batch->missing()[one.first];
      const Gap alone = compare(one.output, {0}, *compared, {row});
      if (alone.slight()) continue;
      verdict.refused = true;
      verdict.text = "a row alone and in its batch differ, by up to " + leaf_text(alone);
      return decision;
    }
    verdict.complete = rows > 1;
    verdict.text = "clean in a graph: rows run one by one";
    return decision;
  }
  const std::string in_chunk = " in a chunk of " + std::to_string(chunk);
  // Equal rows at all slots: in chunks of their own unless there is but one row.
  Gap worst;
  for (std::size_t i = 0; i < std::max<std::size_t>(filled.size(), 1); ++i) {
    const LayerOutput& equal = filled.empty() ? first.output : filled[i];
    const Gap slot = compare(equal, Positions(chunk - 1, 0), equal, slots(1, chunk - 1, chunk));
    if (internal::is_worse(slot, worst)) worst = slot;
  }
  std::string seen = "equal rows differ" + in_chunk + ", by up to " + leaf_text(worst);
  if (!filled.empty()) {
    for (std::size_t i = 0; i < filled.size(); ++i) {
      const Positions slot{static_cast<std::int64_t>(filling()[i])};
      const Gap beside = compare(filled[i], slot, first.output, slot);
      if (beside.rows == 0) continue;
      verdict.refused = true;
      verdict.text =
          "a row changes with the rows beside it" + in_chunk + ", by up to " + leaf_text(beside);
      return decision;
    }
    const Gap further = compare(first.output, slots(0, first.count, chunk), *turned,
                                slots(chunk - 1, first.count, chunk));
    if (further.rows > 0 && internal::is_worse(further, worst)) {
      worst = further;
      seen = std::to_string(further.rows) + " of " + std::to_string(first.count) +
             " rows change one slot further" + in_chunk + ", by up to " + leaf_text(further);
    }
  }
  verdict.complete = !filled.empty();
  if (worst.rows == 0) {
    verdict.text = "clean in a graph: " + std::to_string(first.count) +
                   (first.count == 1 ? " row keeps its bits" : " rows keep their bits") +
                   " at other slots" + in_chunk;
  } else if (!worst.slight()) {
    verdict.refused = true;
    verdict.text = seen;
  } else if (core->options.accept_slot) {
    verdict.text = "slot: " + seen + ": slot differences accepted (bits=\"slot\")";
  } else {
    verdict.chunk = 1;
    verdict.complete = true;
    verdict.text = "slot: " + seen + ": runs one row at a time";
  }
  return decision;
}

// All that the probe asked for is there. What waited for it is stored if the rows may be.
void LayerTask::Impl::conclude() {
  Decision decision = judged();
  probing = false;
  bool refuse_loudly;
  {
    const std::lock_guard lock(core->mutex);
    ++core->stats.probe_runs;
    core->stats.probe_rows += static_cast<std::uint64_t>(probe_end) * chunk;
    refuse_loudly = !core->accepted;
    core->shown = std::make_shared<const Decision>(decision);
  }
  const Verdict verdict = decision.verdict;
  core->share(*placement->plan, decision, secret, seconds_layer);
  core->decide(*placement, std::move(decision));
  if (verdict.refused) {
    const std::string text =
        "[CachedLayer] the rows of this layer cannot be cached one by one: " + verdict.text;
    waiting.clear();
    batch.reset();
    if (refuse_loudly) throw Error(ErrorCode::kUnsupported, text);
    return;
  }
  if (verdict.chunk != chunk) {
    batch.reset();
  } else {
    for (const Waiting& one : waiting) {
      insert({.first = one.first, .count = one.count}, one.output.leaves(), one.seconds);
    }
  }
  waiting.clear();
}

void LayerTask::Impl::finish() {
  if (!batch) return;
  core->observe(*this, seconds_host + seconds_layer);
  const std::lock_guard lock(core->mutex);
  const auto& now = placement->plan->decision;
  core->accepted |= now->verdict.complete && !now->vouched;
  core->shown = now;
}

// --- The public face

LayerTask::LayerTask(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
LayerTask::LayerTask(LayerTask&&) noexcept = default;
LayerTask& LayerTask::operator=(LayerTask&&) noexcept = default;
LayerTask::~LayerTask() = default;

std::size_t LayerTask::rows() const noexcept { return impl_->rows; }
std::uint32_t LayerTask::chunk() const noexcept { return impl_->chunk; }
std::size_t LayerTask::chunks() const noexcept { return impl_->steps.size(); }
LayerTask::Whole LayerTask::whole() const noexcept { return impl_->whole; }
std::span<const std::int64_t> LayerTask::positions() const noexcept { return impl_->positions; }
std::span<const std::int64_t> LayerTask::targets() const noexcept { return impl_->targets; }
std::span<const std::int64_t> LayerTask::sources() const noexcept { return impl_->sources; }
const Deviation& LayerTask::deviation() const noexcept { return impl_->deviation; }

LayerTask LayerTask::aside(std::size_t rows, std::uint32_t chunk) {
  auto impl = std::make_unique<Impl>(nullptr);
  impl->rows = rows;
  impl->chunk = chunk;
  impl->whole = Whole::kAnswer;
  impl->sources.resize(rows);
  for (std::size_t i = 0; i < rows; ++i) impl->sources[i] = static_cast<std::int64_t>(i);
  return LayerTask(std::move(impl));
}

std::size_t LayerTask::capacity(std::size_t rows, std::uint32_t chunk, bool verify) {
  const std::size_t chunks = (rows + chunk - 1) / chunk;
  return kProbeChunks + chunks + (verify ? chunks + 1 : 0);
}

void LayerTask::read(std::span<const std::span<std::byte>> outs) const {
  if (impl_->batch && impl_->whole != Whole::kAnswer) impl_->batch->read(outs);
}

void LayerTask::deliver_whole(std::span<const TensorView> outputs, double seconds) {
  Impl& self = *impl_;
  if (self.whole != Whole::kCompare || self.delivered > 0) invalid("a whole batch out of turn");
  check_leaves(outputs, self.rows_of_leaves, self.rows);
  if (self.probing) self.compared.emplace(outputs);
  self.rows_whole = self.rows;
  self.seconds_whole = seconds;
}

void LayerTask::deliver(std::size_t chunk, std::span<const TensorView> outputs, double seconds) {
  Impl& self = *impl_;
  if (chunk != self.delivered || chunk >= self.steps.size()) {
    invalid("chunk " + std::to_string(chunk) + " out of turn; expected " +
            std::to_string(self.delivered) + " of " + std::to_string(self.steps.size()));
  }
  check_leaves(outputs, self.rows_of_leaves, self.chunk);
  const Clock::time_point start = Clock::now();
  const Step& step = self.steps[chunk];
  ++self.delivered;
  self.rows_run += self.chunk;
  self.seconds_layer += seconds;
  switch (step.purpose) {
    case Step::For::kFilled: self.filled.emplace_back(outputs); break;
    case Step::For::kTurned: self.turned.emplace(outputs); break;
    case Step::For::kMisses:
      if (self.probing) {
        self.waiting.push_back({.first = step.first,
                                .count = step.count,
                                .output = Held(outputs),
                                .seconds = seconds});
      } else if (self.batch) {
        self.insert(step, outputs, seconds);
      }
      break;
    case Step::For::kAgain:
      if (self.batch) {
        internal::compare_hits(*self.core, *self.batch, step.again, self.by_row, Borrowed(outputs),
                               {}, self.deviation);
      }
      break;
  }
  if (self.probing && self.delivered == self.probe_end) self.conclude();
  self.seconds_host += internal::seconds_between(start, Clock::now());
  if (self.delivered == self.steps.size()) self.finish();
}

LayerTask LayerEngine::begin(const LayerCall& call, const TaskOptions& options) {
  const Clock::time_point start = Clock::now();
  if (!internal::is_chunk(options.chunk)) {
    invalid("chunk is " + std::to_string(options.chunk) + "; expected 1 or a multiple of 32");
  }
  if (!call.ids.empty() || impl_->options.rows_are_batches || call.pending) {
    invalid("rows in a graph are looked up by content, one by one, under weights that were read");
  }
  const std::size_t rows = internal::rows_of(call);
  if (impl_->bypass.aside()) return LayerTask::aside(rows, options.chunk);
  auto task = std::make_unique<LayerTask::Impl>(impl_);
  std::memcpy(&task->layer, call.weights.data(), sizeof task->layer);
  task->rows = rows;
  task->chunk = options.chunk;
  task->rows_of_leaves.assign(options.leaves.begin(), options.leaves.end());
  task->by_row.assign(options.leaves.size(), 1);
  if (call.secret) {
    std::ranges::copy(*call.secret, task->own_secret.emplace().begin());
    task->secret.emplace(*task->own_secret);
  }
  auto [placement, probing] =
      impl_->task_placement(call, options.chunk, options.leaves.size(), rows);
  task->placement = std::move(placement);
  task->probing = probing;
  const Decision& decision = *task->placement->decision;
  if (!decision.unfit.empty()) throw LayerBypassed(decision.unfit, true);
  if (decision.verdict.refused) {
    throw LayerBypassed("refused by the probe: " + decision.verdict.text, true);
  }
  if (decision.verdict.chunk != options.chunk) {
    throw LayerBypassed("the graph runs chunks of " + std::to_string(options.chunk) +
                        " rows, but the probe found that this layer needs chunks of " +
                        std::to_string(decision.verdict.chunk) + ": trace it again");
  }
  try {
    task->batch.emplace(impl_->memo.lookup(
        call.members, {.scope = task->placement->scope_bytes(), .secret = call.secret}, Keep::kNow,
        std::nullopt, Flight::kAlone));
  } catch (const Error& error) {
    throw LayerBypassed(std::string("an input has no key: ") + error.what());
  }
  if (const Entry* const known = task->batch->example()) {
    bool fits = known->tensor_count() == options.leaves.size();
    for (std::size_t k = 0; fits && k < options.leaves.size(); ++k) {
      const TensorParts tensor = known->tensor(k);
      fits = tensor.dtype == options.leaves[k].dtype &&
             std::ranges::equal(tensor.shape, options.leaves[k].shape);
    }
    if (!fits) throw LayerBypassed("its rows are stored with other leaves than its output has now");
  }
  task->plan();
  task->seconds_host = internal::seconds_between(start, Clock::now());
  if (task->steps.empty()) task->finish();
  return LayerTask(std::move(task));
}

std::uint32_t LayerEngine::task_chunk(const LayerCall& call, std::size_t rows) {
  return impl_->task_chunk(call, rows);
}

}  // namespace tensorkey
