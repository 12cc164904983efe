// Monitor: what a cached layer knows of its own calls beside its Memo: when to step aside, why
// calls ran without the cache, and what to tell the user. Every call of it holds the GIL
// throughout, so a child process finds its locks free.
#include <tensorkey/bypass.h>
#include <tensorkey/hints.h>
#include <tensorkey/memo.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include <tensorkey/error.h>

#include "module.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

constexpr std::size_t kMostReasons = 64;

using Counts = std::map<std::string, std::uint64_t>;

void count(Counts& counts, const std::string& what) {
  const bool room = counts.size() < kMostReasons || counts.contains(what);
  ++counts[room ? what : "others"];
}

BypassMode mode_of(const std::string& name) {
  if (name == "auto") return BypassMode::kAuto;
  if (name == "never") return BypassMode::kNever;
  if (name == "always") return BypassMode::kAlways;
  throw Error(ErrorCode::kInvalidArgument,
              "[CachedLayer] bypass is '" + name + "'; expected 'auto', 'never' or 'always'");
}

const char* name_of(BypassMode mode) {
  switch (mode) {
    case BypassMode::kAuto: return "auto";
    case BypassMode::kNever: return "never";
    case BypassMode::kAlways: return "always";
  }
  return "";
}

struct Monitor {
  explicit Monitor(const std::string& mode) : bypass(mode_of(mode)) {}

  Bypass bypass;
  Passes passes;
  MemoStats last;  // as of the last observe(): what came since then is the call's
  double seconds_frontend = 0;
  Counts reasons;
  Counts errors;
  std::uint64_t host_copy_rows = 0;
  std::uint64_t host_copy_bytes = 0;
};

// Calls of other threads that end in between are mixed up with this one; their sum is right.
void observe(Monitor& self, const Memo& memo, std::uint64_t rows, std::uint64_t hits,
             std::uint64_t rows_run, double seconds_layer, double seconds, std::uint64_t layer) {
  const MemoStats now = memo.stats();
  const MemoStats& last = self.last;
  CallCosts costs{.calls = 1,
                  .rows = rows,
                  .hits = hits,
                  .rows_run = rows_run,
                  .seconds_layer = seconds_layer,
                  .seconds_saved = now.seconds_saved - last.seconds_saved,
                  .seconds_digest = now.seconds_digest - last.seconds_digest,
                  .seconds_lookup = now.seconds_lookup - last.seconds_lookup,
                  .seconds_insert = now.seconds_insert - last.seconds_insert,
                  .seconds_copy = now.seconds_copy - last.seconds_copy};
  self.last = now;
  costs.seconds_frontend = seconds - seconds_layer - costs.seconds_digest - costs.seconds_lookup -
                           costs.seconds_insert - costs.seconds_copy;
  self.seconds_frontend += costs.seconds_frontend;
  if (self.bypass.observe(costs)) self.passes.interrupt();
  self.passes.observe({.rows = rows, .hits = hits, .layer = layer});
}

nb::dict to_dict(const Counts& counts) {
  nb::dict result;
  for (const auto& [what, number] : counts) result[nb::str(what.c_str())] = number;
  return result;
}

nb::dict stats(const Monitor& self, const Memo& memo) {
  const MemoStats stats = memo.stats();
  nb::dict result;
  result["batches"] = stats.batches;
  result["lookups"] = stats.lookups;
  result["hits"] = stats.hits;
  result["duplicates"] = stats.duplicates;
  result["waits"] = stats.waits;
  result["misses"] = stats.misses;
  result["misses_new"] = stats.misses_new;
  result["misses_evicted"] = stats.misses_evicted;
  result["misses_expired"] = stats.misses_expired;
  result["padded_rows"] = stats.padded_rows;
  result["rejections"] = stats.rejections;
  result["bytes_read"] = stats.bytes_read;
  result["host_copy_rows"] = self.host_copy_rows;
  result["host_copy_bytes"] = self.host_copy_bytes;
  result["seconds_saved"] = stats.seconds_saved;
  result["seconds_spent"] = stats.seconds_spent;
  result["seconds_digest"] = stats.seconds_digest;
  result["seconds_lookup"] = stats.seconds_lookup;
  result["seconds_insert"] = stats.seconds_insert;
  result["seconds_copy"] = stats.seconds_copy;
  result["seconds_frontend"] = self.seconds_frontend;
  const BypassReport report = self.bypass.report();
  const bool decides = self.bypass.mode() == BypassMode::kAuto;
  const std::string told = std::string("bypass='") + name_of(self.bypass.mode()) + "'";
  result["decision"] = decides ? report.decision : told;
  Counts reasons = self.reasons;
  if (report.aside > 0) reasons["bypass='auto' stepped aside"] += report.aside;
  if (report.always > 0) reasons["bypass='always'"] += report.always;
  if (report.disabled > 0) reasons["tensorkey.disabled()"] += report.disabled;
  if (report.environment > 0) reasons["TENSORKEY_DISABLE is set"] += report.environment;
  result["bypasses"] = to_dict(reasons);
  result["errors"] = to_dict(self.errors);
  nb::list said;
  for (const std::string& hint : hints(stats, memo.cache().stats(), self.passes)) {
    said.append(hint);
  }
  result["hints"] = said;
  return result;
}

void reset(Monitor& self, Memo& memo) {
  memo.reset_stats();
  self.bypass.reset_counts();
  self.passes = {};
  self.last = {};
  self.seconds_frontend = 0;
  self.reasons.clear();
  self.errors.clear();
  self.host_copy_rows = self.host_copy_bytes = 0;
}

// An open tensorkey.disabled().
struct Switch {
  std::optional<Disabled> held;
};

}  // namespace

void init_monitor(nb::module_& m) {
  nb::class_<Monitor>(m, "Monitor", "What a cached layer knows of its calls. Thread-safe.")
      .def(nb::init<const std::string&>(), "bypass"_a)
      .def(
          "aside", [](Monitor& self) { return self.bypass.aside(); },
          "Whether this call is to run the layer alone; counts it if so.")
      .def("observe", &observe, "memo"_a, "rows"_a, "hits"_a, "rows_run"_a, "seconds_layer"_a,
           "seconds"_a, "layer"_a,
           "Report a call that went through the cache: what it ran and how long it took, in all\n"
           "and in the layer, waiting for other threads left out. `layer`: a number that changes\n"
           "when the layer does.")
      .def(
          "bypass", [](Monitor& self, const std::string& why) { count(self.reasons, why); },
          "reason"_a, "Count a call that ran without the cache.")
      .def(
          "error", [](Monitor& self, const std::string& kind) { count(self.errors, kind); },
          "kind"_a, "Count an exception.")
      .def(
          "host_copy",
          [](Monitor& self, std::uint64_t rows, std::uint64_t bytes) {
            self.host_copy_rows += rows;
            self.host_copy_bytes += bytes;
          },
          "rows"_a, "bytes"_a, "Count what was copied from a device.")
      .def_prop_rw(
          "mode", [](const Monitor& self) { return name_of(self.bypass.mode()); },
          [](Monitor& self, const std::string& mode) { self.bypass.set_mode(mode_of(mode)); },
          "\"auto\", \"never\" or \"always\".")
      .def("stats", &stats, "memo"_a, nb::sig("def stats(self, memo: Memo) -> dict[str, object]"),
           "All counters of the layer in one snapshot.")
      .def("reset", &reset, "memo"_a, "Set all counters to zero; what was learned stays.");

  nb::class_<Switch>(m, "Switch", "While open, all cached layers run without their caches.")
      .def(nb::init<>())
      .def("open", [](Switch& self) { self.held.emplace(); })
      .def("close", [](Switch& self) { self.held.reset(); });
  m.def("is_disabled", &disabled,
        "Whether caches are switched off, by disabled() or by TENSORKEY_DISABLE.");
}

}  // namespace tensorkey::python
