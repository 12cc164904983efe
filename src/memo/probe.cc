// For chunks of several rows a screen comes first, which sees (a) and (b) at once and costs a third
// as much: the same rows in one order, then shifted by one, two, three places and more, then beside
// fewer different rows. Only if bits differ there are (a) and (b) measured apart.
#include <tensorkey/probe.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "memo/gap.h"
#include "memo/layer_form.h"

namespace tensorkey {
namespace {

using internal::gap_of_outputs;
using internal::is_worse;
using Output = std::unique_ptr<LayerOutput>;
using Positions = std::vector<std::int64_t>;

constexpr double kSeconds = 0.5;
constexpr const char* kInference =
    "put it in inference mode first, such as layer.eval(), or cache the part ";

// Ends a probe: rows of this layer must not be cached one by one.
struct Refusal {
  std::string text;
};

// The numbers first, first + step, ... below end.
Positions range(std::size_t first, std::size_t end, std::size_t step = 1) {
  Positions numbers;
  for (std::size_t i = first; i < end; i += step) numbers.push_back(static_cast<std::int64_t>(i));
  return numbers;
}

class Trials {
 public:
  Trials(LayerRunner& runner, std::span<const std::int64_t> rows, const ProbeOptions& options)
      : runner_(runner), rows_(rows.begin(), rows.end()), options_(options) {}

  Verdict run();

  ProbeResult result;

 private:
  void settle();
  void find_leaves(Output output);
  Verdict slots();
  [[nodiscard]] Gap screen();
  std::optional<Verdict> apart();
  void neighbours(const std::vector<Output>& same);
  Verdict alone(std::string reason);

  [[nodiscard]] std::size_t chunk() const noexcept { return options_.chunk; }
  [[nodiscard]] bool late() const { return options_.clock() > end_; }
  Output chunk_of(const Positions& positions);
  Output chunk_of_row(std::size_t i) { return chunk_of(Positions(chunk(), rows_[i])); }
  [[nodiscard]] Gap compare(const LayerOutput& one, const Positions& one_rows,
                            const LayerOutput& other, const Positions& other_rows) const {
    return gap_of_outputs(one, one_rows, other, other_rows, result.by_row);
  }
  [[nodiscard]] std::string size(const Gap& gap) const;

  LayerRunner& runner_;
  Positions rows_;
  ProbeOptions options_;
  double end_ = 0;
  Output one_row_;       // of a chunk of the first row alone
  internal::Form form_;  // of it: what all others are checked against
};

// Runs the layer; once it is known what its output is made of, checks it.
Output Trials::chunk_of(const Positions& positions) {
  ++result.runs;
  result.rows += positions.size();
  Output output = runner_.run(positions);
  if (one_row_) internal::check_output(form_, *output, positions.size());
  return output;
}

std::string Trials::size(const Gap& gap) const {
  const bool several = one_row_ && one_row_->leaves().size() > 1;
  return internal::gap_text(gap) + (several ? " in " + one_row_->path(gap.leaf) : "");
}

Verdict Trials::run() {
  if (options_.leaves_only) {
    find_leaves(chunk_of_row(0));
    return {.chunk = options_.chunk, .text = "unproven: probe=False"};
  }
  settle();
  if (options_.state_only) {
    return {.chunk = options_.chunk, .text = "clean: two runs on the same input have equal bits"};
  }
  if (chunk() == 1) return alone("");
  Verdict verdict = slots();
  return verdict.chunk == chunk() ? verdict : alone(verdict.text);
}

// Measures (c): runs twice; the second run may change nothing and must give the same bits.
void Trials::settle() {
  const Output warm = chunk_of_row(0);
  static_cast<void>(runner_.changes());
  const std::string drawn = runner_.random_state();
  Output output = chunk_of_row(0);
  const std::vector<std::string> changes = runner_.changes();
  if (runner_.random_state() != drawn) {
    throw Refusal{std::string("it draws random numbers in each run; ") + kInference +
                  "before the random one"};
  }
  if (!changes.empty()) {
    std::string shown;
    for (std::size_t i = 0; i < std::min<std::size_t>(changes.size(), 4); ++i) {
      shown += (i > 0 ? ", " : "") + changes[i];
    }
    if (changes.size() > 4) shown += ", ...";
    throw Refusal{"each run changes its own state (" + shown + "); " + kInference +
                  "that keeps no state"};
  }
  Gap again = internal::gap_of_wholes(*output, *warm);
  if (again.rows > 0) {  // the first run may differ from all others
    again = internal::gap_of_wholes(*output, *chunk_of_row(0));
  }
  if (again.rows > 0) {
    const bool several = output->leaves().size() > 1;
    throw Refusal{"two runs on the same rows differ, by up to " + size(again) +
                  (several ? " in " + output->path(again.leaf) : "")};
  }
  find_leaves(std::move(output));
  end_ = options_.clock() + kSeconds;  // first runs load and compile: not counted
}

// By row is what follows the number of rows: a first dim that equals it once may do so by chance.
void Trials::find_leaves(Output output) {
  if (options_.state_only) {
    result.by_row.assign(output->leaves().size(), 1);
  } else {
    const Positions pair(2, rows_[0]);
    const Output two = chunk_of(pair);
    result.by_row = internal::leaves_by_row(*output, chunk(), *two, pair.size());
  }
  form_ = internal::form_of(*output, chunk(), result.by_row);
  one_row_ = std::move(output);
}

// Measures (a) and (b) for chunks of several rows.
Verdict Trials::slots() {
  const std::string of_chunk = "in a chunk of " + std::to_string(chunk());
  if (rows_.size() < 2) {
    if (std::optional<Verdict> verdict = apart()) {
      verdict->complete = false;
      return *std::move(verdict);
    }
    return {.chunk = options_.chunk,
            .complete = false,
            .text = "slot clean, neighbours not yet measured: only one row"};
  }
  const Gap gap = screen();
  if (gap.rows == 0) {
    return {.chunk = options_.chunk,
            .text = "clean: " + std::to_string(rows_.size()) +
                    " rows keep their bits wherever they stand " + of_chunk +
                    " and whatever stands beside them"};
  }
  if (std::optional<Verdict> verdict = apart()) return *std::move(verdict);
  if (!gap.slight()) {
    throw Refusal{"rows change when their order in a chunk does, by up to " + size(gap)};
  }
  return {.chunk = options_.accept_slot ? options_.chunk : 1,
          .text = "slot: rows change in the last bits with their order " + of_chunk +
                  ", by up to " + size(gap) +
                  (options_.accept_slot ? ": slot differences accepted (bits=\"slot\")"
                                        : ": runs one row at a time")};
}

// Looks for any difference. Shifted, each row stands at another place and beside the end or the
// beginning of the others; with every second row replaced, and among nothing but its equals, it has
// other neighbours: a length or a largest value of the batch shows when the row that has it is not
// there.
Gap Trials::screen() {
  const std::size_t count = rows_.size();
  const Positions all = range(0, chunk());
  Positions mixed(chunk());
  for (std::size_t slot = 0; slot < chunk(); ++slot) mixed[slot] = rows_[slot % count];
  const Output output = chunk_of(mixed);

  const auto shifted = [&](std::size_t shift) {
    Positions turned(chunk());
    Positions places(chunk());  // where each stands in `output`
    for (std::size_t slot = 0; slot < chunk(); ++slot) {
      const std::size_t i = (slot + shift) % count;
      turned[slot] = rows_[i];
      places[slot] = static_cast<std::int64_t>(i);
    }
    const Output other = shift > 0 ? chunk_of(turned) : nullptr;
    return compare(*output, places, other ? *other : *output, all);
  };
  const auto replaced = [&](std::size_t by) {
    Positions rows = mixed;
    Positions places;
    const Positions kept = range(0, chunk(), 2);
    for (std::size_t slot = 1; slot < chunk(); slot += 2) rows[slot] = rows_[by];
    for (const std::int64_t slot : kept) {
      places.push_back(slot % static_cast<std::int64_t>(count));
    }
    return compare(*output, places, *chunk_of(rows), kept);
  };
  const auto among_equals = [&](std::size_t i) {
    const Output same = i > 0 ? chunk_of_row(i) : nullptr;
    return compare(*output, Positions(chunk(), static_cast<std::int64_t>(i)),
                   same ? *same : *one_row_, all);
  };

  enum class Trial : std::uint8_t { kShifted, kAlone, kReplaced };
  using enum Trial;
  // Three shifts: matrix products care for the place modulo 4, as 16 bytes are 4 float32.
  std::vector<std::pair<Trial, std::size_t>> trials{{kShifted, 0}, {kShifted, 1}, {kAlone, 0},
                                                    {kAlone, 1},   {kAlone, 2},   {kReplaced, 1},
                                                    {kShifted, 2}, {kShifted, 3}};
  const std::size_t required = trials.size();
  for (std::size_t i = 3; i < count; ++i) {
    trials.emplace_back(kAlone, i);
    trials.emplace_back(kShifted, i + 1);
  }
  for (std::size_t done = 0; done < trials.size(); ++done) {
    const auto [trial, i] = trials[done];
    if (i < count) {
      const Gap gap = trial == kShifted ? shifted(i)
                      : trial == kAlone ? among_equals(i)
                                        : replaced(i);
      if (gap.rows > 0) return gap;
    }
    if (done + 1 >= required && late()) break;
  }
  return {};
}

// Measures (a), then (b), each by itself; none if both are clean.
std::optional<Verdict> Trials::apart() {
  const Positions all = range(0, chunk());
  const Positions first(chunk(), 0);
  std::vector<Output> same;
  Gap worst;
  std::size_t moved = 0;
  std::size_t seen = 0;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (i > 1 && late()) break;
    Output output = i > 0 ? chunk_of_row(i) : nullptr;
    const LayerOutput& known = output ? *output : *one_row_;
    const Gap gap = compare(known, all, known, first);
    if (i > 0) same.push_back(std::move(output));
    ++seen;
    moved += gap.rows > 0 ? 1 : 0;
    if (is_worse(gap, worst)) worst = gap;
    if (!worst.slight()) {
      throw Refusal{"equal rows of one chunk of " + std::to_string(chunk()) +
                    " get different outputs, by up to " + size(worst) +
                    ": rows depend on their place in the batch, or are random"};
    }
  }
  if (moved > 0 && !options_.accept_slot) {
    return Verdict{.chunk = 1,
                   .text = "slot: " + std::to_string(moved) + " of " + std::to_string(seen) +
                           " rows change in the last bits with their place in a chunk of " +
                           std::to_string(chunk()) + ", by up to " + size(worst) +
                           ": runs one row at a time"};
  }
  if (rows_.size() > 1) neighbours(same);
  if (moved == 0) return std::nullopt;
  return Verdict{.chunk = options_.chunk,
                 .text = "slot: " + std::to_string(moved) + " of " + std::to_string(seen) +
                         " rows change in the last bits with their place in a chunk of " +
                         std::to_string(chunk()) + ", by up to " + size(worst) +
                         ": slot differences accepted (bits=\"slot\")"};
}

// Compares rows of a mixed chunk with themselves among equals, and with one other row. `same` are
// outputs of chunks that hold one row only, the second on. Among equals, nothing of the other rows
// is left: a length, a largest value. With every second row replaced, there are others.
void Trials::neighbours(const std::vector<Output>& same) {
  const std::size_t count = rows_.size();
  Positions mixed(chunk());
  for (std::size_t slot = 0; slot < chunk(); ++slot) mixed[slot] = rows_[slot % count];
  const Output output = chunk_of(mixed);
  Gap worst;
  std::uint64_t changed = 0;
  const auto note = [&](const Gap& gap) {
    changed += gap.rows;
    if (is_worse(gap, worst)) worst = gap;
  };
  for (std::size_t i = 0; i <= same.size(); ++i) {
    const Positions slots = range(i, chunk(), count);
    note(compare(*output, slots, i > 0 ? *same[i - 1] : *one_row_, slots));
  }
  for (std::size_t kept = 0; kept < 2; ++kept) {
    const std::int64_t other = count == 2 ? rows_[1 - kept] : rows_[kept];
    Positions replaced = mixed;
    for (std::size_t slot = 1 - kept; slot < chunk(); slot += 2) replaced[slot] = other;
    const Positions slots = range(kept, chunk(), 2);
    note(compare(*output, slots, *chunk_of(replaced), slots));
  }
  if (changed == 0) return;
  throw Refusal{"rows depend on each other: the outputs of " + std::to_string(changed) +
                " rows change when other rows share their chunk of " + std::to_string(chunk()) +
                ", by up to " + size(worst) +
                (worst.slight() ? ": chunk=1 runs each row alone" : "")};
}

// Measures (b) for chunks of one row: alone against in the caller's batch.
Verdict Trials::alone(std::string reason) {
  if (!reason.empty()) reason += "; ";
  const bool one = rows_.size() < 2;
  const Positions together = one ? Positions(2, rows_[0]) : rows_;  // one says nothing of the size
  const Output batch = chunk_of(together);
  Gap worst;
  std::size_t changed = 0;
  std::size_t seen = 0;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (i > 1 && late()) break;
    const Gap gap = compare(*chunk_of({rows_[i]}), {0}, *batch, {static_cast<std::int64_t>(i)});
    ++seen;
    changed += gap.rows > 0 ? 1 : 0;
    if (is_worse(gap, worst)) worst = gap;
  }
  const std::string of_rows = std::to_string(changed) + " of " + std::to_string(seen) + " rows ";
  if (!worst.slight()) {
    throw Refusal{"rows depend on each other: " + of_rows + "change in a batch of " +
                  std::to_string(together.size()) + " against running alone, by up to " +
                  size(worst)};
  }
  if (one) {
    return {.chunk = 1,
            .complete = false,
            .text = reason + "neighbours not yet measured: only one row"};
  }
  if (changed > 0) {
    return {.chunk = 1,
            .text = reason + "alone and in a batch of " + std::to_string(together.size()) + ", " +
                    of_rows + "differ in the last bits, by up to " + size(worst)};
  }
  return {.chunk = 1,
          .text = reason + "clean: " + std::to_string(seen) +
                  " rows have equal bits alone and in a batch"};
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

ProbeResult probe(LayerRunner& runner, std::span<const std::int64_t> rows,
                  const ProbeOptions& options) {
  ProbeOptions with_clock = options;
  if (!with_clock.clock) with_clock.clock = now;
  const std::string random = runner.random_state();
  static_cast<void>(runner.changes());  // what came before is not a run's
  Trials trials(runner, rows, with_clock);
  try {
    trials.result.verdict = trials.run();
  } catch (const Refusal& refusal) {
    runner.restore();
    trials.result.verdict = {.chunk = options.chunk, .refused = true, .text = refusal.text};
  } catch (...) {
    runner.restore();
    runner.set_random_state(random);
    throw;
  }
  runner.set_random_state(random);
  return std::move(trials.result);
}

}  // namespace tensorkey
