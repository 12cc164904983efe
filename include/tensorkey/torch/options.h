// Options and statistics of a cached layer of LibTorch.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <tensorkey/bypass.h>
#include <tensorkey/cache.h>
#include <tensorkey/codec.h>
#include <tensorkey/layer.h>
#include <tensorkey/memo.h>
#include <tensorkey/torch/fingerprint.h>

namespace tensorkey {

inline namespace literals {
constexpr std::size_t operator""_KiB(unsigned long long n) { return std::size_t{n} << 10; }
constexpr std::size_t operator""_MiB(unsigned long long n) { return std::size_t{n} << 20; }
constexpr std::size_t operator""_GiB(unsigned long long n) { return std::size_t{n} << 30; }
}  // namespace literals

namespace torch {

// Which calls share entries: kExact, those with equal bits; kPortable, also those on another model
// of CPU or with another number of threads: equal to rounding.
enum class Sharing : std::uint8_t { kExact, kPortable };

struct Options {
  // A cache of one's own, shared or not; or else these, of a cache made for this layer.
  std::shared_ptr<ActivationCache> cache = nullptr;
  std::optional<std::size_t> memory = std::nullopt;  // bytes; none: 1 GiB
  std::string disk = {};                             // a directory; empty: none
  std::uint64_t disk_limit = 0;                      // bytes; 0: as CacheOptions says

  std::uint32_t chunk = 0;  // rows that run together: 1, a multiple of 32, or 0: "auto"
  bool probe = true;
  bool accept_slot = false;  // as LayerOptions
  Fingerprint fingerprint = Fingerprint::kAuto;
  std::string scope = {};  // what else answers depend on, a tenant: part of each key
  Sharing environment = Sharing::kExact;
  double verify = 0;     // share of hits that is computed again and compared
  double tolerance = 0;  // absolute difference that verify accepts; 0: none, bitwise
  BypassMode bypass = BypassMode::kAuto;
  Codec codec = Codec::kRaw;
  std::optional<std::array<std::uint8_t, 32>> secret = std::nullopt;
  // Names of the arguments, as Python would see them; empty: those of TorchScript's forward, or
  // "input", "input1", "input2", ...
  std::vector<std::string> inputs = {};
};

struct Stats {
  MemoStats memo;
  LayerStats layer;
  BypassReport bypass;
  std::map<std::string, std::uint64_t> uncached;  // calls that ran without the cache, by reason
  std::uint32_t strict_interval = 0;  // calls between two strict checks; 0: none are due
  std::vector<std::string> assumptions;
  std::vector<std::string> hints;
};

}  // namespace torch
}  // namespace tensorkey
