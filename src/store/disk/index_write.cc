#include <algorithm>
#include <cmath>
#include <limits>

#include <tensorkey/error.h>

#include "store/disk/index_impl.h"

namespace tensorkey::internal {
namespace {

// Beyond these a number says no more, and sums and products stay far from infinity.
constexpr double kMostSeconds = 1e9;
constexpr double kMostHits = 1e15;

double at_most(double value, double most) noexcept {
  return value > 0 ? std::fmin(value, most) : 0;
}

double stored_hits(double hits, std::int64_t period) noexcept {
  return std::ldexp(at_most(hits, kMostHits), static_cast<int>(period));
}

[[noreturn]] void refuse(std::string_view where, const std::string& problem) {
  throw Error(ErrorCode::kIo, "[" + std::string(where) + "] " + problem);
}

}  // namespace

// --- The transaction

Index::Write::Write(Index& index) : index_(index) {
  Impl& impl = *index.impl_;
  if (impl.options.read_only || impl.writing) {
    throw Error(ErrorCode::kUnavailable,
                "[Index::Write] " + impl.options.path +
                    (impl.writing ? " is being written" : " is open for reading") +
                    "; expected an index that can be written");
  }
  Query(*impl.database, impl.begin, "Index::Write").run();
  impl.writing = true;
}

Index::Write::~Write() {
  if (!open_) return;
  Impl& impl = *index_.impl_;
  impl.forget_write();
  // SQLite may have rolled back already. A failure leaves nothing to be done: the log's frames
  // count only once a commit is behind them.
  if (impl.database->in_transaction()) static_cast<void>(impl.database->try_execute("ROLLBACK"));
}

void Index::Write::commit() {
  Impl& impl = *index_.impl_;
  impl.require_write("Index::commit");
  impl.write_back("Index::commit");
  Query(*impl.database, impl.commit, "Index::commit").run();
  open_ = false;
  impl.forget_write();
}

void Index::Impl::require_write(std::string_view where) const {
  if (!writing || !database->in_transaction()) {
    refuse(where, "no transaction is open; expected a Write none of whose steps has failed");
  }
}

void Index::Impl::forget_write() noexcept {
  writing = false;
  accounts.clear();
  settings.reset();
}

Index::Impl::Account& Index::Impl::account(std::uint32_t segment, std::string_view where) {
  require_write(where);
  const auto known = accounts.find(segment);
  if (known != accounts.end()) return known->second;
  Account fresh{};
  {
    Query query(*database, select_segment, where);
    query.bind(1, std::int64_t{segment});
    if (query.step()) {
      const std::optional<SegmentRow> row = segment_in(query);
      fresh.present = row.has_value();
      if (row) fresh.row = *row;
    }
  }
  return accounts.emplace(segment, fresh).first->second;
}

SegmentRow& Index::Impl::row_to_change(std::uint32_t segment, std::string_view where) {
  Account& found = account(segment, where);
  if (!found.present) {
    refuse(where, "segment " + std::to_string(segment) +
                      " is not in the index; expected one that add_segment has made");
  }
  found.changed = true;
  return found.row;
}

void Index::Impl::write_back(std::string_view where) {
  for (auto& [id, account] : accounts) {
    if (!account.changed) continue;
    const SegmentRow& row = account.row;
    Query query(*database, update_segment, where);
    query.bind(1, std::int64_t{row.id});
    query.bind(2, static_cast<std::int64_t>(row.size));
    query.bind(3, static_cast<std::int64_t>(row.end));
    query.bind(4, std::int64_t{row.sealed});
    query.bind(5, static_cast<std::int64_t>(row.entries));
    query.bind(6, static_cast<std::int64_t>(row.bytes));
    query.bind(7, row.worth);
    query.bind(8, row.first_id);
    query.bind(9, row.last_id);
    query.run();
    account.changed = false;
  }
}

IndexSettings& Index::Impl::settings_to_read(std::string_view where) {
  if (!settings) settings = read_settings(where);
  return *settings;
}

// --- Segments

std::uint32_t Index::add_segment(const SegmentMark& mark, std::uint64_t size, std::uint64_t end,
                                 std::uint32_t number) {
  static constexpr std::string_view kWhere = "Index::add_segment";
  impl_->require_write(kWhere);
  {
    Query query(*impl_->database, impl_->insert_segment, kWhere);
    query.bind(1, mark);
    query.bind(2, static_cast<std::int64_t>(size));
    query.bind(3, static_cast<std::int64_t>(end));
    query.bind(4, std::int64_t{number});
    query.run();
  }
  if (number != 0) impl_->accounts.erase(number);  // what was known of it: that there is none
  const std::int64_t id = sqlite3_last_insert_rowid(impl_->database->get());
  if (id < 1 || id > std::numeric_limits<std::uint32_t>::max()) {
    throw Error(ErrorCode::kCorruption, "[Index::add_segment] " + impl_->options.path +
                                            " has no numbers left; expected fewer than 2^32");
  }
  return static_cast<std::uint32_t>(id);
}

void Index::set_end(std::uint32_t segment, std::uint64_t end) {
  impl_->row_to_change(segment, "Index::set_end").end = end;
}

void Index::set_size(std::uint32_t segment, std::uint64_t size) {
  impl_->row_to_change(segment, "Index::set_size").size = size;
}

void Index::seal(std::uint32_t segment, std::uint64_t size) {
  SegmentRow& row = impl_->row_to_change(segment, "Index::seal");
  row.size = size;
  row.sealed = true;
}

std::uint64_t Index::remove_segment(const SegmentRow& segment) {
  static constexpr std::string_view kWhere = "Index::remove_segment";
  Impl::Account& account = impl_->account(segment.id, kWhere);
  // The caller's row may be older than the last entries.
  std::int64_t first = segment.first_id;
  std::int64_t last = segment.last_id;
  if (account.present && account.row.last_id != 0) {
    first = std::min(first == 0 ? account.row.first_id : first, account.row.first_id);
    last = std::max(last, account.row.last_id);
  }
  std::uint64_t removed = 0;
  {
    Query query(*impl_->database, impl_->delete_range, kWhere);
    query.bind(1, first);
    query.bind(2, last);
    query.bind(3, std::int64_t{segment.id});
    removed = query.run();
  }
  Query query(*impl_->database, impl_->delete_segment, kWhere);
  query.bind(1, std::int64_t{segment.id});
  query.run();
  account = {};
  return removed;
}

std::size_t Index::remove_entries(const SegmentRow& segment, std::size_t most) {
  static constexpr std::string_view kWhere = "Index::remove_entries";
  impl_->require_write(kWhere);
  std::vector<IndexEntry> entries;
  {
    Query query(*impl_->database, impl_->select_range, kWhere);
    query.bind(1, segment.first_id);
    query.bind(2, segment.last_id);
    query.bind(3, std::int64_t{segment.id});
    while (entries.size() < most && query.step()) {
      if (const std::optional<IndexEntry> entry = entry_in(query)) entries.push_back(*entry);
    }
  }
  for (const IndexEntry& entry : entries) impl_->erase(entry, kWhere);
  return entries.size();
}

// --- Entries

bool Index::Impl::insert(const IndexEntry& entry, std::string_view where) {
  SegmentRow& row = row_to_change(entry.place.segment, where);
  const auto insert_once = [&] {
    Query query(*database, insert_entry, where);
    query.bind(1, entry.key.bytes());
    query.bind(2, static_cast<std::int64_t>(entry.scope));
    query.bind(3, std::int64_t{entry.place.segment});
    query.bind(4, static_cast<std::int64_t>(entry.place.offset));
    query.bind(5, static_cast<std::int64_t>(entry.place.length));
    query.bind(6, entry.cost);
    query.bind(7, entry.hits);
    query.bind(8, entry.used);
    return query.run() != 0;
  };
  if (!insert_once()) {
    if (find(entry.key, where)) return false;
    // A row that reads as nothing must not keep its key out for good.
    {
      Query query(*database, delete_key, where);
      query.bind(1, entry.key.bytes());
      query.run();
    }
    if (!insert_once()) database->fail(SQLITE_CORRUPT, where);
  }
  const std::int64_t id = sqlite3_last_insert_rowid(database->get());
  if (row.first_id == 0) row.first_id = id;
  row.last_id = id;
  row.entries += 1;
  row.bytes += entry.place.length;
  row.worth = tamed(row.worth + entry.hits * entry.cost);
  return true;
}

void Index::Impl::erase(const IndexEntry& entry, std::string_view where) {
  Account& owner = account(entry.place.segment, where);
  {
    Query query(*database, delete_entry, where);
    query.bind(1, entry.id);
    query.run();
  }
  count_out(owner, entry);
}

void Index::Impl::count_out(Account& owner, const IndexEntry& entry) noexcept {
  if (!owner.present) return;
  SegmentRow& row = owner.row;
  row.entries -= std::min<std::uint64_t>(row.entries, 1);
  row.bytes -= std::min(row.bytes, entry.place.length);
  // What is left of many subtractions is no worth.
  row.worth = row.entries == 0 ? 0 : tamed(row.worth - entry.hits * entry.cost);
  owner.changed = true;
}

bool Index::add(const IndexEntry& entry) {
  static constexpr std::string_view kWhere = "Index::add";
  if (!is_place(entry.place)) {
    throw Error(ErrorCode::kInvalidArgument,
                "[Index::add] a record at " + std::to_string(entry.place.offset) + " of " +
                    std::to_string(entry.place.length) +
                    " bytes; expected multiples of 16 below 2^36, in a segment");
  }
  impl_->require_write(kWhere);
  IndexEntry stored = entry;
  stored.cost = at_most(entry.cost, kMostSeconds);
  stored.hits = stored_hits(entry.hits, impl_->settings_to_read(kWhere).period);
  stored.used = std::max<std::int64_t>(entry.used, 0);
  return impl_->insert(stored, kWhere);
}

std::optional<Place> Index::remove(const Key& key, const std::optional<Place>& place) {
  static constexpr std::string_view kWhere = "Index::remove";
  impl_->require_write(kWhere);
  const std::optional<IndexEntry> entry = impl_->find(key, kWhere);
  if (entry && (!place || entry->place == *place)) {
    impl_->erase(*entry, kWhere);
    return entry->place;
  }
  if (!entry && !place) {  // nothing, or a row that reads as nothing
    Query query(*impl_->database, impl_->delete_key, kWhere);
    query.bind(1, key.bytes());
    query.run();
  }
  return std::nullopt;
}

std::vector<IndexEntry> Index::remove_scope(std::uint64_t scope, std::int64_t after,
                                            std::int64_t last) {
  static constexpr std::string_view kWhere = "Index::remove_scope";
  impl_->require_write(kWhere);
  std::vector<IndexEntry> entries;
  {
    Query query(*impl_->database, impl_->select_scope, kWhere);
    query.bind(1, static_cast<std::int64_t>(scope));
    query.bind(2, after);
    query.bind(3, last);
    while (query.step()) {
      Digest key{};
      std::optional<IndexEntry> entry = entry_in(query);
      if (!entry) continue;
      // Whatever its key: it goes, and from its segment's account.
      if (query.blob(8, std::as_writable_bytes(std::span(key)))) entry->key = Key(key);
      entries.push_back(*entry);
    }
  }
  for (const IndexEntry& entry : entries) {
    static_cast<void>(impl_->account(entry.place.segment, kWhere));
  }
  {
    Query query(*impl_->database, impl_->delete_scope, kWhere);
    query.bind(1, static_cast<std::int64_t>(scope));
    query.bind(2, after);
    query.bind(3, last);
    query.run();
  }
  for (const IndexEntry& entry : entries) {
    Impl::count_out(impl_->accounts.at(entry.place.segment), entry);
  }
  return entries;
}

// --- Settings

void Index::add_hits(std::span<const HitCount> hits, std::span<const SegmentWorth> worth,
                     std::int64_t now, double accesses, double period_length) {
  static constexpr std::string_view kWhere = "Index::add_hits";
  impl_->require_write(kWhere);
  IndexSettings settings = impl_->settings_to_read(kWhere);
  for (const HitCount& hit : hits) {
    const std::optional<IndexEntry> entry = impl_->find(hit.key, kWhere);
    if (!entry) continue;
    Query query(*impl_->database, impl_->update_entry, kWhere);
    query.bind(1, entry->id);
    query.bind(2, tamed(entry->hits + stored_hits(hit.hits, settings.period)));
    query.bind(3, std::max(entry->used, now));
    query.run();
  }
  for (const auto& [segment, more] : worth) {
    Impl::Account& owner = impl_->account(segment, kWhere);
    owner.row.worth = tamed(owner.row.worth + stored_hits(more, settings.period));
    owner.changed = owner.present;
  }
  settings.accesses += at_most(accesses, kMostHits);
  if (period_length > 0 && settings.accesses >= period_length) {
    settings.accesses = 0;
    settings.period += 1;
  }
  if (settings.period > kPeriods) {
    impl_->rescale(std::ldexp(1.0, -static_cast<int>(settings.period)), kWhere);
    settings.period = 0;
  }
  impl_->write_setting("accesses", settings.accesses, kWhere);
  impl_->write_setting("period", settings.period, kWhere);
  impl_->settings = settings;
}

void Index::Impl::rescale(double factor, std::string_view where) {
  write_back(where);
  accounts.clear();
  for (Statement* statement : {&scale_entries, &scale_segments}) {
    Query query(*database, *statement, where);
    query.bind(1, factor);
    query.run();
  }
}

void Index::set_limit(std::uint64_t limit) {
  static constexpr std::string_view kWhere = "Index::set_limit";
  static constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max();
  impl_->require_write(kWhere);
  IndexSettings settings = impl_->settings_to_read(kWhere);
  settings.limit = std::min(limit, kMost);
  impl_->write_setting("limit", static_cast<std::int64_t>(settings.limit), kWhere);
  impl_->settings = settings;
}

std::uint64_t Index::growth(std::size_t entries) noexcept {
  // Measured by Index.GrowthIsBounded: a random key dirties a page of its own, and now and then
  // splits one, which touches its neighbours and the pages above; the rest is shared by all.
  constexpr std::uint64_t kShared = 24;
  return (kShared + 2 * std::uint64_t{entries}) * kLogFrame;
}

}  // namespace tensorkey::internal
