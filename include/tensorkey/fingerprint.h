// Whether the weights of a layer are what they were: a digest of their contents that tells a change
// within one process, and how often it is worth to compute it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include <tensorkey/export.h>
#include <tensorkey/view.h>

namespace tensorkey {

// XXH3-128, keyed with a secret of this process, over dtype, shape and elements of all views in
// order: as stable as the process, 25 GB/s. Throws as check_view does.
[[nodiscard]] TENSORKEY_EXPORT std::array<std::uint8_t, 16> change_digest(
    std::span<const TensorView> views);

// Calls between two strict checks: ceil(100 S / L), at least 1 and at most 1000. `strict`: seconds
// of a strict check, copies from a device included; `layer`: seconds of a call that ran the layer.
// A layer of no measurable cost is checked every 1000 calls.
[[nodiscard]] TENSORKEY_EXPORT std::uint32_t strict_interval(double strict, double layer) noexcept;

// The schedule of fingerprint="auto": a guard on every call and a strict check on every N-th, N =
// strict_interval of the last strict check and the median call that ran the layer. 1 until 8 such
// calls are measured; changed only when it moves by half. Not thread-safe; reads no clock.
class TENSORKEY_EXPORT StrictSchedule {
 public:
  // Whether this call is to be checked strictly. Counts the call.
  [[nodiscard]] bool due() noexcept;
  // The next call is.
  void demand() noexcept { left_ = 0; }
  void observe_strict(double seconds) noexcept { strict_ = seconds; }
  void observe_layer(double seconds);
  [[nodiscard]] std::uint32_t interval() const noexcept { return interval_; }

 private:
  std::uint32_t interval_ = 1;
  std::uint32_t left_ = 0;
  double strict_ = 0;
  std::vector<double> layer_{};  // of the last 63 calls that ran the layer
  std::size_t next_ = 0;
};

}  // namespace tensorkey
