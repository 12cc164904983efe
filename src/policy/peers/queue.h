// Queues of ids, for policies that keep several; an id stands in one queue of a set at a time.
#pragma once

#include <cstdint>
#include <vector>

namespace tensorkey::internal {

class QueueSet {
 public:
  static constexpr std::uint32_t kEnd = ~std::uint32_t{0};

  QueueSet(std::size_t queues, std::uint32_t ids) : queues_(queues), places_(ids) {}

  [[nodiscard]] int where(std::uint32_t id) const noexcept { return places_[id].queue; }
  [[nodiscard]] std::uint32_t tail(std::size_t queue) const noexcept { return queues_[queue].tail; }
  [[nodiscard]] std::uint64_t bytes(std::size_t queue) const noexcept {
    return queues_[queue].bytes;
  }
  [[nodiscard]] std::uint64_t count(std::size_t queue) const noexcept {
    return queues_[queue].count;
  }
  [[nodiscard]] std::uint64_t size(std::uint32_t id) const noexcept { return places_[id].size; }
  // The neighbour that is nearer to the head; kEnd at the head.
  [[nodiscard]] std::uint32_t ahead(std::uint32_t id) const noexcept { return places_[id].ahead; }

  // A new id joins at the head, or one of another queue.
  void push(std::size_t queue, std::uint32_t id, std::uint64_t size) {
    Place& place = places_[id];
    Queue& into = queues_[queue];
    place = {.ahead = kEnd, .behind = into.head, .queue = static_cast<int>(queue), .size = size};
    (into.head == kEnd ? into.tail : places_[into.head].ahead) = id;
    into.head = id;
    into.bytes += size;
    ++into.count;
  }
  void remove(std::uint32_t id) {
    Place& place = places_[id];
    Queue& from = queues_[static_cast<std::size_t>(place.queue)];
    (place.ahead == kEnd ? from.head : places_[place.ahead].behind) = place.behind;
    (place.behind == kEnd ? from.tail : places_[place.behind].ahead) = place.ahead;
    from.bytes -= place.size;
    --from.count;
    place.queue = -1;
  }
  void move(std::size_t queue, std::uint32_t id) {
    const std::uint64_t size = places_[id].size;
    remove(id);
    push(queue, id, size);
  }

 private:
  struct Queue {
    std::uint32_t head = kEnd;
    std::uint32_t tail = kEnd;
    std::uint64_t bytes = 0;
    std::uint64_t count = 0;
  };
  struct Place {
    std::uint32_t ahead = kEnd;
    std::uint32_t behind = kEnd;
    int queue = -1;  // in none
    std::uint64_t size = 0;
  };

  std::vector<Queue> queues_;
  std::vector<Place> places_;
};

}  // namespace tensorkey::internal
