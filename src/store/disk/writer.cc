#include "store/disk/writer.h"

#include <tensorkey/error.h>

#include <pthread.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <mutex>
#include <numeric>

namespace tensorkey::internal {
namespace {

constexpr std::chrono::seconds kBetweenReports(1);
constexpr std::int64_t kPurgedIds = 8192;  // that a transaction of purge() looks at
constexpr std::size_t kMostBad = 1024;
constexpr double kPeriodTurnovers = 5;  // accesses of each entry before frequencies halve
constexpr double kLeastPeriod = 10'000;
constexpr int kVacuumPages = 256;
constexpr int kPatience = 50;  // milliseconds for readers that are in the way of the log

std::size_t queue_bytes(std::uint64_t limit) {
  return std::clamp<std::uint64_t>(limit / 8, std::uint64_t{1} << 20, std::uint64_t{32} << 20);
}

}  // namespace

Writer::Writer(DiskContext& context, Catalog& catalog)
    : context_(context),
      catalog_(catalog),
      health_(context.counters),
      bad_mutex_([this] { bad_.clear(); }),
      mutex_([this] { segment_.reset(); }, [this] { index_.reset(); }),
      queue_(queue_bytes(context.options.disk_limit == 0 ? std::uint64_t{1} << 30
                                                         : context.options.disk_limit)),
      thread_mutex_([this] {
        static_cast<void>(thread_.release());  // the parent's
        running_ = false;
        stopping_ = false;
      }) {
  if (context_.directory.read_only()) return;
  const std::lock_guard lock(mutex_);
  guarded([&](Index& index) { shrink(index); });
}

Writer::~Writer() {
  stop();
  while (write_waiting(0)) {
  }
  upkeep();
  // Where no fork can come in between.
  const std::lock_guard lock(mutex_);
  index_.reset();
  segment_.reset();
}

// --- The thread

bool Writer::start() {
  if (running_ || stopping_) return running_;
  const std::lock_guard lock(thread_mutex_);
  if (thread_ != nullptr) return true;
  sigset_t all;
  sigset_t before;
  sigfillset(&all);  // signals are for the threads of the program
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::make_unique<std::thread>([this] { run(); });
    running_ = true;
  } catch (const std::exception& error) {
    health_.failed(error);  // what waits is written by the destructor
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return running_;
}

void Writer::stop() {
  stopping_ = true;
  queue_.wake();
  const std::lock_guard lock(thread_mutex_);
  if (thread_ != nullptr) thread_->join();
  thread_.reset();
  running_ = false;
}

void Writer::run() {
  while (!stopping_) {
    const bool loading = catalog_.load();
    write_waiting(loading ? 0 : 0.5);
    if (Clock::now() >= reported_.load() + kBetweenReports) upkeep();
  }
}

// Writes what waits, if there is something within so many seconds. What fails for want of memory is
// dropped.
bool Writer::write_waiting(double seconds) noexcept {
  try {
    const std::shared_ptr<Batch> batch = queue_.take(seconds);
    if (batch == nullptr) return false;
    try {
      write(*batch);
    } catch (const std::exception& error) {
      context_.counters.dropped += batch->items.size();
      health_.failed(error);
    }
    queue_.written();
    return true;
  } catch (const std::exception& error) {
    health_.failed(error);
    return false;
  }
}

// --- Work under the mutex

Index* Writer::index() {
  if (index_ != nullptr && index_->moved()) {
    index_.reset();
    segment_.reset();  // another index may know less of it than was written
    limit_set_ = false;
  }
  if (index_ == nullptr) {
    if (context_.directory.read_only() || !health_.usable()) return nullptr;
    index_ = open_index(context_);
  }
  return index_.get();
}

// The limit that this process was given; the last one given is that of all.
void Writer::set_limit(Index& index) {
  settings_ = index.settings();
  const std::uint64_t wanted = context_.options.disk_limit;
  if (wanted != 0 && wanted != settings_.limit) {
    Index::Write write = begin(index);
    index.set_limit(wanted);
    write.commit();
    settings_.limit = wanted;
  }
  limit_set_ = true;
}

template <typename Work>
bool Writer::guarded(Work&& work) {
  try {
    Index* const index = this->index();
    if (index == nullptr) return false;
    if (!limit_set_) set_limit(*index);
    work(*index);
    health_.worked();
    return true;
  } catch (const std::exception& error) {
    const std::optional<ErrorCode> code = note_failure(context_, health_, index_.get(), error);
    if (code == ErrorCode::kExhausted) give_back();
    // A lock that others hold says nothing about the connection.
    if (code != ErrorCode::kUnavailable) {
      index_.reset();
      segment_.reset();
    }
    return false;
  }
}

void Writer::write(Batch& batch) {
  const std::lock_guard lock(mutex_);
  Items items;
  for (std::size_t i = 0; i < batch.items.size(); ++i) {
    if (!batch.items[i].cancelled && wants(batch.items[i].key)) items.push_back(i);
  }
  guarded([&](Index& index) { write_items(index, batch, items); });
  context_.counters.dropped += items.size();
}

// What was written or refused is taken off `items`.
void Writer::write_items(Index& index, Batch& batch, Items& items) {
  settings_ = index.settings();
  if (const auto bad = bad_rows(&batch); !bad.empty()) {
    Index::Write write = begin(index);
    for (const auto& [key, place] : bad) index.remove(key, place);
    write.commit();
    forget_bad(bad);
  }
  while (!items.empty()) {
    const std::size_t first = batch.items[items[0]].length;
    if (!segment_ || segment_->left() < first) {
      if (!make_room(index, batch, items)) return;
      continue;
    }
    std::size_t count = 0;
    std::uint64_t bytes = 0;
    const std::size_t most = rows_per_commit(settings_.limit, index.length());
    while (count < items.size() && count < most) {
      bytes += batch.items[items[count]].length;
      if (bytes > segment_->left()) break;
      ++count;
    }
    if (write_part(index, batch, std::span(items).first(count))) {
      items.erase(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(count));
    } else if (!evict(index, nullptr)) {
      return;
    }
  }
}

// Where a reader that sleeps keeps the log from being cut back, nothing more is written.
Index::Write Writer::begin(Index& index) {
  const std::uint64_t usual = log_bytes(settings_.limit);
  for (int patience = kPatience;; --patience) {
    if (index.log_bytes() <= usual || index.checkpoint()) {
      const std::uint64_t most = std::max(usual, index.log_bytes());
      Index::Write write(index);
      if (index.log_bytes() <= most) return write;  // others have not filled it meanwhile
    }
    if (patience == 0) {
      throw Error(ErrorCode::kUnavailable,
                  "[ActivationCache] the log of the index in " + context_.directory.path() +
                      " cannot be cut back; expected other processes to read for moments only");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// What the directory takes, with all of the log's share, and with what is in the log and not yet in
// the index.
std::uint64_t Writer::taken(Index& index) const {
  const std::uint64_t log = context_.directory.allocated(std::string(kIndexFile) + "-wal");
  const std::uint64_t share = 2 * log_bytes(settings_.limit);
  return context_.directory.allocated() - log + std::max(log, share) + index.unwritten_bytes();
}

// The bytes first, then the rows: who sees a row finds its record. False if the index has no room.
bool Writer::write_part(Index& index, Batch& batch, std::span<const std::size_t> items) {
  SegmentWriter& segment = *segment_;
  const std::uint64_t begin = segment.end();
  const std::int64_t now = std::time(nullptr);
  std::vector<IndexEntry> entries;
  entries.reserve(items.size());
  std::uint64_t at = begin;
  for (const std::size_t i : items) {
    const Batch::Item& item = batch.items[i];
    write_record_head({.key = item.key,
                       .scope = item.scope,
                       .stored = item.stored == 0 ? now : item.stored,
                       .length = item.length - kRecordHead,
                       .offset = at,
                       .mark = segment.mark()},
                      batch.record(item).first<kRecordHead>());
    entries.push_back({.key = item.key,
                       .scope = item.scope,
                       .place = {.segment = segment.id(), .offset = at, .length = item.length},
                       .cost = std::max(item.cost, kLeastCost),
                       .hits = item.hits == 0 ? context_.usage.frequency(item.key) : item.hits,
                       .used = item.used == 0 ? now : item.used});
    at += item.length;
  }
  std::vector<bool> added(items.size());
  try {
    for (std::size_t i = 0; i < items.size();) {  // what lies together is written together
      const std::size_t from = batch.items[items[i]].at;
      std::size_t to = from;
      for (; i < items.size() && batch.items[items[i]].at == to; ++i) {
        to += batch.items[items[i]].length;
      }
      segment.append(std::span(batch.bytes).subspan(from, to - from));
    }
    Index::Write write = this->begin(index);
    // In the order of the key's own tree: each of its pages is changed once.
    std::vector<std::size_t> order(entries.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::sort(order, {}, [&](std::size_t i) { return entries[i].key; });
    for (const std::size_t i : order) added[i] = index.add(entries[i]);
    index.set_end(segment.id(), segment.end());
    if (taken(index) > settings_.limit) {
      segment.rewind(begin);
      return false;
    }
    write.commit();
  } catch (...) {
    segment.rewind(begin);
    throw;
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Batch::Item& item = batch.items[items[i]];
    context_.counters.written_bytes += item.length;
    if (!added[i]) {  // another process was faster
      static_cast<void>(catalog_.look_up(item.key));
      continue;
    }
    context_.mirror.insert(entries[i].key, entries[i].place);
    if (item.hits != 0) continue;  // it was there before
    ++context_.counters.insertions;
    context_.counters.inserted_bytes += item.length;
  }
  return true;
}

// --- Removal

bool Writer::remove(const Key& key) {
  bool there = queue_.cancel([&](const Batch::Item& item) { return item.key == key; }) > 0;
  const std::lock_guard lock(mutex_);
  guarded([&](Index& index) {
    Index::Write write = begin(index);
    const std::optional<Place> place = index.remove(key);
    write.commit();
    if (!place) return;
    there = true;
    void_record(context_.directory, *place);
    context_.mirror.erase(key, *place);
  });
  return there;
}

std::size_t Writer::purge(std::uint64_t scope) {
  std::size_t count = queue_.cancel([&](const Batch::Item& item) { return item.scope == scope; });
  const std::lock_guard lock(mutex_);
  guarded([&](Index& index) {
    settings_ = index.settings();
    // In parts, so that others can write in between and the log stays small.
    const auto part = static_cast<std::int64_t>(rows_per_commit(settings_.limit, index.length()));
    const std::int64_t last = index.last_id();
    for (std::int64_t after = 0; after < last; after += part) {
      Index::Write write = begin(index);
      const std::vector<IndexEntry> entries = index.remove_scope(scope, after, after + part);
      write.commit();
      count += entries.size();
      for (const IndexEntry& entry : entries) {
        void_record(context_.directory, entry.place);
        context_.mirror.erase(entry.key, entry.place);
      }
    }
  });
  return count;
}

void Writer::clear() {
  queue_.cancel([](const Batch::Item&) { return true; });
  const std::lock_guard lock(mutex_);
  guarded([&](Index& index) {
    settings_ = index.settings();
    segment_.reset();
    const std::size_t part = rows_per_commit(settings_.limit, index.length());
    for (const SegmentRow& row : index.segments()) {
      std::vector<IndexEntry> entries;
      bool ours = false;
      {
        Index::Write write = begin(index);
        ours = unlocked(context_.directory, row.id);
        if (ours) {
          empty(index, row);
        } else {
          entries = index.entries_of(row);  // somebody writes it: it stays, without them
        }
        write.commit();
      }
      if (ours) drain(index, row);
      for (std::size_t first = 0; first < entries.size(); first += part) {
        const auto some = std::span(entries).subspan(first, std::min(part, entries.size() - first));
        Index::Write write = begin(index);
        for (const IndexEntry& entry : some) index.remove(entry.key, entry.place);
        write.commit();
        for (const IndexEntry& entry : some) void_record(context_.directory, entry.place);
      }
    }
    context_.mirror.clear();
  });
}

// In this order: what is not among the bad any more, forget_bad() took off the mirror before.
bool Writer::wants(const Key& key) const {
  {
    const std::lock_guard lock(bad_mutex_);
    if (bad_.contains(key)) return true;
  }
  Place place;
  context_.mirror.find({&key, 1}, {&place, 1});
  return place.segment == 0;
}

void Writer::report(const Key& key, const Place& place, bool foreign) {
  const std::lock_guard lock(bad_mutex_);
  if (bad_.size() < kMostBad) bad_[key] = {.place = place, .foreign = foreign};
}

// The rows that are to go: before a batch is written those of its keys, else all but the foreign.
std::vector<std::pair<Key, Place>> Writer::bad_rows(const Batch* batch) const {
  std::vector<std::pair<Key, Place>> rows;
  const std::lock_guard lock(bad_mutex_);
  if (batch == nullptr) {
    for (const auto& [key, bad] : bad_) {
      if (!bad.foreign) rows.emplace_back(key, bad.place);
    }
  } else if (!bad_.empty()) {
    for (const Batch::Item& item : batch->items) {
      if (const auto found = bad_.find(item.key); found != bad_.end()) {
        rows.emplace_back(found->first, found->second.place);
      }
    }
  }
  return rows;
}

// Only when they are gone: until then wants() must say that their keys may be written. Loading may
// have read these rows after whoever reported them had forgotten them.
void Writer::forget_bad(std::span<const std::pair<Key, Place>> rows) {
  for (const auto& [key, place] : rows) context_.mirror.erase(key, place);
  const std::lock_guard lock(bad_mutex_);
  for (const auto& [key, place] : rows) {
    const auto found = bad_.find(key);
    if (found != bad_.end() && found->second.place == place) bad_.erase(found);
  }
}

void Writer::upkeep() {
  reported_ = Clock::now();
  if (context_.directory.read_only()) return;
  const std::lock_guard lock(mutex_);
  guarded([&](Index& index) {
    settings_ = index.settings();
    const std::size_t rows = rows_per_commit(settings_.limit, index.length());
    auto bad = bad_rows(nullptr);
    bad.resize(std::min(bad.size(), rows));
    const Usage::Report usage = context_.usage.report(rows);
    if (!bad.empty() || usage.accesses > 0) {
      const double period =
          std::max(kLeastPeriod, kPeriodTurnovers * static_cast<double>(index.entries()));
      Index::Write write = begin(index);
      for (const auto& [key, place] : bad) index.remove(key, place);
      index.add_hits(usage.hits, usage.worth, std::time(nullptr), usage.accesses, period);
      write.commit();
      forget_bad(bad);
    }
    settings_ = index.settings();
    shrink(index);
    index.vacuum(kVacuumPages);
    if (index.log_bytes() > log_bytes(settings_.limit)) index.checkpoint();
  });
}

std::uint64_t Writer::limit() {
  const std::lock_guard lock(mutex_);
  if (settings_.limit == 0) guarded([&](Index& index) { settings_ = index.settings(); });
  return settings_.limit != 0 ? settings_.limit : context_.options.disk_limit;
}

}  // namespace tensorkey::internal
