// xxh3() against libxxhash's run-time dispatched XXH3_128bits_withSecret, same secret, answers
// compared. Rounds of the two alternate, so a noisy machine disturbs both; a ratio is the median
// over rounds of theirs / ours (above 1: we are faster). Prints one JSON object.
//
//   xxh3_bench [rounds]
#include <xxh_x86dispatch.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string_view>
#include <vector>

#include "digest/cpu.h"
#include "digest/xxh3.h"

namespace {

using tensorkey::internal::Hash128;
using Clock = std::chrono::steady_clock;

Hash128 theirs(std::span<const std::byte> data) {
  const auto secret = tensorkey::internal::xxh3_secret();
  const XXH128_hash_t h =
      XXH3_128bits_withSecret_dispatch(data.data(), data.size(), secret.data(), secret.size());
  return {h.low64, h.high64};
}

// Nanoseconds a call. Each call's data depend on the last answer, as a lookup's would: no two
// calls overlap.
template <class Hash>
double time_one(Hash hash, std::span<const std::byte> data, std::size_t calls) {
  std::size_t shift = 0;
  const auto begin = Clock::now();
  for (std::size_t i = 0; i < calls; ++i) {
    shift = hash(data.subspan(shift, data.size() - 1)).low & 1;
  }
  const std::chrono::duration<double, std::nano> took = Clock::now() - begin;
  return took.count() / static_cast<double>(calls);
}

double quantile(std::vector<double> values, double share) {
  const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<std::size_t>(at)];
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t rounds = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 101;
  const std::string_view target =
      tensorkey::internal::target_name(tensorkey::internal::chosen_target());
  std::printf(
      "{\"bench\": \"xxh3\", \"about\": \"Is XXH3 with our own choice of instructions as fast as "
      "the dispatched libxxhash?\\nA ratio is its time over ours: above 1 if we are faster.\", "
      "\"machine\": {\"target\": \"%.*s\", \"compiler\": \"%s\"}, \"rounds\": %zu, \"threads\": 1, "
      "\"tables\": {\"one message\": [",
      static_cast<int>(target.size()), target.data(), __VERSION__, rounds);
  bool first = true;
  for (const std::size_t bytes : {64UL, 256UL, 1024UL, 1536UL, 65536UL, 1UL << 20}) {
    std::vector<std::byte> data(bytes + 1);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 167 >> 3);
    if (tensorkey::internal::xxh3(data) != theirs(data)) return EXIT_FAILURE;
    const std::size_t calls = std::max<std::size_t>(4, (std::size_t{1} << 19) / (bytes + 64));
    std::vector<double> ours_ns;
    std::vector<double> theirs_ns;
    std::vector<double> ratios;
    for (std::size_t round = 0; round < rounds; ++round) {
      ours_ns.push_back(time_one(tensorkey::internal::xxh3, data, calls));
      theirs_ns.push_back(time_one(theirs, data, calls));
      ratios.push_back(theirs_ns.back() / ours_ns.back());
    }
    const bool has_bar = bytes == 64 || bytes == 1024 || bytes == 65536;
    std::printf("%s\n  {\"name\": \"%zu bytes\", \"ns\": %.2f, \"libxxhash_ns\": %.2f, ",
                first ? "" : ",", bytes, quantile(ours_ns, 0.5), quantile(theirs_ns, 0.5));
    std::printf("\"ratio\": %.3f, \"quartiles\": [%.3f, %.3f]%s}", quantile(ratios, 0.5),
                quantile(ratios, 0.25), quantile(ratios, 0.75), has_bar ? ", \"bar\": 0.83" : "");
    first = false;
  }
  std::puts("\n]}}");
  return EXIT_SUCCESS;
}
