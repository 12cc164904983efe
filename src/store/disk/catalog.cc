#include "store/disk/catalog.h"

#include <tensorkey/error.h>

#include <unistd.h>

#include <algorithm>
#include <mutex>

namespace tensorkey::internal {
namespace {

constexpr std::chrono::milliseconds kBetweenLooks(5);
constexpr std::chrono::milliseconds kOpening(1000);  // for others who are making the index
constexpr std::size_t kPart = 8192;  // entries for which the connection is held at a time

bool unknown(const Place& place) { return place.segment == 0; }

}  // namespace

Catalog::Catalog(DiskContext& context)
    : context_(context), health_(context.counters), mutex_({}, [this] { index_.reset(); }) {
  const std::lock_guard lock(mutex_);
  try {
    index_ = open_index(context_, kOpening);
    pin_ = index_->pin();
  } catch (const Error& error) {
    // Somebody is slow, or stopped, or the device refuses what a new index is made of: this process
    // goes on without the disk until he is done, or it reads again.
    const bool busy = error.code() == ErrorCode::kUnavailable && !context_.directory.read_only() &&
                      ::access(context_.directory.path_of(kIndexFile).c_str(), R_OK | W_OK) == 0;
    const bool refused = context_.refused_since.load() != Clock::time_point{};
    if (!busy && !refused) throw Error(ErrorCode::kUnavailable, error.what());
    health_.failed(error);
  }
}

// A connection is closed where no fork can come in between.
Catalog::~Catalog() {
  const std::lock_guard lock(mutex_);
  index_.reset();
}

Index* Catalog::index() {
  if (index_ == nullptr) {
    if (!health_.usable()) return nullptr;
    index_ = open_index(context_);
    version_ = -1;
    if (!index_->is(pin_)) forget();
    pin_ = index_->pin();
  }
  return index_.get();
}

// Of another index: there are other segments under the same numbers, and ids begin anew.
void Catalog::forget() {
  context_.mirror.clear();
  context_.files.retain([](std::uint32_t) { return false; });
  segments_.clear();
  gone_ = 0;
  last_id_ = 0;
  overflowed_ = false;
  loading_ = true;
}

// Runs work(index), and counts its failure. False if there was one, or if the index is left alone.
template <typename Work>
bool Catalog::guarded(Work&& work) {
  try {
    Index* const index = this->index();
    if (index == nullptr) return false;
    work(*index);
    health_.worked();
    return true;
  } catch (const std::exception& error) {
    const std::optional<ErrorCode> code = note_failure(context_, health_, index_.get(), error);
    if (code && *code != ErrorCode::kUnavailable) index_.reset();
    return false;
  }
}

void Catalog::remember(const IndexEntry& entry) {
  if (!context_.mirror.insert(entry.key, entry.place)) overflowed_ = true;
}

void Catalog::look_at_segments(Index& index) {
  std::unordered_map<std::uint32_t, std::uint64_t> segments;
  for (const SegmentRow& row : index.segments()) segments.emplace(row.id, row.entries);
  bool some_left = false;
  for (const auto& [id, entries] : segments_) {
    if (segments.contains(id)) continue;
    gone_ += entries;
    some_left = true;
  }
  segments_ = std::move(segments);
  const auto alive = [this](std::uint32_t id) { return segments_.contains(id); };
  if (some_left) context_.files.retain(alive);
  if (gone_ > context_.mirror.entries() / 8) {
    context_.mirror.retain(alive);
    gone_ = 0;
    if (overflowed_) {  // there is room again for what did not fit
      overflowed_ = false;
      last_id_ = 0;
      loading_ = true;
    }
  }
  context_.usage.set(index.settings().period, index.entries());
}

void Catalog::refresh() {
  const std::lock_guard lock(mutex_);
  synchronise(true);
}

void Catalog::synchronise(bool now) {
  if (!now && Clock::now() < looked_ + kBetweenLooks) return;
  looked_ = Clock::now();
  if (index_ != nullptr && index_->moved()) index_.reset();
  guarded([&](Index& index) {
    const std::int64_t version = index.data_version();
    if (version == version_) return;
    look_at_segments(index);
    if (!loading_) {
      last_id_ = index.scan(last_id_, ~std::size_t{0}, [&](const IndexEntry& e) { remember(e); });
    }
    version_ = version;
  });
}

bool Catalog::load() {
  if (!loading_) return false;
  const std::lock_guard lock(mutex_);
  guarded([&](Index& index) {
    if (last_id_ == 0) look_at_segments(index);
    const std::int64_t last =
        index.scan(last_id_, kPart, [&](const IndexEntry& e) { remember(e); });
    if (last == last_id_) loading_ = false;
    last_id_ = last;
  });
  return loading_ && health_.usable();
}

void Catalog::locate(std::span<const Key> keys, std::span<Place> places) {
  context_.mirror.find(keys, places);
  if (std::ranges::none_of(places, unknown)) return;
  // Asked before the mirror is: what is loaded between the two is in the mirror, or looked up.
  bool complete = false;
  {
    const std::lock_guard lock(mutex_);
    synchronise(false);
    complete = !loading_ && !overflowed_;
  }
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (!unknown(places[i])) continue;
    context_.mirror.find(keys.subspan(i, 1), places.subspan(i, 1));
    if (unknown(places[i]) && !complete) {
      places[i] = look_up(keys[i]).value_or(Place{});
    }
  }
}

std::optional<Place> Catalog::look_up(const Key& key) {
  const std::lock_guard lock(mutex_);
  std::optional<Place> place;
  guarded([&](Index& index) {
    const std::optional<IndexEntry> entry = index.find(key);
    if (!entry) return;
    place = entry->place;
    remember(*entry);
  });
  return place;
}

std::uint64_t Catalog::entries() {
  const std::lock_guard lock(mutex_);
  std::uint64_t entries = 0;
  guarded([&](Index& index) { entries = index.entries(); });
  return entries;
}

std::vector<IndexEntry> Catalog::next_entries(std::int64_t& after) {
  const std::lock_guard lock(mutex_);
  std::vector<IndexEntry> entries;
  const bool done = guarded([&](Index& index) {
    after = index.scan(after, kPart, [&](const IndexEntry& entry) { entries.push_back(entry); });
  });
  if (!done) {
    throw Error(ErrorCode::kUnavailable, "[ActivationCache::pack] the index of " +
                                             context_.directory.path() +
                                             " cannot be read: " + health_.text());
  }
  return entries;
}

}  // namespace tensorkey::internal
