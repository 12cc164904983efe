#include <tensorkey/hints.h>

#include <algorithm>
#include <cstddef>

#include "memo/words.h"

namespace tensorkey {
namespace {

using internal::bytes;
using internal::percent;

constexpr std::uint64_t kLeastBatches = 4;  // full ones of a pass
constexpr std::size_t kRuns = 8;            // remembered
constexpr std::uint64_t kLeastRows = 100;   // to say anything about shares of them

bool more_than(double share, std::uint64_t part, std::uint64_t whole) {
  return static_cast<double>(part) > share * static_cast<double>(whole);
}

}  // namespace

void Passes::observe(const Call& call) {
  if (call.rows == run_.batch) {
    ++run_.batches;
  } else if (call.rows < run_.batch && run_.batches >= kLeastBatches) {
    run_.last = call.rows;
  } else {
    run_ = {.batch = call.rows, .batches = 1, .layer = call.layer};
  }
  run_.hits += call.hits;
  run_.changed |= run_.layer != call.layer;
  if (run_.last != 0) end();
}

void Passes::end() {
  const auto same = std::ranges::find_if(known_, [&](const Run& run) {
    return run.batch == run_.batch && run.batches == run_.batches && run.last == run_.last;
  });
  if (same != known_.end()) {
    rows_ = run_.batch * run_.batches + run_.last;
    hits_ = run_.hits;
    layer_changed_ = run_.changed || run_.layer != same->layer;
    known_.erase(same);
  }
  if (known_.size() == kRuns) known_.erase(known_.begin());
  known_.push_back(run_);
  run_ = {};
}

std::vector<std::string> hints(const MemoStats& layer, const CacheStats& cache,
                               const Passes& passes) {
  std::vector<std::string> said;
  const std::uint64_t gone = layer.misses_evicted + layer.misses_expired;
  if (passes.rows() > 0 && passes.hits() == 0 && !more_than(0.5, gone, layer.misses)) {
    said.push_back(passes.layer_changed()
                       ? "second pass and 0 % hits: the layer changed in between (weights in "
                         "training?); an answer is found by the weights that gave it"
                       : "second pass and 0 % hits: inputs differ each time (augmentation?)");
  }
  const std::size_t values = cache.bytes - std::min(cache.metadata, cache.bytes);
  if (cache.entries > 0 && cache.misses_evicted > 0 && cache.evictions + cache.rejections > 0) {
    const double entry = static_cast<double>(values) / static_cast<double>(cache.entries);
    const double room = static_cast<double>(cache.bound - std::min(cache.metadata, cache.bound));
    const double asked = static_cast<double>(cache.distinct) * entry;
    if (asked > 0 && room < 0.9 * asked && more_than(0.01, cache.misses_evicted, cache.lookups())) {
      said.push_back("the bound holds " + percent(room / asked) +
                     " of what was asked for: " + bytes(static_cast<double>(cache.bound)) +
                     " of about " + bytes(asked + static_cast<double>(cache.metadata)));
    }
  }
  if (cache.entries == 0 && cache.insertions == 0 && cache.rejections > 0) {
    said.push_back("no answer fits the bound of " + bytes(static_cast<double>(cache.bound)) +
                   ": nothing is stored");
  }
  if (layer.misses >= kLeastRows && layer.padded_rows > layer.misses) {
    const std::uint64_t run = layer.misses + layer.padded_rows;
    said.push_back(percent(static_cast<double>(layer.padded_rows) / static_cast<double>(run)) +
                   " of the rows run only filled a chunk: larger batches, or chunk=1, run fewer");
  }
  if (layer.misses >= kLeastRows && more_than(0.5, layer.misses_expired, layer.misses)) {
    said.push_back(
        percent(static_cast<double>(layer.misses_expired) / static_cast<double>(layer.misses)) +
        " of the misses were there, but older than ttl");
  }
  return said;
}

}  // namespace tensorkey
