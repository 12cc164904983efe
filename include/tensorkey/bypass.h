// When to leave the cache out: a layer that is cheaper than its cache is stepped aside for, and a
// stream that begins to repeat is found again.
//
//   Bypass bypass(BypassMode::kAuto);
//   if (bypass.aside()) return layer(x);        // counted; some nanoseconds
//   ...                                         // through the cache, measured
//   bypass.observe({.calls = 1, .rows = 64, .rows_run = 64, .seconds_layer = ..., ...});
//   puts(bypass.report().decision.c_str());     // "stepped aside: a call costs 45 us in the ..."
//
// What is decided is a pure function of the costs observed: nothing here reads a clock. Bypass is
// thread-safe; BypassPolicy, the deterministic part, is for one thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

#include <tensorkey/export.h>

namespace tensorkey {

// What calls that went through the cache measured; sums over calls.
struct CallCosts {
  std::uint64_t calls = 0;
  std::uint64_t rows = 0;       // asked for
  std::uint64_t hits = 0;       // of them, not run
  std::uint64_t rows_run = 0;   // misses, and rows that only filled a chunk
  double seconds_layer = 0;     // in running them
  double seconds_saved = 0;     // what the hits cost when they were computed
  double seconds_digest = 0;    // in making keys
  double seconds_lookup = 0;    // in finding entries
  double seconds_insert = 0;    // in storing entries
  double seconds_copy = 0;      // in assembling answers
  double seconds_frontend = 0;  // the rest of a call: fingerprint of the layer, conversions
  // Chunks that are not what the layer alone would run: of one row each, or padded. Such a call may
  // be priced: it runs the batch once more, as it was given.
  bool uneven = false;
  std::uint64_t rows_whole = 0;  // of batches that were run so
  double seconds_whole = 0;

  TENSORKEY_EXPORT CallCosts& operator+=(const CallCosts& other);
  friend bool operator==(const CallCosts&, const CallCosts&) = default;

  // All but the layer. Not negative.
  [[nodiscard]] TENSORKEY_EXPORT double seconds_cache() const noexcept;
};

// What a sum of costs comes to, for an average call.
struct BypassJudgement {
  double cache = 0;   // seconds that the cache takes
  double layer = 0;   // seconds that the layer alone would take for all rows
  double waste = 0;   // seconds that it takes more in its chunks, if no row is found
  double saving = 0;  // layer, less what running the misses takes; negative if padding costs more
  bool worthwhile = true;
};

// Worthwhile is a cache that saves what it costs, and one that costs at most 1.5 % of its layer:
// on the first pass over the data nothing is found yet; unless its chunks cost more than twice what
// the layer does, which the first repetition does not give back. seconds_row: what a row costs in
// chunks, for costs that ran none; seconds_row_whole: what it costs in batches as they were given,
// 0 if nobody knows. REQUIRES: costs.calls > 0.
TENSORKEY_EXPORT BypassJudgement judge(const CallCosts& costs, double seconds_row = 0,
                                       double seconds_row_whole = 0);

// The state machine behind BypassMode::kAuto.
//
// It goes through the cache for at least 50 calls and 1 s (layer and cache together), or 8 and 1 s
// where chunks are uneven, which may cost many times the layer; then judges. As long as it stays,
// it judges again after as many calls. Where chunks are uneven it first wants the price of the
// layer alone, and wants it anew when there were twice as many calls. Once aside, it probes: one
// call goes through the cache, and what it runs is stored, or else nothing could ever be found.
// Probes come at uneven distances, so that a fixed order of batches cannot step out of their way,
// and so rarely that they cost at most 1 % of the layer; while they find nothing, up to 8 times
// rarer.
//
// It goes back when the probes save more than they cost, or when they would if all calls had been
// stored: of n calls only `stored` were, so rows that repeat are found in stored / n of the probes.
// The second kind is evidence, not proof: it is tried for as many calls as there have been, so
// that whatever repeats within that distance is stored, and judged after that. A trial that fails
// is not repeated before its loss is 1 % of the layer's time.
class TENSORKEY_EXPORT BypassPolicy {
 public:
  // `costs`: of one call through the cache. `aside`: calls that ran the layer alone since the last
  // one. Returns the number of calls to run the layer alone from now on.
  std::uint64_t observe(const CallCosts& costs, std::uint64_t aside);

  [[nodiscard]] bool is_aside() const noexcept { return phase_ == Phase::kAside; }
  // Whether the next call that runs rows in uneven chunks should be priced.
  [[nodiscard]] bool wants_price() const noexcept { return wants_price_; }
  // What was decided last and why.
  [[nodiscard]] const std::string& decision() const noexcept { return decision_; }

 private:
  enum class Phase : std::uint8_t { kInside, kTrial, kAside };

  void learn_price(const CallCosts& costs);
  [[nodiscard]] bool waits_for_price();
  [[nodiscard]] BypassJudgement judgement() const;
  void judge_window();
  void judge_probes();
  void step_aside(const BypassJudgement& found);
  void go_back(Phase phase, std::string why);
  [[nodiscard]] std::uint64_t distance();

  Phase phase_ = Phase::kInside;
  bool tried_ = false;           // the window that is judged next follows a trial
  std::uint64_t calls_ = 0;      // all
  std::uint64_t stored_ = 0;     // of them, through the cache
  std::uint64_t trial_end_ = 0;  // in calls
  std::uint64_t next_trial_ = 0;
  std::uint64_t distance_ = 0;   // of probes, before jitter and growth
  std::uint64_t fruitless_ = 0;  // probes without a hit
  std::uint64_t probes_ = 0;     // since the beginning: the seed of their jitter
  double seconds_row_ = 0;       // of the layer in chunks, as last known
  double seconds_row_whole_ = 0;
  std::uint64_t priced_ = 0;  // in calls
  bool wants_price_ = false;
  unsigned prices_ = 0;  // since they are wanted
  unsigned waited_ = 0;  // calls
  double loss_ = 0;      // of the trial, seconds
  CallCosts window_;
  std::string decision_ = "in the cache: fewer than 50 calls and 1 s to judge by";
};

enum class BypassMode : std::uint8_t { kAuto, kNever, kAlways };

// Why calls ran without the cache, and how many.
struct BypassReport {
  std::uint64_t always = 0;       // BypassMode::kAlways
  std::uint64_t aside = 0;        // decided by the policy
  std::uint64_t disabled = 0;     // inside a Disabled
  std::uint64_t environment = 0;  // TENSORKEY_DISABLE
  std::string decision;           // of the policy: the last one, in words
};

class TENSORKEY_EXPORT Bypass {
 public:
  explicit Bypass(BypassMode mode = BypassMode::kAuto) : mode_(mode) {}

  // Whether this call is to run the layer alone. Counts it if so.
  [[nodiscard]] bool aside() noexcept;
  // What a call through the cache measured. True if calls ran the layer alone since the last one.
  bool observe(const CallCosts& costs);
  // Whether a call through the cache should be priced: see CallCosts::uneven.
  [[nodiscard]] bool wants_price() const noexcept {
    return mode() == BypassMode::kAuto && wants_price_.load(std::memory_order_relaxed);
  }

  [[nodiscard]] BypassMode mode() const noexcept { return mode_.load(std::memory_order_relaxed); }
  void set_mode(BypassMode mode) noexcept { mode_.store(mode, std::memory_order_relaxed); }
  [[nodiscard]] BypassReport report() const;
  // The counts, not what was learned.
  void reset_counts() noexcept;

 private:
  std::atomic<BypassMode> mode_;
  std::atomic<std::int64_t> left_{0};  // calls to run the layer alone
  std::atomic<bool> wants_price_{false};
  std::atomic<std::uint64_t> skipped_{0};
  std::atomic<std::uint64_t> always_{0}, aside_{0}, disabled_{0}, environment_{0};
  mutable std::mutex mutex_;
  BypassPolicy policy_;
};

// While one lives, in any thread, all calls in the process run their layers alone.
class TENSORKEY_EXPORT Disabled {
 public:
  Disabled() noexcept;
  ~Disabled();
  Disabled(const Disabled&) = delete;
  Disabled& operator=(const Disabled&) = delete;
};

// Whether a Disabled lives, or the environment variable TENSORKEY_DISABLE was neither unset, empty
// nor "0" when the process first asked: at the first call of a cached layer.
[[nodiscard]] TENSORKEY_EXPORT bool disabled() noexcept;

}  // namespace tensorkey
