#include "digest/cpu.h"

#include <array>
#include <atomic>

#include "digest/blake3_kernels.h"

namespace tensorkey::internal {
namespace {

constexpr std::array kBestFirst = {Target::kAvx3,  Target::kAvx2, Target::kSse4,
                                   Target::kSsse3, Target::kNeon, Target::kPortable};

bool runs_here(Target target) noexcept {
  switch (target) {
#if defined(__x86_64__) || defined(__i386__)
    case Target::kAvx3:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx2");
    case Target::kAvx2: return __builtin_cpu_supports("avx2");
    case Target::kSse4: return __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("sse4.2");
    case Target::kSsse3: return __builtin_cpu_supports("ssse3");
    case Target::kNeon: return false;
#else
    case Target::kAvx3:
    case Target::kAvx2:
    case Target::kSse4:
    case Target::kSsse3: return false;
    case Target::kNeon: return true;  // compiled in only where it is the baseline
#endif
    case Target::kPortable: return true;
  }
  return false;
}

bool available(Target target) noexcept {
  return find_kernels(target) != nullptr && runs_here(target);
}

Target best_target() noexcept {
  for (const Target target : kBestFirst) {
    if (available(target)) return target;
  }
  return Target::kPortable;
}

constexpr unsigned char kUnset = 255;
std::atomic<unsigned char> chosen = kUnset;

}  // namespace

std::string_view target_name(Target target) noexcept {
  switch (target) {
    case Target::kPortable: return "portable";
    case Target::kSsse3: return "ssse3";
    case Target::kSse4: return "sse4";
    case Target::kAvx2: return "avx2";
    case Target::kAvx3: return "avx3";
    case Target::kNeon: return "neon";
  }
  return "unknown";
}

std::vector<Target> available_targets() {
  std::vector<Target> targets;
  for (const Target target : kBestFirst) {
    if (available(target)) targets.push_back(target);
  }
  return targets;
}

Target chosen_target() noexcept {
  const unsigned char now = chosen.load(std::memory_order_relaxed);
  if (now != kUnset) return static_cast<Target>(now);
  const Target best = best_target();  // threads that race here find the same
  chosen.store(static_cast<unsigned char>(best), std::memory_order_relaxed);
  return best;
}

void force_target(std::optional<Target> target) noexcept {
  chosen.store(static_cast<unsigned char>(target.value_or(best_target())),
               std::memory_order_relaxed);
}

}  // namespace tensorkey::internal
