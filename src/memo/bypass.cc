#include <tensorkey/bypass.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "memo/words.h"

namespace tensorkey {
namespace {

using internal::duration;
using internal::percent;

constexpr std::uint64_t kCalls = 50;  // the least that is judged
constexpr std::uint64_t kUnevenCalls = 8;
constexpr unsigned kPrices = 2;    // of which the lower counts: the first may pay for a start
constexpr double kSeconds = 1.0;   // of these calls, layer and cache together
constexpr double kBurden = 0.015;  // of the layer: cheap enough to stay in any case
constexpr double kProbing = 0.01;  // of the layer: what probes may cost, and failed trials
constexpr double kGain = 1.25;     // saving over cost that is worth going back for
constexpr double kWaste = 1.0;     // of the layer: what the first repetition gives back
constexpr std::uint64_t kLeastProbes = 4;
constexpr std::uint64_t kLeastHits = 8;  // rows: what scaled evidence must consist of
constexpr std::uint64_t kMemory = 64;    // probes after which older ones count half
constexpr std::uint64_t kShortest = 8;   // distances of probes, in calls
constexpr std::uint64_t kLongest = 65536;
constexpr std::uint64_t kGrowth = 8;  // of the distance, while nothing is found

std::string per_call(const BypassJudgement& found) {
  std::string text = "a call costs " + duration(found.cache) + " in the cache and saves " +
                     duration(std::max(found.saving, 0.0)) + " of a layer of " +
                     duration(found.layer);
  if (found.waste > kWaste * found.layer) {
    text += ", which takes " + duration(found.layer + found.waste) + " in its chunks";
  }
  return text;
}

std::string share_of_layer(const BypassJudgement& found) {
  return "a call costs " + duration(found.cache) + " in the cache, " +
         percent(found.cache / found.layer) + " of a layer of " + duration(found.layer);
}

// splitmix64: the jitter is the same in every run.
std::uint64_t scramble(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

void halve(CallCosts& costs) {
  for (std::uint64_t* count :
       {&costs.calls, &costs.rows, &costs.hits, &costs.rows_run, &costs.rows_whole}) {
    *count /= 2;
  }
  for (double* seconds : {&costs.seconds_layer, &costs.seconds_saved, &costs.seconds_digest,
                          &costs.seconds_lookup, &costs.seconds_insert, &costs.seconds_copy,
                          &costs.seconds_frontend, &costs.seconds_whole}) {
    *seconds /= 2;
  }
}

double row_of(const CallCosts& costs, double otherwise) {
  if (costs.rows_run > 0) return costs.seconds_layer / static_cast<double>(costs.rows_run);
  if (otherwise > 0 || costs.hits == 0) return otherwise;
  return costs.seconds_saved / static_cast<double>(costs.hits);
}

bool cheap(const BypassJudgement& found) {
  return found.cache <= kBurden * found.layer && found.waste <= kWaste * found.layer;
}

std::atomic<int> open_disabled{0};

bool disabled_by_environment() noexcept {
  static const bool off = [] {
    const char* value = std::getenv("TENSORKEY_DISABLE");  // NOLINT(concurrency-mt-unsafe)
    return value != nullptr && *value != '\0' && std::string_view(value) != "0";
  }();
  return off;
}

}  // namespace

CallCosts& CallCosts::operator+=(const CallCosts& other) {
  calls += other.calls;
  rows += other.rows;
  hits += other.hits;
  rows_run += other.rows_run;
  seconds_layer += other.seconds_layer;
  seconds_saved += other.seconds_saved;
  seconds_digest += other.seconds_digest;
  seconds_lookup += other.seconds_lookup;
  seconds_insert += other.seconds_insert;
  seconds_copy += other.seconds_copy;
  seconds_frontend += other.seconds_frontend;
  uneven |= other.uneven;
  rows_whole += other.rows_whole;
  seconds_whole += other.seconds_whole;
  return *this;
}

double CallCosts::seconds_cache() const noexcept {
  return std::max(
      0.0, seconds_digest + seconds_lookup + seconds_insert + seconds_copy + seconds_frontend);
}

BypassJudgement judge(const CallCosts& costs, double seconds_row, double seconds_row_whole) {
  const auto calls = static_cast<double>(costs.calls);
  const double rows = static_cast<double>(costs.rows) / calls;
  const double in_chunks = row_of(costs, seconds_row) * rows;
  BypassJudgement found;
  found.cache = costs.seconds_cache() / calls;
  found.layer = in_chunks;
  if (seconds_row_whole > 0) {
    const std::uint64_t missed = costs.rows - std::min(costs.hits, costs.rows);
    const double anew =  // padding included
        missed > 0 ? costs.seconds_layer / static_cast<double>(missed) * rows : in_chunks;
    found.layer = seconds_row_whole * rows;
    found.waste = std::max(0.0, anew - found.layer);
  }
  found.saving = found.layer - costs.seconds_layer / calls;
  found.worthwhile = cheap(found) || found.saving >= found.cache;
  return found;
}

std::uint64_t BypassPolicy::observe(const CallCosts& costs, std::uint64_t aside) {
  calls_ += aside + costs.calls;
  stored_ += costs.calls;
  window_ += costs;
  learn_price(costs);
  if (phase_ == Phase::kAside) {
    fruitless_ = costs.hits == 0 ? fruitless_ + 1 : 0;
    if (window_.calls >= kLeastProbes) judge_probes();
    return phase_ == Phase::kAside ? distance() : 0;
  }
  if (phase_ == Phase::kTrial) {
    if (calls_ < trial_end_) return 0;
    const BypassJudgement found = judgement();
    loss_ = (found.cache - found.saving) * static_cast<double>(window_.calls);
    seconds_row_ = row_of(window_, seconds_row_);
    phase_ = Phase::kInside;
    tried_ = true;
    window_ = {};
    return 0;
  }
  if (window_.calls >= (window_.uneven ? kUnevenCalls : kCalls) &&
      window_.seconds_layer + window_.seconds_cache() >= kSeconds && !waits_for_price()) {
    judge_window();
  }
  return phase_ == Phase::kAside ? distance() : 0;
}

void BypassPolicy::learn_price(const CallCosts& costs) {
  if (costs.rows_whole == 0 || !wants_price_) return;
  const double price = costs.seconds_whole / static_cast<double>(costs.rows_whole);
  seconds_row_whole_ = prices_ == 0 ? price : std::min(price, seconds_row_whole_);
  if (++prices_ < kPrices) return;
  prices_ = 0;
  priced_ = calls_;
  wants_price_ = false;
}

// For as many calls as could give them: the next ones may run nothing.
bool BypassPolicy::waits_for_price() {
  if (!wants_price_ && window_.uneven && (priced_ == 0 || calls_ >= 2 * priced_)) {
    wants_price_ = true;
    waited_ = 0;
  }
  return wants_price_ && waited_++ < kPrices;
}

BypassJudgement BypassPolicy::judgement() const {
  const bool known = window_.uneven || window_.rows_run == 0;
  return judge(window_, seconds_row_, known ? seconds_row_whole_ : 0);
}

void BypassPolicy::judge_window() {
  const BypassJudgement found = judgement();
  seconds_row_ = row_of(window_, seconds_row_);
  if (found.worthwhile) {
    decision_ =
        "in the cache: " + (found.saving >= found.cache ? per_call(found) : share_of_layer(found));
  } else {
    step_aside(found);
  }
  window_ = {};
  tried_ = false;
}

void BypassPolicy::step_aside(const BypassJudgement& found) {
  if (tried_) {
    const double loss = loss_ + (found.cache - found.saving) * static_cast<double>(window_.calls);
    const double calls = loss / (kProbing * std::max(found.layer, 1e-9));
    next_trial_ = calls_ + static_cast<std::uint64_t>(std::clamp(calls, 0.0, 1e15));
  }
  phase_ = Phase::kAside;
  decision_ = "stepped aside: " + per_call(found);
  const double probe = found.cache + found.waste;
  const double calls = std::ceil(probe / (kProbing * std::max(found.layer, 1e-12)));
  distance_ = static_cast<std::uint64_t>(
      std::clamp(calls, static_cast<double>(kShortest), static_cast<double>(kLongest)));
  fruitless_ = 0;
}

void BypassPolicy::judge_probes() {
  const BypassJudgement found = judgement();
  if (cheap(found)) return go_back(Phase::kInside, share_of_layer(found));
  if (found.saving >= kGain * found.cache) return go_back(Phase::kInside, per_call(found));
  const double hits = static_cast<double>(window_.hits) / static_cast<double>(window_.rows);
  const double coverage = static_cast<double>(stored_) / static_cast<double>(calls_);
  const double repeated = std::min(1.0, hits / coverage);
  if (window_.hits >= kLeastHits && calls_ >= next_trial_ &&
      repeated * found.layer >= kGain * found.cache + found.waste) {
    trial_end_ = 2 * calls_;
    return go_back(Phase::kTrial, percent(hits) + " of the rows probed were found, though only " +
                                      percent(coverage) + " of the calls were stored");
  }
  if (window_.calls >= kMemory) {
    seconds_row_ = row_of(window_, seconds_row_);
    halve(window_);
  }
}

void BypassPolicy::go_back(Phase phase, std::string why) {
  seconds_row_ = row_of(window_, seconds_row_);
  phase_ = phase;
  tried_ = false;
  window_ = {};
  decision_ = "back in the cache: " + std::move(why);
}

std::uint64_t BypassPolicy::distance() {
  const std::uint64_t growth = std::min(kGrowth, 1 + fruitless_ / 16);
  const std::uint64_t mean = std::min(kLongest, distance_ * growth);
  return mean / 2 + scramble(probes_++) % (mean + 1);
}

bool Bypass::aside() noexcept {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  if (disabled()) {
    (open_disabled.load(kRelaxed) > 0 ? disabled_ : environment_).fetch_add(1, kRelaxed);
    return true;
  }
  switch (mode()) {
    case BypassMode::kNever: return false;
    case BypassMode::kAlways: always_.fetch_add(1, kRelaxed); return true;
    case BypassMode::kAuto: break;
  }
  // Threads that meet at the last one may push it below zero, which means the same.
  if (left_.load(kRelaxed) <= 0 || left_.fetch_sub(1, kRelaxed) <= 0) return false;
  aside_.fetch_add(1, kRelaxed);
  skipped_.fetch_add(1, kRelaxed);
  return true;
}

bool Bypass::observe(const CallCosts& costs) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t skipped = skipped_.exchange(0, std::memory_order_relaxed);
  const std::uint64_t left = policy_.observe(costs, skipped);
  left_.store(static_cast<std::int64_t>(left), std::memory_order_relaxed);
  wants_price_.store(policy_.wants_price(), std::memory_order_relaxed);
  return skipped > 0;
}

BypassReport Bypass::report() const {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  const std::lock_guard lock(mutex_);
  return {always_.load(kRelaxed), aside_.load(kRelaxed), disabled_.load(kRelaxed),
          environment_.load(kRelaxed), policy_.decision()};
}

void Bypass::reset_counts() noexcept {
  for (auto* count : {&always_, &aside_, &disabled_, &environment_}) {
    count->store(0, std::memory_order_relaxed);
  }
}

Disabled::Disabled() noexcept { open_disabled.fetch_add(1, std::memory_order_relaxed); }
Disabled::~Disabled() { open_disabled.fetch_sub(1, std::memory_order_relaxed); }

bool disabled() noexcept {
  return open_disabled.load(std::memory_order_relaxed) > 0 || disabled_by_environment();
}

}  // namespace tensorkey
