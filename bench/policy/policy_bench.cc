// How much does each eviction policy save? Replays streams through the simulator and prints JSON.
//
//   policy_bench [--seeds 5] > policy.json
//
// The answers are checked: no policy beats the optimum where there is one.
#include <tensorkey/simulate.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "fixed.h"
#include "streams.h"

namespace {

using namespace bench;  // streams

struct Case {
  std::string name;
  std::function<Stream(std::uint64_t)> make;
  std::uint64_t capacity;
  double bar = 0;  // hit ratio in %, 0: none
};

using Figures = std::vector<std::pair<std::string, double>>;

constexpr std::string_view kAbout =
    "How much does each eviction policy save?\\n\\n"
    "Hit ratios in %, and seconds saved in %, the least over the seeds; keys are random numbers. "
    "`belady` is the optimum where all sizes and costs are equal. Counts of a replay by "
    "tensorkey::simulate(): no clock, the same on every machine. docs/eviction.md explains them.";

std::vector<Case> the_bars() {
  const auto shuffled = [](auto seed) { return epochs(seed, 10'000, 20, true); };
  return {
      {"fixed order, half", [](auto s) { return epochs(s, 10'000, 20, false); }, 5000, 46.5},
      {"reshuffled, half", shuffled, 5000, 46.5},
      {"reshuffled, quarter", shuffled, 2500, 23.2},
      {"half one-shot, half", [](auto s) { return epochs(s, 10'000, 20, true, true); }, 5000, 21.6},
      {"Zipf 0.99, tenth", [](auto s) { return zipf(s, 10'000, 0.99, 1'000'000); }, 1000, 74.3},
      {"Zipf-loop-Zipf, quarter", [](auto s) { return zipf_loop_zipf(s, 10'000, 200'000); }, 2500,
       53.0},
      {"bursts, 200", [](auto s) { return bursts(s, 200, 10'000, 4); }, 200, 70.5},
  };
}

// Nothing was chosen on these: other kinds, exponents, sizes and seeds.
std::vector<Case> held_out() {
  return {
      {"Zipf 0.6, 1 in 10", [](auto s) { return zipf(s, 30'000, 0.6, 400'000); }, 3000},
      {"Zipf 0.9, 1 in 100", [](auto s) { return zipf(s, 200'000, 0.9, 800'000); }, 2000},
      {"Zipf 1.05, 1 in 25", [](auto s) { return zipf(s, 50'000, 1.05, 500'000); }, 2000},
      {"Zipf and new scans", [](auto s) { return scans(s, 8000, 1.0, 6000, false, 500'000); },
       1500},
      {"Zipf and one scan", [](auto s) { return scans(s, 8000, 1.0, 6000, true, 500'000); }, 4000},
      {"drift, slow", [](auto s) { return drift(s, 20'000, 1.0, 50, 500'000); }, 2000},
      {"drift, fast", [](auto s) { return drift(s, 20'000, 0.85, 5, 500'000); }, 2000},
      {"recency, 1 in 50", [](auto s) { return recent(s, 50'000, 400'000); }, 1000},
      {"recency, 1 in 5", [](auto s) { return recent(s, 20'000, 400'000); }, 4000},
      {"block mixture, small",
       [](auto s) {
         return mixture(s, {500, 2500, 9000}, 12'000, 0.9, 500'000);
       },
       1000},
      {"block mixture, large",
       [](auto s) {
         return mixture(s, {500, 2500, 9000}, 12'000, 0.9, 500'000);
       },
       6000},
      {"newcomers, 10 % once", [](auto s) { return newcomers(s, 0.1, 30'000, 0.9, 600'000); },
       3000},
      {"newcomers, 40 % once", [](auto s) { return newcomers(s, 0.4, 30'000, 0.9, 600'000); },
       3000},
      {"epochs of 3,000 then Zipf",
       [](auto s) {
         Stream stream = epochs(s, 3000, 40, true);
         const Stream then = zipf(s + 1, 20'000, 0.8, 150'000);
         stream.insert(stream.end(), then.begin(), then.end());
         return stream;
       },
       1000},
  };
}

Figures replay(const Stream& stream, std::uint64_t capacity, bool cost) {
  Figures figures;
  for (const std::string_view policy : tensorkey::simulated_policies()) {
    const tensorkey::Replay replay = tensorkey::simulate(policy, stream, capacity);
    figures.emplace_back(policy, 100 * (cost ? replay.saved_ratio() : replay.hit_ratio()));
  }
  return figures;
}

void keep_least(Figures& least, const Figures& figures) {
  if (least.empty()) least = figures;
  for (std::size_t i = 0; i < least.size(); ++i) {
    least[i].second = std::min(least[i].second, figures[i].second);
  }
}

class Json {
 public:
  void table(const std::string& title) {
    std::printf("%s\n  \"%s\": [", first_table_ ? "" : "],", title.c_str());
    std::fprintf(stderr, "\n%s\n", title.c_str());
    first_table_ = false;
    first_row_ = true;
  }
  void row(const std::string& name, const Figures& figures, double bar) {
    std::printf("%s\n   {\"name\": \"%s\", \"figures\": {", first_row_ ? "" : ",", name.c_str());
    std::fprintf(stderr, "  %-28s", name.c_str());
    first_row_ = false;
    const char* comma = "";
    for (const auto& [policy, value] : figures) {
      std::printf("%s\"%s\": %.2f", comma, policy.c_str(), value);
      std::fprintf(stderr, " %s %.2f", policy.c_str(), value);
      comma = ", ";
    }
    std::printf("}");
    if (bar > 0) std::printf(", \"bar\": %.1f", bar);
    std::printf("}");
    if (bar > 0) std::fprintf(stderr, "  bar %.1f", bar);
    std::fprintf(stderr, "\n");
  }

 private:
  bool first_table_ = true;
  bool first_row_ = true;
};

void hit_ratios(Json& json, const std::string& title, const std::vector<Case>& cases,
                std::uint64_t first_seed, std::uint64_t seeds) {
  json.table(title);
  for (const Case& each : cases) {
    Figures least;
    for (std::uint64_t seed = first_seed; seed < first_seed + seeds; ++seed) {
      const Figures figures = replay(each.make(seed), each.capacity, false);
      for (const auto& [policy, value] : figures) {
        if (value > figures.back().second + 1e-9) {
          std::fprintf(stderr, "%s beats the optimum on %s\n", policy.c_str(), each.name.c_str());
          std::exit(1);
        }
      }
      keep_least(least, figures);
    }
    json.row(each.name, least, each.bar);
  }
}

std::uint64_t total_size(const Stream& stream) {
  std::unordered_map<std::uint64_t, std::uint64_t> sizes;
  for (const Access& access : stream) sizes[access.key] = access.size;
  std::uint64_t sum = 0;
  for (const auto& [key, size] : sizes) sum += size;
  return sum;
}

void sizes_and_costs(Json& json, std::uint64_t seeds) {
  json.table(
      "Cost saved in %: sizes lognormal from 4 KiB to 64 MiB, 5,000 keys; bar: 85 % of the "
      "best other");
  constexpr std::string_view kCosts[] = {"cost independent", "cost proportional", "cost steeper"};
  for (const bool in_epochs : {false, true}) {
    for (const Costs costs : {Costs::kIndependent, Costs::kProportional, Costs::kSteeper}) {
      for (const double share : {0.05, 0.1, 0.25, 0.5}) {
        Figures least;
        double bar = 0;
        for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
          Stream stream =
              in_epochs ? epochs(seed, 5000, 20, true) : zipf(seed, 5000, 0.99, 100'000);
          give_sizes(stream, seed, costs);
          const auto bytes = static_cast<double>(total_size(stream));
          const Figures figures = replay(stream, static_cast<std::uint64_t>(share * bytes), true);
          // The seed on which we are worst beside the best of the others, which know no future.
          double best = 0;
          for (const auto& [policy, value] : figures) {
            if (policy != "tensorkey" && policy != "belady") best = std::max(best, value);
          }
          const double before = least.empty() ? 1e9 : least.front().second / bar;
          if (figures.front().second / (0.85 * best) < before) {
            least = figures;
            bar = 0.85 * best;
          }
        }
        char name[96];
        std::snprintf(name, sizeof name, "%s, %s, %.0f %%", in_epochs ? "epochs" : "Zipf",
                      std::string(kCosts[static_cast<int>(costs)]).c_str(), 100 * share);
        json.row(name, least, bar);
      }
    }
  }
}

// What each tuning does alone, which is why there are several; and without the parts.
void alone(Json& json, std::vector<Case> cases) {
  json.table("Hit ratio in % of one tuning alone, without shadows (window, margin, period)");
  for (const Case& each : cases) {
    const Stream stream = each.make(1);
    Figures figures = {{"with shadows",
                        100 * tensorkey::simulate("tensorkey", stream, each.capacity).hit_ratio()}};
    for (const auto& [name, tuning] : fixed_tunings()) {
      figures.emplace_back(name, 100 * replay_fixed(stream, each.capacity, tuning));
    }
    json.row(each.name, figures, 0);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t seeds = 5;
  if (argc == 3 && std::strcmp(argv[1], "--seeds") == 0) {
    seeds = std::strtoull(argv[2], nullptr, 10);
  } else if (argc != 1) {
    std::fprintf(stderr, "usage: policy_bench [--seeds 5]\n");
    return 2;
  }
  std::printf(
      "{\"bench\": \"policy\", \"about\": \"%s\", \"machine\": {}, \"rounds\": %llu, \"tables\": {",
      std::string(kAbout).c_str(), static_cast<unsigned long long>(seeds));
  Json json;
  hit_ratios(json, "Hit ratio in %: streams of training and their like", the_bars(), 1, seeds);
  hit_ratios(json, "Hit ratio in %: held out, nothing was chosen on these", held_out(), 1001,
             std::min<std::uint64_t>(seeds, 2));
  sizes_and_costs(json, std::min<std::uint64_t>(seeds, 3));
  std::vector<Case> both = the_bars();
  for (const Case& each : held_out()) both.push_back(each);
  alone(json, both);
  std::printf("]}}\n");
  return 0;
}
