// Who computes the rows of a batch that are not there: this thread, another, or another process;
// and waiting for the others.
#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "memo/memo_impl.h"

namespace tensorkey {
namespace {

using internal::Flights;
using internal::is_row;
using internal::Lead;
using internal::Tiers;
using Clock = std::chrono::steady_clock;

}  // namespace

void MemoBatch::Impl::compute(std::size_t slot, Lead lead) {
  missing_rows.push_back(distinct.first(slot));
  missing_slots.push_back(slot);
  if (computed.empty()) computed.resize(distinct.slots());
  computed[slot] = true;
  leads.push_back(std::move(lead));
}

// Claims the slots: each is found after all, or to be computed here, or awaited. Those of `alone`
// are computed here without a flight. REQUIRES: none of them is missing or awaited yet.
void MemoBatch::Impl::take_over(std::span<const std::size_t> slots,
                                std::span<const std::size_t> alone) {
  std::vector<Key> keys;
  for (const std::size_t slot : slots) keys.push_back(distinct.keys()[slot]);
  std::vector<Lead> guards;
  guards.reserve(slots.size());  // from here on every flight has its guard
  std::vector<Flights::Claim> claims;
  flights->claim(keys, claims);
  for (const Flights::Claim& claim : claims) {
    guards.emplace_back(*flights, claim.role == Flights::Role::kLeader ? claim.flight : nullptr);
  }
  const std::size_t first = missing_slots.size();
  std::vector<std::size_t> found;
  std::vector<Elsewhere> open;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::size_t slot = slots[i];
    if (claims[i].role == Flights::Role::kFollower) {
      awaited.push_back({.slot = slot, .flight = claims[i].flight});
    } else if (EntryPtr entry = find(slot)) {
      guards[i].land(entry);  // stored between the two looks
      know(slot, std::move(entry));
      found.push_back(slot);
    } else {
      open.push_back({.slot = slot, .lead = std::move(guards[i])});
    }
  }
  ask_processes(std::move(open), found);
  for (const std::size_t slot : alone) compute(slot, Lead(*flights, nullptr));
  count_found(found, false);
  count_missing(first);
}

// Each row is found below memory, or to be computed here, or computed by another process.
void MemoBatch::Impl::ask_processes(std::vector<Elsewhere> rows, std::vector<std::size_t>& found) {
  if (rows.empty()) return;
  std::vector<Key> keys;
  keys.reserve(rows.size());
  for (const Elsewhere& row : rows) keys.push_back(distinct.keys()[row.slot]);
  std::vector<EntryPtr> known(rows.size());
  std::vector<Tiers::Claim> claims(rows.size());
  tiers->claim(keys, secret_of_entries(), known, claims);
  for (std::size_t i = 0; i < rows.size(); ++i) {  // first, so that none is lost
    if (claims[i] == Tiers::Claim::kLeased) rows[i].lead.hold(*tiers->store(), keys[i]);
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    auto& [slot, lead] = rows[i];
    if (claims[i] == Tiers::Claim::kOthers) {
      elsewhere.push_back(std::move(rows[i]));
    } else if (is_row(known[i])) {
      lead.land(known[i]);
      know(slot, std::move(known[i]));
      found.push_back(slot);
    } else {
      compute(slot, std::move(lead));
    }
  }
}

// Waits for rows of other threads; false if the deadline came first. What they gave up is claimed.
bool MemoBatch::Impl::await_threads(const Flights::Deadline& deadline) {
  std::vector<std::size_t> found;
  std::vector<std::size_t> circle;     // computed here though another thread does so too
  std::vector<std::size_t> abandoned;  // to be claimed again
  bool timeout = false;
  while (!awaited.empty() && !timeout) {
    const Open open = std::move(awaited.back());
    awaited.pop_back();
    auto [outcome, entry] = flights->wait(open.flight, deadline);
    switch (outcome) {
      case Flights::Outcome::kLanded:
        know(open.slot, std::move(entry));
        tiers->memory.count_wait();
        count_found({&open.slot, 1}, true);
        break;
      case Flights::Outcome::kGaveUp: abandoned.push_back(open.slot); break;
      case Flights::Outcome::kCircle: circle.push_back(open.slot); break;
      case Flights::Outcome::kDeadline:
        awaited.push_back(open);
        timeout = true;
        break;
    }
  }
  std::ranges::sort(abandoned);
  if (!abandoned.empty() || !circle.empty()) take_over(abandoned, circle);
  return !timeout;
}

// Looks until every row of other processes is found, or one is this process's to compute; false if
// the deadline came first. Who takes longer than the rows would take here is not waited for.
bool MemoBatch::Impl::await_processes(const Flights::Deadline& deadline) {
  std::chrono::microseconds pause = internal::kFirstPoll;
  while (!elsewhere.empty()) {
    if (!elsewhere_until) {
      std::optional<double> cost;
      {
        const std::lock_guard lock(memo->mutex);
        const MemoStats& stats = memo->stats;
        if (stats.misses > 0 && stats.seconds_spent > 0) {
          cost = stats.seconds_spent / static_cast<double>(stats.misses) *
                 static_cast<double>(elsewhere.size());
        }
      }
      const std::chrono::duration<double> patience(tiers->lease_patience(cost));
      elsewhere_until = Clock::now() + std::chrono::duration_cast<Clock::duration>(patience);
    }
    const std::size_t first = missing_slots.size();
    std::vector<std::size_t> found;
    ask_processes(std::exchange(elsewhere, {}), found);
    if (Clock::now() >= *elsewhere_until) {
      for (auto& [slot, lead] : std::exchange(elsewhere, {})) {
        tiers->store()->distrust(distinct.keys()[slot]);
        compute(slot, std::move(lead));
      }
    }
    count_found(found, true);
    count_missing(first);
    if (elsewhere.empty()) elsewhere_until.reset();
    if (missing_slots.size() > first || elsewhere.empty()) return true;
    const Clock::time_point next = Clock::now() + pause;
    if (deadline && next >= *deadline) return false;
    std::this_thread::sleep_until(next);
    pause = internal::next_poll(pause);
  }
  return true;
}

MemoBatch::Wait MemoBatch::wait(double seconds) {
  Impl& self = *impl_;
  self.missing_rows.clear();
  self.missing_slots.clear();
  self.leads.clear();
  Flights::Deadline deadline;
  if (seconds >= 0) {
    deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                  std::chrono::duration<double>(std::min(seconds, 1e6)));
  }
  do {
    const bool threads = self.await_threads(deadline);
    // Rows that are this thread's to compute come first: others wait for them.
    const bool processes = !self.missing_rows.empty() || self.await_processes(deadline);
    if (!self.missing_rows.empty()) return Wait::kMore;
    if (!threads || !processes) return Wait::kTimeout;
  } while (!self.awaited.empty() || !self.elsewhere.empty());
  return Wait::kDone;
}

}  // namespace tensorkey
