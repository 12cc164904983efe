// One traced call of a cached layer, as a program that XLA compiled makes it: the C++ twin of
// GraphCall in tensorkey/_graph.py, which says what a program does with it. Needs the GIL for
// nothing but to tell Python of weights that are new and of hits that are wrong. Thread-safe.
//
// A program knows its call by a number, the handle, which stands for what the call means: the same
// program compiled by another process, and found in JAX's cache on disk, has the same one. A call
// whose owner is gone is found no more; the program then runs the layer itself.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <tensorkey/layer_task.h>

#include "base/fork.h"
#include "layer_engine.h"
#include "xla_ffi_weights.h"

namespace tensorkey::python::xla {

// What Python is told. Called without a lock.
class Listener {
 public:
  virtual ~Listener() = default;
  virtual void looked_up(const Digest& weights) = 0;
  // May throw: the caller asked for an exception.
  virtual void deviated(const Deviation& found) = 0;
};

struct CallOptions {
  std::vector<std::string> paths;  // of the tensors with rows
  Digest about;
  std::optional<std::array<std::uint8_t, 32>> secret;
  std::uint32_t chunk;
  std::vector<LeafShape> leaves;  // of one row
  std::variant<Digest, std::shared_ptr<const Weights>> weights;
};

// What a program is to do; see LookedUp in tensorkey/_graph.py.
struct Found {
  std::int32_t ticket = 0;
  std::int32_t whole = 0;
  std::int32_t chunks = 0;
};

// Where it is told: positions and targets for as many chunks as there can be, a source for each
// row, and for each leaf a table.
struct Room {
  std::span<std::int32_t> positions;
  std::span<std::int32_t> targets;
  std::span<std::int32_t> sources;
  std::vector<std::span<std::byte>> tables;
};

// The answer to a program whose layer is to run without the cache.
[[nodiscard]] Found aside(const Room& room);

class Call {
 public:
  Call(std::shared_ptr<Engine> engine, CallOptions options, std::unique_ptr<Listener> listener);

  // Nothing if they have no digest, which is counted: look_up() then lets the layer run alone.
  [[nodiscard]] std::optional<Digest> weights(std::span<const TensorView> tensors) const noexcept;
  // `weights`: of weights(), for a program that passes them.
  [[nodiscard]] Found look_up(std::span<const TensorView> members,
                              const std::optional<Digest>& weights, const Room& room);
  // Chunk -1 is the whole batch. Ticket 0 is nobody's. Throws kUnsupported at the first call of a
  // layer that the probe refuses, and what the listener throws.
  void deliver(std::int32_t ticket, std::int32_t chunk, std::span<const TensorView> outputs);

  [[nodiscard]] std::size_t members() const noexcept { return options_.paths.size(); }
  [[nodiscard]] std::size_t leaves() const noexcept { return options_.leaves.size(); }
  [[nodiscard]] bool passes_weights() const noexcept { return options_.weights.index() == 1; }
  // Bytes that stand for what the call means; nothing of one with a secret.
  [[nodiscard]] std::optional<Digest> meaning() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Open {
    LayerTask task;
    Clock::time_point last;  // the end of the last call of the program's
  };

  [[nodiscard]] LayerTask begin(std::span<const TensorView> members, const Digest& weights);
  void tell(const Digest& weights);
  [[nodiscard]] std::int32_t keep(LayerTask task);

  std::shared_ptr<Engine> engine_;
  CallOptions options_;
  std::unique_ptr<Listener> listener_;
  std::map<std::int32_t, Open> open_;  // looked up, and not all delivered
  std::int32_t last_ticket_ = 0;
  std::deque<Digest> told_;  // weights, the last few
  internal::ForkMutex mutex_{};
};

// Makes a call known, and returns its handle. Found until it is destroyed or left.
[[nodiscard]] std::int64_t enter(const std::shared_ptr<Call>& call);
void leave(std::int64_t handle) noexcept;
[[nodiscard]] std::shared_ptr<Call> find(std::int64_t handle);

}  // namespace tensorkey::python::xla
