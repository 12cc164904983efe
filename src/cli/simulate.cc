// tensorkey-simulate: what hit ratio would a cache of this size have had? Reads a trace, replays it
// under each policy, prints a table or JSON. A mistake of the caller is told on stderr: exit
// status 2.
#include <tensorkey/error.h>
#include <tensorkey/simulate.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace {

using tensorkey::Access;
using tensorkey::Error;
using tensorkey::ErrorCode;
using tensorkey::Replay;

constexpr std::string_view kUsage =
    R"(usage: tensorkey-simulate TRACE (--bytes SIZE | --entries N) [--policy NAME]... [--json]

Replays a trace under eviction policies and prints what each would have saved.

  TRACE          a file with one request a line, `key [size [cost]]`; - is standard input
  --bytes SIZE   capacity in bytes: 1048576, "512 KiB", 2GiB, 1.5GB
  --entries N    capacity in entries; the sizes in the trace are ignored
  --policy NAME  one policy, may be repeated; all of them by default:
                )";

struct Options {
  std::string trace;
  std::uint64_t capacity = 0;
  bool entries = false;
  bool json = false;
  std::vector<std::string> policies;
};

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "[tensorkey-simulate] " + message);
}

std::uint64_t parse_count(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value == 0) {
    refuse("--entries is \"" + std::string(text) + "\"; expected a whole number from 1");
  }
  return value;
}

std::uint64_t parse_bytes(std::string_view text) {
  struct Unit {
    std::string_view name;
    double bytes;
  };
  constexpr std::array kUnits = {Unit{"", 1},         Unit{"B", 1},        Unit{"KiB", 0x1p10},
                                 Unit{"MiB", 0x1p20}, Unit{"GiB", 0x1p30}, Unit{"TiB", 0x1p40},
                                 Unit{"KB", 1e3},     Unit{"kB", 1e3},     Unit{"MB", 1e6},
                                 Unit{"GB", 1e9},     Unit{"TB", 1e12}};
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  unit.remove_prefix(std::min(unit.find_first_not_of(' '), unit.size()));
  const auto* const found = std::ranges::find(kUnits, unit, &Unit::name);
  const double bytes = found == kUnits.end() ? 0 : number * found->bytes;
  if (error != std::errc{} || !(bytes >= 1 && bytes <= 0x1p60)) {
    refuse("--bytes is \"" + std::string(text) + "\"; expected such as 1048576 or \"2 GiB\"");
  }
  return static_cast<std::uint64_t>(bytes);
}

std::optional<Options> parse(const std::vector<std::string>& arguments) {
  Options options;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == arguments.size()) refuse(argument + " has no value after it");
      return arguments[++i];
    };
    if (argument == "--help" || argument == "-h") return std::nullopt;
    if (argument == "--json") {
      options.json = true;
    } else if (argument == "--policy") {
      options.policies.push_back(value());
    } else if (argument == "--bytes" || argument == "--entries") {
      if (options.capacity != 0)
        refuse("the capacity is given twice; expected --bytes or --entries");
      options.entries = argument == "--entries";
      options.capacity = options.entries ? parse_count(value()) : parse_bytes(value());
    } else if (argument != "-" && argument.starts_with('-')) {
      refuse("no option is called " + argument + "; see --help");
    } else if (options.trace.empty()) {
      options.trace = argument;
    } else {
      refuse("there are two traces, " + options.trace + " and " + argument + "; expected one");
    }
  }
  if (options.trace.empty()) refuse("no trace was named; expected a file, or - for standard input");
  if (options.capacity == 0) refuse("no capacity was given; expected --bytes SIZE or --entries N");
  const auto known = tensorkey::simulated_policies();
  if (options.policies.empty()) options.policies.assign(known.begin(), known.end());
  return options;
}

std::vector<Access> read(const Options& options) {
  std::vector<Access> trace;
  if (options.trace == "-") {
    trace = tensorkey::read_trace(std::cin);
  } else {
    std::ifstream file(options.trace, std::ios::binary);
    if (!file) refuse("the trace " + options.trace + " cannot be opened; expected a readable file");
    trace = tensorkey::read_trace(file);
  }
  if (options.entries) {
    for (Access& access : trace) access.size = 1;
  }
  return trace;
}

void print_table(const Options& options, const std::vector<Replay>& replays) {
  const Replay& any = replays.front();
  std::printf("%llu requests, capacity %llu %s\n\n", static_cast<unsigned long long>(any.requests),
              static_cast<unsigned long long>(options.capacity),
              options.entries ? "entries" : "bytes");
  std::printf("%-18s %9s %9s %9s %12s %12s\n", "policy", "hits", "bytes", "cost", "evictions",
              "rejections");
  for (const Replay& replay : replays) {
    std::printf("%-18s %8.2f%% %8.2f%% %8.2f%% %12llu %12llu\n", replay.policy.c_str(),
                100 * replay.hit_ratio(), 100 * replay.byte_hit_ratio(), 100 * replay.saved_ratio(),
                static_cast<unsigned long long>(replay.evictions),
                static_cast<unsigned long long>(replay.rejections));
  }
}

void print_json(const Options& options, const std::vector<Replay>& replays) {
  std::printf("{\"capacity\": %llu, \"unit\": \"%s\", \"policies\": [",
              static_cast<unsigned long long>(options.capacity),
              options.entries ? "entries" : "bytes");
  const char* separator = "\n";
  for (const Replay& replay : replays) {
    // The names are ours: nothing to escape.
    std::printf("%s  {\"policy\": \"%s\", \"requests\": %llu, \"hits\": %llu, ", separator,
                replay.policy.c_str(), static_cast<unsigned long long>(replay.requests),
                static_cast<unsigned long long>(replay.hits));
    std::printf("\"hit_ratio\": %.6f, \"byte_hit_ratio\": %.6f, \"saved_ratio\": %.6f, ",
                replay.hit_ratio(), replay.byte_hit_ratio(), replay.saved_ratio());
    std::printf("\"evictions\": %llu, \"rejections\": %llu}",
                static_cast<unsigned long long>(replay.evictions),
                static_cast<unsigned long long>(replay.rejections));
    separator = ",\n";
  }
  std::printf("\n]}\n");
}

void print_usage() {
  std::string names;
  for (const std::string_view name : tensorkey::simulated_policies()) {
    names += (names.empty() ? "" : " ") + std::string(name);
  }
  std::printf("%s%s\n  --json         for machines\n", std::string(kUsage).c_str(), names.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto options = parse({argv + 1, argv + argc});
    if (!options) {
      print_usage();
      return 0;
    }
    const std::vector<Access> trace = read(*options);
    std::vector<Replay> replays;
    for (const std::string& policy : options->policies) {
      replays.push_back(tensorkey::simulate(policy, trace, options->capacity));
    }
    (options->json ? print_json : print_table)(*options, replays);
    return std::fflush(stdout) == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 2;
  }
}
