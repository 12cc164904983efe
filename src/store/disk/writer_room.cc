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
constexpr std::size_t kReservedRows = 16;  // by which the index can grow when the segments are full
constexpr int kRounds = 8;                 // others may take the room that was made

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
  Index::Write write(index);
  index.seal(id, size);
  write.commit();
}

// Takes over a segment whose writer is gone; one that has no room for `bytes` is sealed.
bool Writer::adopt(Index& index, std::uint64_t bytes) {
  Index::Write write(index);
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
  Index::Write write(index);
  settings_ = index.settings();
  const std::vector<SegmentRow> rows = index.segments();
  remove_orphans(rows);
  const std::uint64_t taken = context_.directory.allocated() + index.unwritten_bytes() +
                              Index::growth(kReservedRows) + reserve(index);
  const std::uint64_t room = settings_.limit > taken ? settings_.limit - taken : 0;
  const std::uint64_t usual = segment_size(settings_.limit);
  const std::uint64_t least = (bytes + kSegmentHead + 4095) / 4096 * 4096;
  if (room < std::max(least, kLeastSegment)) return false;
  // The last one may be smaller than the others.
  const std::uint64_t size = std::max(least, std::min(usual, room / 4096 * 4096));
  const SegmentMark mark = new_mark();
  const std::uint32_t id = index.add_segment(mark, size, kSegmentHead);
  segment_ = SegmentWriter::create(context_.directory, id, mark, size);
  try {
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

// Whether the log may grow by so much. What somebody has just evicted may still be there: it goes.
// REQUIRES: a Write.
bool Writer::has_room(Index& index, std::uint64_t bytes) {
  const auto fits = [&] {
    return context_.directory.allocated() + index.unwritten_bytes() + bytes <= settings_.limit;
  };
  if (fits()) return true;
  remove_orphans(index.segments());
  return fits();
}

// By which the log grows at most when so many rows that are there are changed, each page once.
std::uint64_t Writer::change_bytes(Index& index, std::size_t rows) const {
  const std::uint64_t pages =
      context_.directory.allocated(kIndexFile) + index.unwritten_bytes() + Index::growth(0);
  return std::min(Index::growth(rows), pages + pages / 128);
}

// What must stay free so that a segment can be evicted where nobody can cut the log: by how much it
// may grow more than the segment gives back.
std::uint64_t Writer::reserve(Index& index) const {
  std::uint64_t most = Index::growth(0);
  for (const SegmentRow& row : index.segments()) {
    const std::uint64_t bytes = change_bytes(index, row.entries) + Index::growth(0);
    most = std::max(most, bytes - std::min(bytes, row.size));
  }
  return most;
}

// The segment that is worth least, for its bytes, of those that nobody writes.
std::optional<SegmentRow> Writer::victim(Index& index) const {
  std::optional<SegmentRow> least;
  double lowest = std::numeric_limits<double>::infinity();
  for (const SegmentRow& row : index.segments()) {
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
  Index::Write write(index);
  settings_ = index.settings();
  const std::optional<SegmentRow> row = victim(index);
  if (!row) return false;
  std::size_t kept = 0;
  if (candidates != nullptr) {
    admit(*candidates, density(*row));
    if (candidates->items.empty()) return false;
    double most = 0;
    for (const std::size_t i : candidates->items) {
      most = std::max(most, density(candidates->batch.items[i]));
    }
    kept = candidates->kept.items.size();
    choose_kept(index, *row, most, candidates->kept);
    kept = candidates->kept.items.size() - kept;
  }
  // Where the log has no room for this, the bytes go first; until the rows are gone they are
  // misses.
  const bool fits = has_room(index, change_bytes(index, row->entries));
  const std::uint64_t gone = index.remove_segment(*row);
  if (!fits) erase_segment(context_.directory, row->id);
  write.commit();
  erase_segment(context_.directory, row->id);
  context_.files.close(row->id);
  context_.counters.evictions += gone - kept;
  return true;
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
