// One block per element: Node, value, dims, dtype parameters, then the logical bytes, aligned so
// that they can be read as numbers. The slots hold hash and node, so a probe touches a node only if
// all bits of the hash agree.
#include <bit>
#include <cstring>
#include <string>

#include <tensorkey/map.h>

#include "view/walk.h"

namespace tensorkey::internal {
namespace {

constexpr std::size_t kDataAlign = 16;
constexpr std::size_t kFewestSlots = 8;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

constexpr std::size_t block_align(const Layout& layout) {
  return layout.align > kDataAlign ? layout.align : kDataAlign;
}

void free_block(Node* node, const Layout& layout) noexcept {
  ::operator delete (static_cast<void*>(node), std::align_val_t{block_align(layout)});
}

bool same_kind(const TensorView& a, const TensorView& b) noexcept {
  return a.dtype == b.dtype && a.shape.size() == b.shape.size() &&
         a.dtype_params == b.dtype_params &&
         (a.shape.empty() ||
          std::memcmp(a.shape.data(), b.shape.data(), a.shape.size_bytes()) == 0);
}

bool same_bytes(const void* a, const void* b, std::size_t size) noexcept {
  return size == 0 || std::memcmp(a, b, size) == 0;
}

// Slots for `count` elements at a load of at most 3/4.
std::size_t slots_for(std::size_t count) {
  const std::size_t least = count + count / 3 + 1;
  if (least > (std::size_t{1} << 48)) throw std::bad_alloc();
  return std::bit_ceil(least < kFewestSlots ? kFewestSlots : least);
}

}  // namespace

Table::Table(const Layout& layout, const TableOptions& options) noexcept
    : layout_(&layout), options_(options) {}

Table::Table(Table&& other) noexcept : Table(*other.layout_, other.options_) { swap(other); }

Table::~Table() { clear(); }

void Table::swap(Table& other) noexcept {
  std::swap(layout_, other.layout_);
  std::swap(options_, other.options_);
  std::swap(slots_, other.slots_);
  std::swap(slot_count_, other.slot_count_);
  std::swap(size_, other.size_);
  std::swap(first_, other.first_);
  std::swap(last_, other.last_);
}

Node* Table::find(const Probe& probe) const {
  if (size_ == 0) return nullptr;
  const std::uint64_t hash = slot_hash(probe.hash_);
  const std::size_t mask = slot_count_ - 1;
  for (std::size_t i = hash & mask; slots_[i].node != nullptr; i = (i + 1) & mask) {
    if (slots_[i].hash != hash) continue;
    Node* const node = slots_[i].node;
    const TensorView& key = *node->key;
    if (!same_kind(key, probe.view_)) continue;
    const bool same = probe.bytes_ != nullptr || probe.size_ == 0
                          ? same_bytes(key.data, probe.bytes_, probe.size_)
                          : equal_logical(probe.view_, probe.canonical_,
                                          {static_cast<const std::byte*>(key.data), probe.size_});
    if (same) return node;
  }
  return nullptr;
}

Node* Table::find_same(const Node& other) const noexcept {
  if (size_ == 0) return nullptr;
  const std::uint64_t hash = slot_hash(other.hash);
  const std::size_t mask = slot_count_ - 1;
  const std::size_t size = byte_count(*other.key);
  for (std::size_t i = hash & mask; slots_[i].node != nullptr; i = (i + 1) & mask) {
    if (slots_[i].hash != hash) continue;
    const TensorView& key = *slots_[i].node->key;
    if (same_kind(key, *other.key) && same_bytes(key.data, other.key->data, size)) {
      return slots_[i].node;
    }
  }
  return nullptr;
}

std::byte* Table::allocate(const TensorView& view, std::size_t size, Fresh& fresh) {
  if (size_ + 1 > slot_count_ / 4 * 3) grow(slots_for(2 * size_ + 1));
  const std::size_t dims = round_up(layout_->offset + layout_->size, alignof(std::int64_t));
  const std::size_t params = dims + view.shape.size_bytes();
  const std::size_t data = round_up(params + view.dtype_params.size(), kDataAlign);
  if (size > SIZE_MAX - data) throw std::bad_alloc();
  auto* const block = static_cast<std::byte*>(
      ::operator new (data + size, std::align_val_t{block_align(*layout_)}));
  fresh.node = ::new (block) Node;
  auto* const shape = reinterpret_cast<std::int64_t*>(block + dims);
  auto* const text = reinterpret_cast<char*>(block + params);
  if (!view.shape.empty()) std::memcpy(shape, view.shape.data(), view.shape.size_bytes());
  if (!view.dtype_params.empty()) {
    std::memcpy(text, view.dtype_params.data(), view.dtype_params.size());
  }
  fresh.key = {.data = block + data,
               .dtype = view.dtype,
               .shape = {shape, view.shape.size()},
               .dtype_params = {text, view.dtype_params.size()}};
  return block + data;
}

Table::Fresh Table::make_node(const Probe& probe) {
  Fresh fresh;
  std::byte* const data = allocate(probe.view_, probe.size_, fresh);
  fresh.node->hash = probe.hash_;
  if (probe.bytes_ == nullptr) {
    read_logical(probe.view_, probe.canonical_, 0, {data, probe.size_});
  } else if (probe.size_ != 0) {
    std::memcpy(data, probe.bytes_, probe.size_);
  }
  return fresh;
}

Table::Fresh Table::make_node(const Node& other) {
  Fresh fresh;
  const std::size_t size = byte_count(*other.key);
  std::byte* const data = allocate(*other.key, size, fresh);
  fresh.node->hash = other.hash;
  if (size != 0) std::memcpy(data, other.key->data, size);
  return fresh;
}

void Table::link(Node* node) noexcept {
  place(node);
  node->previous = last_;
  (last_ == nullptr ? first_ : last_->next) = node;
  last_ = node;
  ++size_;
}

void Table::discard(Node* node) noexcept { free_block(node, *layout_); }

Node* Table::erase(Node* node) noexcept {
  const std::size_t mask = slot_count_ - 1;
  std::size_t hole = slot_hash(node->hash) & mask;
  while (slots_[hole].node != node) hole = (hole + 1) & mask;
  // What follows moves back into the hole unless that would put it before its own place.
  for (std::size_t i = (hole + 1) & mask; slots_[i].node != nullptr; i = (i + 1) & mask) {
    const std::size_t home = slots_[i].hash & mask;
    if (((i - home) & mask) >= ((i - hole) & mask)) {
      slots_[hole] = slots_[i];
      hole = i;
    }
  }
  slots_[hole] = {};

  Node* const next = node->next;
  (node->previous == nullptr ? first_ : node->previous->next) = next;
  (next == nullptr ? last_ : next->previous) = node->previous;
  --size_;
  layout_->destroy(node);
  free_block(node, *layout_);
  return next;
}

void Table::clear() noexcept {
  // Emptied before any value is destroyed: a value's destructor may look at the container.
  Node* node = std::exchange(first_, nullptr);
  last_ = nullptr;
  size_ = 0;
  slot_count_ = 0;
  slots_.reset();
  while (node != nullptr) {
    Node* const next = node->next;
    layout_->destroy(node);
    free_block(node, *layout_);
    node = next;
  }
}

void Table::reserve(std::size_t count) {
  const std::size_t slots = slots_for(count);
  if (slots > slot_count_) grow(slots);
}

void Table::grow(std::size_t slots) {
  auto fresh = std::make_unique<Slot[]>(slots);
  slots_ = std::move(fresh);
  slot_count_ = slots;
  for (Node* node = first_; node != nullptr; node = node->next) place(node);
}

void Table::place(Node* node) noexcept {
  const std::size_t mask = slot_count_ - 1;
  const std::uint64_t hash = slot_hash(node->hash);
  std::size_t i = hash & mask;
  while (slots_[i].node != nullptr) i = (i + 1) & mask;
  slots_[i] = {hash, node};
}

void throw_not_found(const TensorView& key, std::string_view where) {
  std::string text = "[" + std::string(where) + "] no entry for this " +
                     std::string(to_string(key.dtype)) + " tensor of shape (";
  for (std::size_t i = 0; i < key.shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(key.shape[i]);
  }
  throw Error(ErrorCode::kNotFound, text + (key.shape.size() == 1 ? ",)" : ")"));
}

}  // namespace tensorkey::internal
