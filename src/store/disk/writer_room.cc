// Room on disk: segments are adopted, added and evicted whole.
#include <tensorkey/error.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "store/disk/writer.h"

namespace tensorkey::internal {
namespace {

constexpr std::uint64_t kLeastSegment = std::uint64_t{256} << 10;
constexpr std::uint64_t kLargestSegment = std::uint64_t{64} << 20;
constexpr std::uint64_t kSegmentsPerLimit = 128;
constexpr std::uint64_t kRowBytes = 200;  // of the index, more than it takes on average
constexpr std::uint64_t kIndexSlack = std::uint64_t{64} << 10;
constexpr int kRounds = 8;  // others may take the room that was made

// A candidate must be worth more than so many times what goes for it. Where everything is asked for
// equally often, as in epochs, what is there then stays there.
constexpr double kMargin = 2.2;
// Of what an evicted segment holds: at most so much is written again, so that no byte inserted
// costs more than two.
constexpr double kMostKept = 0.5;

SegmentMark new_mark() {
  std::random_device random;
  SegmentMark mark;
  for (std::byte& byte : mark) byte = static_cast<std::byte>(random());
  return mark;
}

std::uint64_t segment_size(std::uint64_t limit) {
  return std::clamp(limit / kSegmentsPerLimit, kLeastSegment, kLargestSegment) / 4096 * 4096;
}

}  // namespace

// Seconds of computation that a byte has saved, lately.
double Writer::density(const SegmentRow& row) const {
  if (row.bytes == 0) return 0;
  const double now = std::exp2(-static_cast<double>(settings_.period));
  const double worth = now * row.worth + context_.usage.unreported(row.id);
  return worth / static_cast<double>(row.bytes);
}

// The same of one that is not there yet.
double Writer::density(const Batch::Item& item) const {
  const double cost = std::max(item.cost, kLeastCost);
  return context_.usage.frequency(item.key) * cost / static_cast<double>(item.length);
}

// A segment with room for the first of the items. False if there is none, or none is left that is
// worth it; what is refused is taken off `items`.
bool Writer::make_room(Index& index, Batch& batch, Items& items) {
  Candidates candidates{.batch = batch, .items = items};
  let_go(index);
  for (int round = 0; round < kRounds && !items.empty(); ++round) {
    const std::uint64_t bytes =
        std::max<std::uint64_t>(batch.items[items[0]].length, candidates.kept.bytes.size());
    if (adopt(index, bytes) || create(index, bytes)) {
      Items kept(candidates.kept.items.size());
      for (std::size_t i = 0; i < kept.size(); ++i) kept[i] = i;
      if (!kept.empty()) write_part(index, candidates.kept, kept);
      return true;
    }
    if (!evict(index, &candidates)) return false;
  }
  return false;
}

// Seals the present segment.
void Writer::let_go(Index& index) {
  if (!segment_) return;
  const std::uint32_t id = segment_->id();
  const std::uint64_t size = segment_->seal();
  segment_.reset();
  Index::Write write = begin(index);
  index.seal(id, size);
  write.commit();
}

// On a full disk: a segment's preallocated tail must not take what the index needs to go on.
void Writer::give_back() noexcept {
  try {
    if (segment_) segment_->seal();
    if (index_ != nullptr) index_->checkpoint();
  } catch (const std::exception&) {
    return;  // as full as before
  }
}

// Takes over a segment whose writer is gone; one that has no room for `bytes` is sealed.
bool Writer::adopt(Index& index, std::uint64_t bytes) {
  Index::Write write = begin(index);
  bool changed = false;
  for (const SegmentRow& row : index.segments()) {
    if (row.sealed) continue;
    std::optional<SegmentWriter> found = SegmentWriter::adopt(context_.directory, row);
    if (!found) continue;
    if (found->left() >= bytes) {
      if (changed) write.commit();
      segment_ = std::move(found);
      return true;
    }
    index.seal(row.id, found->seal());
    changed = true;
  }
  if (changed) write.commit();
  return false;
}

// Adds a segment, if the bound allows one that has room for `bytes`.
bool Writer::create(Index& index, std::uint64_t bytes) {
  if (bytes > settings_.limit) return false;
  Index::Write write = begin(index);
  settings_ = index.settings();
  const std::vector<SegmentRow> rows = index.segments();
  remove_orphans(rows);
  // What its rows will take of the index, if its records are as long as others.
  std::uint64_t entries = 1;
  std::uint64_t entry_bytes = bytes;
  for (const SegmentRow& row : rows) {
    entries += row.entries;
    entry_bytes += row.bytes;
  }
  const double index_share = static_cast<double>(kRowBytes * entries) /
                             static_cast<double>(std::max<std::uint64_t>(1, entry_bytes));
  const std::uint64_t free =
      settings_.limit - std::min(settings_.limit, taken(index) + kIndexSlack);
  const auto room = static_cast<std::uint64_t>(static_cast<double>(free) / (1 + index_share));
  const std::uint64_t usual = segment_size(settings_.limit);
  const std::uint64_t least = (bytes + kSegmentHead + 4095) / 4096 * 4096;
  if (room < std::max(least, kLeastSegment)) return false;
  // The last one may be smaller than the others.
  std::uint64_t size = std::max(least, std::min(usual, room / 4096 * 4096));
  const SegmentMark mark = new_mark();
  const std::uint32_t id = index.add_segment(mark, size, kSegmentHead);
  while (!segment_) {
    try {
      segment_ = SegmentWriter::create(context_.directory, id, mark, size);
    } catch (const Error& error) {  // so is one on a disk that is nearly full
      if (error.code() != ErrorCode::kExhausted || size <= std::max(least, kLeastSegment)) throw;
      size = std::max({least, kLeastSegment, size / 8192 * 4096});
    }
  }
  try {
    index.set_size(id, size);
    write.commit();
  } catch (...) {
    segment_.reset();
    erase_segment(context_.directory, id);
    throw;
  }
  return true;
}

// Files without a row: their process died between two steps. REQUIRES: a Write, so that no segment
// is being added.
void Writer::remove_orphans(const std::vector<SegmentRow>& rows) {
  for (const std::uint64_t id : context_.directory.segments()) {
    const bool known =
        std::ranges::any_of(rows, [&](const SegmentRow& row) { return row.id == id; });
    if (!known) erase_segment(context_.directory, static_cast<std::uint32_t>(id));
  }
}

// The segment that is worth least, for its bytes, of those that nobody writes.
std::optional<SegmentRow> Writer::victim(Index& index) const {
  std::optional<SegmentRow> least;
  double lowest = std::numeric_limits<double>::infinity();
  for (const SegmentRow& row : index.segments()) {
    if (row.size == 0) return row;  // whose process died while it was being removed
    const double density = this->density(row);
    if (density >= lowest || (segment_ && row.id == segment_->id())) continue;
    if (!unlocked(context_.directory, row.id)) continue;
    lowest = density;
    least = row;
  }
  return least;
}

// Removes the segment that is worth least. With candidates only if some of them are worth more, and
// then what is worth still more than they are is kept. False if nothing was removed.
bool Writer::evict(Index& index, Candidates* candidates) {
  std::optional<SegmentRow> row;
  std::size_t kept = 0;
  {
    Index::Write write = begin(index);
    settings_ = index.settings();
    row = victim(index);
    if (!row) return false;
    if (candidates != nullptr && row->size != 0) {
      admit(*candidates, density(*row));
      if (candidates->items.empty()) return false;
      double most = 0;
      for (const std::size_t i : candidates->items) {
        most = std::max(most, density(candidates->batch.items[i]));
      }
      const std::size_t before = candidates->kept.items.size();
      choose_kept(index, *row, most, candidates->kept);
      kept = candidates->kept.items.size() - before;
    }
    empty(index, *row);
    write.commit();
  }
  drain(index, *row);
  context_.counters.evictions += row->entries - std::min<std::uint64_t>(row->entries, kept);
  return true;
}

// From here on nobody adopts the segment, and whoever wants room removes what is left of it.
void Writer::empty(Index& index, const SegmentRow& row) {
  index.set_end(row.id, 0);
  index.seal(row.id, 0);
}

// Removes an emptied segment: its bytes, then its rows, as many at a time as the log has room for.
// Until they are gone they are misses.
void Writer::drain(Index& index, const SegmentRow& row) {
  erase_segment(context_.directory, row.id);
  context_.files.close(row.id);
  const std::size_t part = rows_per_commit(settings_.limit, index.length());
  for (bool more = true; more;) {
    Index::Write write = begin(index);
    more = index.remove_entries(row, part) == part;
    if (!more) index.remove_segment(row);
    write.commit();
  }
}

// Refuses the items that are not worth clearly more than what would go for them.
void Writer::admit(Candidates& candidates, double density) {
  context_.counters.rejections += std::erase_if(candidates.items, [&](std::size_t i) {
    return this->density(candidates.batch.items[i]) <= kMargin * density;
  });
}

// The entries of a segment that are worth more than `density`, the best first, as far as they fit.
void Writer::choose_kept(Index& index, const SegmentRow& row, double density, Batch& kept) {
  const double now = std::exp2(-static_cast<double>(settings_.period));
  std::vector<IndexEntry> entries = index.entries_of(row);
  const auto worth = [&](const IndexEntry& entry) {
    const double hits = now * entry.hits + context_.usage.unreported(entry.key);
    return hits * entry.cost / static_cast<double>(entry.place.length);
  };
  std::erase_if(entries, [&](const IndexEntry& entry) { return worth(entry) <= density; });
  std::ranges::sort(entries, std::ranges::greater{}, worth);
  const auto most =
      static_cast<std::size_t>(kMostKept * static_cast<double>(segment_size(settings_.limit)));
  const SegmentFiles::FilePtr file = context_.files.open(row.id);
  if (file == nullptr) return;
  for (const IndexEntry& entry : entries) {
    const std::size_t at = kept.bytes.size();
    if (entry.place.length > most || at > most - entry.place.length) continue;
    kept.bytes.resize(at + entry.place.length);
    const std::span record = std::span(kept.bytes).subspan(at);
    std::optional<RecordHead> head;
    if (read_at(file->descriptor.get(), entry.place.offset, record)) {
      head = check_record(record, entry.key, entry.place, file->mark);
    }
    if (!head) {
      kept.bytes.resize(at);
      continue;
    }
    kept.items.push_back({.key = entry.key,
                          .at = at,
                          .length = entry.place.length,
                          .scope = entry.scope,
                          .cost = entry.cost,
                          .hits = now * entry.hits,
                          .stored = head->stored,
                          .used = entry.used});
  }
}

// Down to a limit that was lowered.
void Writer::shrink(Index& index) {
  for (int round = 0; context_.directory.allocated() > settings_.limit; ++round) {
    const bool progress = evict(index, nullptr);
    index.vacuum(std::numeric_limits<int>::max());
    index.checkpoint();
    if (!progress && round > 0) return;
  }
}

}  // namespace tensorkey::internal
