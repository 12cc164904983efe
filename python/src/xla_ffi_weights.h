// The weights of a layer as a compiled program passes them: known by their contents, call by call.
// The C++ twin of TracedWeights in tensorkey/_graph.py. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <tensorkey/digest.h>
#include <tensorkey/key.h>
#include <tensorkey/view.h>

#include "base/fork.h"

namespace tensorkey::python::xla {

// Tensors that are digested by their names.
struct WeightGroup {
  std::optional<Digest> known;      // all of them are constants of the program; else:
  std::vector<std::string> names;   // of those that are passed,
  std::vector<std::size_t> places;  // as which of the tensors of a call, and
  std::vector<std::pair<std::string, Key>> fixed;  // names and content keys of constants
};

class Weights {
 public:
  // At least one group.
  explicit Weights(std::vector<WeightGroup> groups) : groups_(std::move(groups)) {}

  // What State.weights is for tensors with these contents: that of the first group, joined with
  // that of each other one. Throws as key() does, and kInvalidArgument for too few tensors.
  [[nodiscard]] Digest digest(std::span<const TensorView> tensors) const;

  // Of names, places and constants: what makes two of these the same.
  [[nodiscard]] Digest meaning() const;

 private:
  using Change = std::array<std::uint8_t, 16>;
  struct Known {
    Change change;
    Digest digest;
  };

  std::vector<WeightGroup> groups_;
  mutable std::deque<Known> known_;  // the last few, the oldest first
  mutable internal::ForkMutex mutex_{};
};

}  // namespace tensorkey::python::xla
