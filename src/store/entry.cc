#include <tensorkey/entry.h>

#include <tensorkey/error.h>

#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <string>

#include "store/entry_block.h"

namespace tensorkey {

using internal::Block;
using internal::Item;

namespace {

constexpr std::size_t kAlignment = 16;
constexpr std::size_t kMaxRank = 64;

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "[make_entry] " + message);
}

std::size_t add(std::size_t a, std::size_t b) {
  std::size_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) invalid("the sizes of its tensors overflow");
  return sum;
}

std::size_t aligned(std::size_t bytes) {
  return add(bytes, kAlignment - 1) / kAlignment * kAlignment;
}

void check_tensor(const TensorParts& tensor) {
  const std::size_t item = item_size(tensor.dtype);
  if (item == 0) invalid("an unknown dtype");
  if (tensor.shape.size() > kMaxRank) {
    invalid("a tensor of rank " + std::to_string(tensor.shape.size()) + "; expected at most 64");
  }
  std::size_t bytes = item;
  bool empty = false;
  for (const std::int64_t dim : tensor.shape) {
    if (dim < 0) invalid("a dim of " + std::to_string(dim));
    empty |= dim == 0;
    if (dim != 0 && __builtin_mul_overflow(bytes, static_cast<std::size_t>(dim), &bytes)) {
      invalid("the size of a tensor overflows");
    }
  }
  if (empty) bytes = 0;
  if (tensor.codec == Codec::kRaw && tensor.data.size() != bytes) {
    invalid("a tensor of " + std::to_string(bytes) + " bytes comes with " +
            std::to_string(tensor.data.size()));
  }
  if (tensor.name.size() > std::numeric_limits<std::uint32_t>::max()) invalid("a name too long");
}

// Where the data begin, and behind the last of them. Both are whole multiples of the alignment.
struct Extent {
  std::size_t data;
  std::size_t end;
};

Extent extent(const EntryParts& parts) {
  std::size_t size = sizeof(Block);
  if (parts.input) size = add(size, sizeof(Key));
  size = add(size, parts.tensors.size() * sizeof(Item));
  for (const TensorParts& tensor : parts.tensors) {
    size = add(size, tensor.shape.size_bytes());
  }
  for (const TensorParts& tensor : parts.tensors) size = add(size, tensor.name.size());
  Extent result{.data = aligned(size), .end = 0};
  result.end = result.data;
  for (const TensorParts& tensor : parts.tensors) {
    result.end = add(result.end, aligned(tensor.data.size()));
  }
  return result;
}

const std::byte* bytes_of(const Entry& entry) {
  return reinterpret_cast<const std::byte*>(&internal::block_of(entry));
}

}  // namespace

namespace internal {

std::size_t block_bytes(const EntryParts& parts) {
  if (!std::isfinite(parts.seconds) || parts.seconds < 0) {
    invalid("seconds is " + std::to_string(parts.seconds) + "; expected a finite number from 0 up");
  }
  if (parts.tensors.size() > std::numeric_limits<std::uint32_t>::max()) invalid("too many tensors");
  for (const TensorParts& tensor : parts.tensors) check_tensor(tensor);
  return extent(parts).end;
}

void fill_block(Block& target, const EntryParts& parts) {
  Block* const block = &target;
  assert(&Block::of(block->policy) == block);
  auto* const memory = reinterpret_cast<std::byte*>(block);
  const Extent extent = tensorkey::extent(parts);
  block->tensors = static_cast<std::uint32_t>(parts.tensors.size());
  block->key = parts.key;
  block->has_input = parts.input.has_value();
  block->seconds = parts.seconds;

  std::byte* to = memory + sizeof(Block);
  if (parts.input) {
    new (to) Key(*parts.input);
    to += sizeof(Key);
  }
  auto* const items = reinterpret_cast<Item*>(to);
  std::size_t dims = static_cast<std::size_t>(to - memory) + parts.tensors.size() * sizeof(Item);
  std::size_t names = dims;
  for (const TensorParts& tensor : parts.tensors) names += tensor.shape.size_bytes();
  std::size_t data = extent.data;
  for (std::size_t i = 0; i < parts.tensors.size(); ++i) {
    const TensorParts& tensor = parts.tensors[i];
    new (&items[i]) Item{.data = data,
                         .bytes = tensor.data.size(),
                         .dims = dims,
                         .name = names,
                         .name_bytes = static_cast<std::uint32_t>(tensor.name.size()),
                         .dtype = tensor.dtype,
                         .rank = static_cast<std::uint8_t>(tensor.shape.size()),
                         .strides = tensor.strides,
                         .codec = tensor.codec};
    if (!tensor.shape.empty()) {
      std::memcpy(memory + dims, tensor.shape.data(), tensor.shape.size_bytes());
    }
    if (!tensor.name.empty()) {
      std::memcpy(memory + names, tensor.name.data(), tensor.name.size());
    }
    if (!tensor.data.empty()) {
      std::memcpy(memory + data, tensor.data.data(), tensor.data.size());
    }
    if (i == 0) {
      block->data = memory + data;
      block->bytes = tensor.data.size();
    }
    dims += tensor.shape.size_bytes();
    names += tensor.name.size();
    data += aligned(tensor.data.size());
  }
}

Block* copy_block(const Block& block, void* memory) {
  // Before its lifetime begins: the bytes behind the block, and the plain members.
  const auto* const from = reinterpret_cast<const std::byte*>(&block);
  auto* const to = static_cast<std::byte*>(memory);
  std::memcpy(to + sizeof(Block), from + sizeof(Block), block.size - sizeof(Block));
  auto* const copy = new (memory) Block;
  copy->policy.request = block.policy.request;
  copy->tensors = block.tensors;
  copy->key = block.key;
  copy->expires.store(block.expires.load(std::memory_order_relaxed), std::memory_order_relaxed);
  if (block.data != nullptr) copy->data = to + (block.data - from);
  copy->bytes = block.bytes;
  copy->scope = block.scope;
  copy->seconds = block.seconds;
  copy->size = block.size;
  copy->footprint = block.footprint;
  copy->arena = block.arena;
  copy->has_input = block.has_input;
  return copy;
}

void retain(const Entry& entry) noexcept {
  block_of(entry).owners.fetch_add(1, std::memory_order_relaxed);
}

void release(const Entry& entry) noexcept {
  const Block& block = block_of(entry);
  if (block.owners.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const std::shared_ptr<Arena> arena = block.arena;
  const std::size_t footprint = block.footprint;
  auto* const memory = const_cast<Block*>(&block);
  block.~Block();
  if (arena != nullptr) {
    arena->give_back(memory, footprint);
  } else {
    ::operator delete(memory);
  }
}

}  // namespace internal

const Key& Entry::key() const noexcept { return internal::block_of(*this).key; }

std::optional<Key> Entry::input() const noexcept {
  if (!internal::block_of(*this).has_input) return std::nullopt;
  return *reinterpret_cast<const Key*>(bytes_of(*this) + sizeof(Block));
}

double Entry::seconds() const noexcept { return internal::block_of(*this).seconds; }

std::size_t Entry::tensor_count() const noexcept { return internal::block_of(*this).tensors; }

std::size_t Entry::footprint() const noexcept { return internal::block_of(*this).footprint; }

TensorParts Entry::tensor(std::size_t i) const noexcept {
  const Block& block = internal::block_of(*this);
  const std::byte* const begin = bytes_of(*this);
  const std::byte* const items = begin + sizeof(Block) + (block.has_input ? sizeof(Key) : 0);
  const Item& item = reinterpret_cast<const Item*>(items)[i];
  return {.name = {reinterpret_cast<const char*>(begin + item.name), item.name_bytes},
          .dtype = item.dtype,
          .shape = {reinterpret_cast<const std::int64_t*>(begin + item.dims), item.rank},
          .strides = item.strides,
          .codec = item.codec,
          .data = {begin + item.data, item.bytes}};
}

EntryPtr::EntryPtr(const EntryPtr& other) noexcept : entry_(other.entry_) {
  if (entry_ != nullptr) internal::retain(*entry_);
}

EntryPtr::~EntryPtr() {
  if (entry_ != nullptr) internal::release(*entry_);
}

EntryPtr make_entry(const EntryParts& parts) {
  const std::size_t bytes = internal::block_bytes(parts);
  auto* const block = new (::operator new(bytes)) Block;
  block->size = bytes;
  block->footprint = aligned(bytes + sizeof(void*));  // with the allocator's own header
  internal::fill_block(*block, parts);
  return EntryPtr(block);
}

}  // namespace tensorkey
