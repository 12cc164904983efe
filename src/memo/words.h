// Measured figures as text, for decisions and hints.
#pragma once

#include <cstddef>
#include <cstdio>
#include <iterator>
#include <string>

namespace tensorkey::internal {

inline std::string number(double value, int digits, const char* unit) {
  char text[64];
  const int length = std::snprintf(text, sizeof text, "%.*f %s", digits, value, unit);
  return length > 0 ? text : unit;
}

// Three figures and a unit: "45.0 us".
inline std::string duration(double seconds) {
  const char* unit = "s";
  if (seconds < 1e-3) {
    seconds *= 1e6;
    unit = "us";
  } else if (seconds < 1) {
    seconds *= 1e3;
    unit = "ms";
  }
  const int digits = seconds < 9.995 ? 2 : seconds < 99.95 ? 1 : 0;
  return number(seconds, digits, unit);
}

// "30 %", or "0.6 %" below ten.
inline std::string percent(double share) {
  return number(share * 100, share < 0.0995 ? 1 : 0, "%");
}

inline std::string bytes(double size) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  for (; size >= 1024 && unit + 1 < std::size(kUnits); ++unit) size /= 1024;
  return number(size, unit == 0 || size >= 100 ? 0 : 1, kUnits[unit]);
}

}  // namespace tensorkey::internal
