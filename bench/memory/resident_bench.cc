// Is the bound a bound for the process too? 16 threads write entries under reused keys into a cache
// of 256 MiB; the resident set is sampled every 2 ms. Prints one JSON object.
//
//   resident_bench
#include "store/resident_set.h"

#include <cstdio>
#include <cstdlib>

int main() {
  namespace resident = tensorkey::resident;
  constexpr std::size_t kBound = 256 * resident::kMiB;
  std::printf(
      "{\"bench\": \"resident\", \"about\": \"Is the bound a bound for the process too?\\n16 "
      "threads write entries under reused keys into a cache of 256 MiB. A ratio is the peak of the "
      "resident set, above what it was before, over the bound; the bar is its upper limit.\", "
      "\"machine\": {\"compiler\": \"%s\", \"cpus\": %u}, \"rounds\": 1, \"threads\": 16, "
      "\"tables\": {\"peak resident set over the bound\": [",
      __VERSION__, std::thread::hardware_concurrency());
  const char* separator = "";
  for (const resident::Mix& mix : resident::kMixes) {
    const resident::Peak peak = resident::measure(mix, kBound);
    if (peak.counted > kBound) return EXIT_FAILURE;
    std::printf("%s\n  {\"name\": \"%s\", \"ratio\": %.3f, \"bar\": 1.1, ", separator, mix.name,
                static_cast<double>(peak.resident) / kBound);
    std::printf("\"note\": \"counted %.3f, %zu entries, %.1f %% metadata, %llu evictions\"}",
                static_cast<double>(peak.counted) / kBound, peak.last.entries,
                100.0 * static_cast<double>(peak.last.metadata) / kBound,
                static_cast<unsigned long long>(peak.last.evictions));
    separator = ",";
  }
  std::puts("\n]}}");
  return EXIT_SUCCESS;
}
