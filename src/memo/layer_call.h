// A call of a cached layer: rows are looked up, what is missing runs in chunks, what others compute
// is awaited (layer_answer.cc), and some hits are computed again (layer_verify.cc).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "memo/layer_impl.h"
#include "memo/layer_verify.h"

namespace tensorkey::internal {

using Output = std::unique_ptr<LayerOutput>;

// One call, on one placement of its plan.
class Call {
 public:
  Call(LayerCore& engine, const LayerCall& call, LayerRunner& runner, AnswerState& answer,
       std::shared_ptr<Placement> placement)
      : engine_(engine),
        call_(call),
        runner_(runner),
        answer_(answer),
        placement_(std::move(placement)),
        decision_(*placement_->decision),
        epoch_(call_.epoch.value_or(engine_.memo.epoch())) {}

  // False if the plan has changed meanwhile.
  [[nodiscard]] bool run();

 private:
  struct Part {
    std::size_t first, count;  // of the missing rows
    Output output;
    std::vector<Key> inputs;  // content keys, beside the caller's own
  };

  [[nodiscard]] std::size_t chunk() const noexcept { return decision_.verdict.chunk; }
  [[nodiscard]] MemoBatch& batch() const noexcept { return *answer_.batch; }

  void look_up();
  void load_form();
  [[nodiscard]] bool compute();
  [[nodiscard]] bool run_parts(std::vector<Part>& parts);
  void insert(const std::vector<Part>& parts);
  void wait();
  void run_for_form();
  void describe();
  void verify();
  void price();
  Output run_chunk(const Positions& positions);
  void check(const LayerOutput& output);
  void publish(double seconds);
  [[nodiscard]] bool short_form(const Positions& positions, std::size_t count,
                                const LayerOutput& output);
  void note_unfit(const std::string& why, bool fault);

  LayerCore& engine_;
  const LayerCall& call_;
  LayerRunner& runner_;
  AnswerState& answer_;
  const std::shared_ptr<Placement> placement_;
  const Decision& decision_;
  bool form_is_new_ = false;
  const std::uint64_t epoch_;  // of pending rows, before it was looked at the weights
};

}  // namespace tensorkey::internal
