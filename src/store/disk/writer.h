// The writing side of a disk tier: a queue, a thread that empties it, one segment that this process
// appends to, and the connection that commits what was appended.
//
// A batch becomes visible in one transaction after its bytes are in the segment. Room is made
// before: a segment is added within the bound or not at all, and what must go for it must be worth
// less (docs/eviction.md). Every failure drops entries and is counted. Thread-safe.
//
// In the child of a fork the queue is empty, the segment is the parent's, and a thread is started
// when there is something to write.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/fork.h"
#include "store/disk/catalog.h"
#include "store/disk/context.h"
#include "store/disk/queue.h"

namespace tensorkey::internal {

class Writer {
 public:
  Writer(DiskContext& context, Catalog& catalog);
  ~Writer();  // writes what was accepted
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  [[nodiscard]] WriteQueue& queue() noexcept { return queue_; }
  bool start();  // the thread, if it does not run; false if there is none
  // Writes in this thread. What the bound does not allow is dropped.
  void write(Batch& batch);

  bool remove(const Key& key);
  std::size_t purge(std::uint64_t scope);
  void clear();
  // A record that is of no use here. Its row goes before the key is written again; unless it is
  // `foreign`, such as one under another secret, also if it is not.
  void report(const Key& key, const Place& place, bool foreign);
  // Whether a key is not on disk yet, or only in a record that is of no use.
  [[nodiscard]] bool wants(const Key& key) const;
  // Reports hits, removes bad rows, gives room back.
  void upkeep();

  [[nodiscard]] std::uint64_t limit();
  [[nodiscard]] const Health& health() const noexcept { return health_; }

 private:
  using Clock = std::chrono::steady_clock;
  using Items = std::vector<std::size_t>;  // of a batch

  void run();
  void stop();
  bool write_waiting(double seconds) noexcept;

  // All below: mutex_ is held. They throw Error, and guarded() counts it.
  template <typename Work>
  bool guarded(Work&& work);
  Index* index();
  void set_limit(Index& index);
  [[nodiscard]] std::vector<std::pair<Key, Place>> bad_rows(const Batch* batch) const;
  void forget_bad(std::span<const std::pair<Key, Place>> rows);
  void write_items(Index& index, Batch& batch, Items& items);
  bool write_part(Index& index, Batch& batch, std::span<const std::size_t> items);
  // A transaction, for whose log there is room.
  Index::Write begin(Index& index);
  [[nodiscard]] std::uint64_t taken(Index& index) const;

  // writer_room.cc
  // Those who want room, and the least of what must go for them is worth.
  struct Candidates {
    Batch& batch;
    Items& items;
    Batch kept{};  // what is moved out of the segments that go
  };

  bool make_room(Index& index, Batch& batch, Items& items);
  bool adopt(Index& index, std::uint64_t bytes);
  bool create(Index& index, std::uint64_t bytes);
  void let_go(Index& index);
  void give_back() noexcept;
  bool evict(Index& index, Candidates* candidates);
  void admit(Candidates& candidates, double density);
  void choose_kept(Index& index, const SegmentRow& row, double density, Batch& kept);
  static void empty(Index& index, const SegmentRow& row);
  void drain(Index& index, const SegmentRow& row);
  void shrink(Index& index);
  void remove_orphans(const std::vector<SegmentRow>& rows);
  [[nodiscard]] std::optional<SegmentRow> victim(Index& index) const;
  [[nodiscard]] double density(const Batch::Item& item) const;
  [[nodiscard]] double density(const SegmentRow& row) const;

  DiskContext& context_;
  Catalog& catalog_;
  Health health_;

  struct Bad {
    Place place;
    bool foreign;
  };
  std::unordered_map<Key, Bad> bad_;
  mutable ForkMutex bad_mutex_;  // older than mutex_, under which it is taken

  std::unique_ptr<Index> index_;
  std::optional<SegmentWriter> segment_;
  IndexSettings settings_;
  bool limit_set_ = false;  // in this index, if the options have one
  ForkMutex mutex_;
  std::atomic<Clock::time_point> reported_{Clock::time_point{}};

  WriteQueue queue_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> running_{false};
  std::unique_ptr<std::thread> thread_;
  ForkMutex thread_mutex_;
};

}  // namespace tensorkey::internal
