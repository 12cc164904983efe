#include <tensorkey/fingerprint.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "digest/xxh3.h"
#include "view/walk.h"

namespace tensorkey {
namespace {

constexpr std::uint32_t kMostCalls = 1000;
constexpr double kCallsForOnePercent = 100;
constexpr std::size_t kWindow = 63;
constexpr std::size_t kEnough = 8;

}  // namespace

std::array<std::uint8_t, 16> change_digest(std::span<const TensorView> views) {
  internal::Xxh3Stream stream;
  const auto update = [&](const auto& value) {
    stream.update(std::as_bytes(std::span(&value, 1)));
  };
  for (const TensorView& view : views) {
    check_view(view, "change_digest");
    update(view.dtype);
    update(view.shape.size());
    stream.update(std::as_bytes(view.shape));
    update(view.dtype_params.size());
    stream.update(std::as_bytes(std::span(view.dtype_params)));
    internal::walk(view, false, [&](std::span<const std::byte> piece) { stream.update(piece); });
  }
  const internal::Hash128 hash = stream.finalize();
  std::array<std::uint8_t, 16> digest;
  static_assert(sizeof digest == sizeof hash);
  std::memcpy(digest.data(), &hash, sizeof hash);
  return digest;
}

std::uint32_t strict_interval(double strict, double layer) noexcept {
  if (!(strict > 0)) return 1;
  if (!(layer > 0)) return kMostCalls;
  const double calls = std::ceil(kCallsForOnePercent * strict / layer);
  return calls < kMostCalls ? static_cast<std::uint32_t>(std::max(calls, 1.0)) : kMostCalls;
}

bool StrictSchedule::due() noexcept {
  if (left_ > 0) {
    --left_;
    return false;
  }
  left_ = interval_ - 1;
  return true;
}

void StrictSchedule::observe_layer(double seconds) {
  if (layer_.size() < kWindow) {
    layer_.push_back(seconds);
  } else {
    layer_[next_] = seconds;
    next_ = (next_ + 1) % kWindow;
  }
  if (layer_.size() < kEnough) return;
  std::vector<double> sorted = layer_;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  const std::uint32_t calls = strict_interval(strict_, *middle);
  const bool moved = 2 * calls >= 3 * interval_ || 2 * calls <= interval_;
  if (!moved) return;
  interval_ = calls;
  left_ = std::min(left_, interval_ - 1);
}

}  // namespace tensorkey
