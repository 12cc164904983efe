#include "xla_ffi_weights.h"

#include <algorithm>
#include <mutex>

#include <tensorkey/canonical.h>
#include <tensorkey/error.h>
#include <tensorkey/fingerprint.h>

namespace tensorkey::python::xla {
namespace {

constexpr std::size_t kMostKnown = 16;

Digest digest_of(const std::string& text) { return blake3(std::as_bytes(std::span(text))); }

std::string text_of(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

// As weights_digest() in tensorkey/_fingerprint.py.
Digest digest_of(std::vector<std::pair<std::string, Key>> contents) {
  std::ranges::sort(contents);
  std::vector<std::string> items;
  items.reserve(contents.size());
  for (const auto& [name, content] : contents) {
    items.push_back(canonical::text(name) + canonical::item('K', text_of(content.bytes())));
  }
  return digest_of(canonical::tuple(items));
}

Digest digest_of(const WeightGroup& group, std::span<const TensorView> tensors) {
  if (group.known) return *group.known;
  std::vector<std::pair<std::string, Key>> contents = group.fixed;
  for (std::size_t i = 0; i < group.names.size(); ++i) {
    const std::size_t place = group.places[i];
    if (place >= tensors.size()) {
      throw Error(ErrorCode::kInvalidArgument, "[xla::Weights] no tensor " + std::to_string(place) +
                                                   " of " + std::to_string(tensors.size()));
    }
    contents.emplace_back(group.names[i], key(tensors[place]));
  }
  return digest_of(std::move(contents));
}

}  // namespace

Digest Weights::digest(std::span<const TensorView> tensors) const {
  const Change change = change_digest(tensors);
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find(known_, change, &Known::change);
    if (found != known_.end()) return found->digest;
  }
  Digest digest = digest_of(groups_.front(), tensors);
  for (const WeightGroup& group : std::span(groups_).subspan(1)) {
    digest = digest_of(text_of(digest) + text_of(digest_of(group, tensors)));
  }
  const std::lock_guard lock(mutex_);
  known_.push_back({change, digest});
  if (known_.size() > kMostKnown) known_.pop_front();
  return digest;
}

Digest Weights::meaning() const {
  std::string encoded;
  for (const WeightGroup& group : groups_) {
    std::vector<std::string> items;
    if (group.known) items.push_back(canonical::bytes(*group.known));
    for (std::size_t i = 0; i < group.names.size(); ++i) {
      items.push_back(canonical::text(group.names[i]));
      items.push_back(canonical::integer(static_cast<std::int64_t>(group.places[i])));
    }
    for (const auto& [name, content] : group.fixed) {
      items.push_back(canonical::text(name));
      items.push_back(canonical::bytes(content.bytes()));
    }
    encoded += canonical::tuple(items);
  }
  return digest_of(encoded);
}

}  // namespace tensorkey::python::xla
