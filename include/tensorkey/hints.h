// Hints: what the counters of a layer say about its use, in words, each at most once.
//
//   Passes passes;
//   passes.observe({.rows = 64, .hits = 0, .layer = 1});     // every call
//   for (const std::string& hint : hints(memo.stats(), cache.stats(), passes)) ...
//
// hints() is a pure function. A hint is only given where the counters leave no other reading; what
// it cannot know it puts as a question. Passes is for one thread at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <tensorkey/cache.h>
#include <tensorkey/export.h>
#include <tensorkey/memo.h>

namespace tensorkey {

// Recognises passes over the same data by the sizes of their batches: at least four of one size,
// then a smaller one, twice alike among the last eight such runs (training and validation take
// turns). That is how loaders end a pass that they do not cut short. A loader that drops its last
// batch, or needs none, cannot be told from a server and is not recognised; nor are passes during
// which calls ran without the cache.
class TENSORKEY_EXPORT Passes {
 public:
  struct Call {
    std::uint64_t rows = 0;
    std::uint64_t hits = 0;
    std::uint64_t layer = 0;  // any number that changes when the layer does
  };
  void observe(const Call& call);
  // A call was not seen: the pass at hand is not counted.
  void interrupt() noexcept { run_ = {}; }

  // Of the last pass that was not the first over its data.
  [[nodiscard]] std::uint64_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::uint64_t hits() const noexcept { return hits_; }
  // Whether the layer changed since the pass before it.
  [[nodiscard]] bool layer_changed() const noexcept { return layer_changed_; }

 private:
  struct Run {
    std::uint64_t batch = 0, batches = 0, last = 0;  // rows, number, rows
    std::uint64_t hits = 0;
    std::uint64_t layer = 0;
    bool changed = false;
  };
  void end();

  Run run_;
  std::vector<Run> known_;  // the latest last
  std::uint64_t rows_ = 0;
  std::uint64_t hits_ = 0;
  bool layer_changed_ = false;
};

TENSORKEY_EXPORT std::vector<std::string> hints(const MemoStats& layer, const CacheStats& cache,
                                                const Passes& passes);

}  // namespace tensorkey
