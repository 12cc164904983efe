// Mappings whose keys are tensors: TensorKeyMap<V> and TensorKeySet, with the names and the
// complexity of std::unordered_map and std::unordered_set. Two tensors are the same key iff dtype,
// shape and elements are, bit for bit; strides, offset and byte order do not count.
//
//   tensorkey::TensorKeyMap<std::string> seen;
//   seen[view(data, shape)] = "cat";
//   if (auto it = seen.find(other); it != seen.end()) use(it->second);
//   for (const auto& [key, value] : seen) { ... }        // key: a TensorView of the snapshot
//
// How they differ from the standard containers:
//   - Keys go in and are looked up as TensorView, which borrows. Inserting a new key copies it:
//     later writes to the tensor change nothing. A lookup copies nothing.
//   - A hash with a secret of this process (XXH3-128) finds the bucket, then dtype, shape and bytes
//     are compared: collisions, constructed ones too, cost time and never confuse two tensors.
//   - Iteration is in the order of insertion. Assigning to a present key keeps its place and the
//     key that came first.
//   - Iterators, pointers and references stay valid until their own element is erased: growing
//     moves no element. end() stays valid for ever.
//   - Option canonical: -0.0 equals 0.0 and every NaN one NaN, in complex parts too. Snapshots are
//     then canonical as well. Without it NaN equals its own bits.
//   - Hash function, buckets, allocators and node handles are not part of the interface.
// Performance: a lookup is one hash and one memcmp over the tensor's bytes. A view that does not
// lie in one piece is gathered first (up to 256 KiB) or read twice in pieces (above).
//
// Not synchronised: like any standard container, many readers or one writer. Every function that
// changes gives the strong guarantee (after an exception, of a V or std::bad_alloc, nothing has
// changed), except that insert_or_assign gives what V's assignment gives. Views are checked as by
// check_view, which throws Error; at() throws Error kNotFound.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <new>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <tensorkey/error.h>
#include <tensorkey/export.h>
#include <tensorkey/view.h>

namespace tensorkey {

struct MapOptions {
  bool canonical = false;
};

// The distinct rows (along the first dimension) of a tensor, in the order of first appearance.
struct UniqueRows {
  std::vector<std::int64_t> first;    // for each distinct row, the index of its first appearance
  std::vector<std::int64_t> inverse;  // for each row, which distinct row it is
  std::vector<std::int64_t> counts;   // for each distinct row, how many rows it stands for
};

// Rows are the same iff their bytes are; no row is copied. Throws kInvalidArgument for rank 0.
[[nodiscard]] TENSORKEY_EXPORT UniqueRows unique_rows(const TensorView& view,
                                                      const MapOptions& options = {});

namespace internal {

// hash_mask is the tests' way to force collisions: only the bits in it are used.
struct TableOptions {
  bool canonical = false;
  std::uint64_t hash_mask = ~std::uint64_t{0};
};

// What an element begins with; its value (of a type the table does not know) and the snapshot of
// its key follow in the same block.
struct Node {
  Node* previous = nullptr;  // in the order of insertion
  Node* next = nullptr;
  std::uint64_t hash = 0;
  const TensorView* key = nullptr;  // inside the value
};

// How values lie in a node, and how one is destroyed.
struct Layout {
  std::size_t offset;
  std::size_t size;
  std::size_t align;
  void (*destroy)(Node*) noexcept;
};

// A key that is being looked up: the view, checked, with its hash. Borrows the view's arrays.
class Probe {
 public:
  TENSORKEY_EXPORT Probe(const TensorView& view, bool canonical, std::string_view where);
  // REQUIRES: a checked view of `size` bytes.
  TENSORKEY_EXPORT Probe(const TensorView& view, std::size_t size, bool canonical);

  [[nodiscard]] const TensorView& view() const noexcept { return view_; }

 private:
  friend class Table;
  TensorView view_;
  std::size_t size_;                       // logical bytes
  const std::byte* bytes_ = nullptr;       // them in one piece; null: they have to be walked
  std::unique_ptr<std::byte[]> gathered_;  // owns bytes_ if they did not lie in one piece
  std::uint64_t hash_ = 0;
  bool canonical_;
};

// Open addressing over nodes: what does not depend on the value type. Linear probing over (hash,
// node) pairs, at most 3/4 full; deletion shifts back, so there are no tombstones.
class TENSORKEY_EXPORT Table {
 public:
  Table(const Layout& layout, const TableOptions& options) noexcept;
  Table(Table&& other) noexcept;
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  ~Table();
  void swap(Table& other) noexcept;

  [[nodiscard]] Node* find(const Probe& probe) const;
  // The element with the same snapshot as an element of another table.
  [[nodiscard]] Node* find_same(const Node& other) const noexcept;

  // Insertion: make_node copies the key and makes room, so that link cannot fail; between the two
  // the caller constructs the value at node + layout.offset and sets node->key, or calls discard.
  // REQUIRES: the key is absent. The result's view is of the snapshot, for the value to hold.
  struct Fresh {
    Node* node;
    TensorView key;
  };
  [[nodiscard]] Fresh make_node(const Probe& probe);
  [[nodiscard]] Fresh make_node(const Node& other);
  void link(Node* node) noexcept;
  void discard(Node* node) noexcept;

  Node* erase(Node* node) noexcept;  // the node after it
  void clear() noexcept;
  void reserve(std::size_t count);

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] Node* first() const noexcept { return first_; }
  [[nodiscard]] Node* last() const noexcept { return last_; }
  [[nodiscard]] const TableOptions& options() const noexcept { return options_; }

 private:
  struct Slot {
    std::uint64_t hash;
    Node* node;  // null: free
  };
  void place(Node* node) noexcept;
  void grow(std::size_t slots);
  [[nodiscard]] std::byte* allocate(const TensorView& view, std::size_t size, Fresh& fresh);
  [[nodiscard]] std::uint64_t slot_hash(std::uint64_t hash) const noexcept {
    return hash & options_.hash_mask;
  }

  const Layout* layout_;
  TableOptions options_;
  std::unique_ptr<Slot[]> slots_;
  std::size_t slot_count_ = 0;  // 0 or a power of two
  std::size_t size_ = 0;
  Node* first_ = nullptr;
  Node* last_ = nullptr;
};

[[noreturn]] TENSORKEY_EXPORT void throw_not_found(const TensorView& key, std::string_view where);

template <class Value>
struct Element {
  static constexpr std::size_t kOffset =
      (sizeof(Node) + alignof(Value) - 1) & ~(alignof(Value) - 1);
  static Value* get(Node* node) noexcept {
    return std::launder(reinterpret_cast<Value*>(reinterpret_cast<std::byte*>(node) + kOffset));
  }
  static void destroy(Node* node) noexcept { get(node)->~Value(); }
  static constexpr Layout kLayout{kOffset, sizeof(Value), alignof(Value), &destroy};
};

// Forward iterator in the order of insertion. Value is const-qualified for a const_iterator.
template <class Value>
class Iterator {
 public:
  using iterator_category = std::forward_iterator_tag;
  using value_type = std::remove_const_t<Value>;
  using difference_type = std::ptrdiff_t;
  using pointer = Value*;
  using reference = Value&;

  Iterator() = default;
  explicit Iterator(Node* node) noexcept : node_(node) {}
  // Implicit, as iterator converts to const_iterator in the standard library.
  template <class Other>
  requires(std::is_const_v<Value>&& std::is_same_v<Other, value_type>)
      Iterator(const Iterator<Other>& other)
  noexcept : node_(other.node()) {}

  reference operator*() const noexcept { return *Element<value_type>::get(node_); }
  pointer operator->() const noexcept { return Element<value_type>::get(node_); }
  Iterator& operator++() noexcept {
    node_ = node_->next;
    return *this;
  }
  Iterator operator++(int) noexcept {
    const Iterator before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(const Iterator&, const Iterator&) = default;
  [[nodiscard]] Node* node() const noexcept { return node_; }

 private:
  Node* node_ = nullptr;
};

// What the map and the set share.
template <class Value>
class Container {
 public:
  using key_type = TensorView;
  using value_type = Value;
  using size_type = std::size_t;
  using difference_type = std::ptrdiff_t;
  using const_iterator = Iterator<const Value>;
  // The elements of a set are its keys: they cannot be assigned to.
  using iterator =
      std::conditional_t<std::is_same_v<Value, TensorView>, const_iterator, Iterator<Value>>;
  using reference = typename iterator::reference;
  using const_reference = const Value&;

  [[nodiscard]] iterator begin() noexcept { return iterator(table_.first()); }
  [[nodiscard]] iterator end() noexcept { return iterator(); }
  [[nodiscard]] const_iterator begin() const noexcept { return const_iterator(table_.first()); }
  [[nodiscard]] const_iterator end() const noexcept { return const_iterator(); }
  [[nodiscard]] const_iterator cbegin() const noexcept { return begin(); }
  [[nodiscard]] const_iterator cend() const noexcept { return end(); }

  [[nodiscard]] std::size_t size() const noexcept { return table_.size(); }
  [[nodiscard]] bool empty() const noexcept { return size() == 0; }
  [[nodiscard]] bool canonical() const noexcept { return table_.options().canonical; }

  [[nodiscard]] iterator find(const TensorView& key) { return find(probe(key, "find")); }
  [[nodiscard]] const_iterator find(const TensorView& key) const {
    return find(probe(key, "find"));
  }
  [[nodiscard]] bool contains(const TensorView& key) const {
    return table_.find(probe(key, "contains")) != nullptr;
  }
  [[nodiscard]] std::size_t count(const TensorView& key) const { return contains(key) ? 1 : 0; }

  // How many elements were erased: 0 or 1.
  std::size_t erase(const TensorView& key) {
    Node* const node = table_.find(probe(key, "erase"));
    if (node != nullptr) table_.erase(node);
    return node != nullptr ? 1 : 0;
  }
  iterator erase(const_iterator position) noexcept {
    return iterator(table_.erase(position.node()));
  }
  iterator erase(iterator position) noexcept requires(!std::is_same_v<iterator, const_iterator>) {
    return iterator(table_.erase(position.node()));
  }

  void clear() noexcept { table_.clear(); }
  void reserve(std::size_t count) { table_.reserve(count); }

  // For callers inside the library that hash at one moment and look up at another. The probe was
  // made with this container's `canonical`.
  [[nodiscard]] Probe probe(const TensorView& key, std::string_view where) const {
    return Probe(key, canonical(), where);
  }
  [[nodiscard]] iterator find(const Probe& probe) { return iterator(table_.find(probe)); }
  [[nodiscard]] const_iterator find(const Probe& probe) const {
    return const_iterator(table_.find(probe));
  }
  // The element with the same snapshot as an element of another container.
  [[nodiscard]] iterator find_same(const_iterator other) noexcept {
    return iterator(table_.find_same(*other.node()));
  }
  [[nodiscard]] const_iterator find_same(const_iterator other) const noexcept {
    return const_iterator(table_.find_same(*other.node()));
  }
  [[nodiscard]] const_iterator last() const noexcept { return const_iterator(table_.last()); }

 protected:
  explicit Container(const TableOptions& options) noexcept
      : table_(Element<Value>::kLayout, options) {}
  Container(Container&&) noexcept = default;
  ~Container() = default;

  // Constructs the value from (the snapshot's view, args...) and links it: all or nothing.
  template <class Make>
  iterator link(Table::Fresh fresh, Make&& make) {
    Value* value = nullptr;
    try {
      value = make(static_cast<void*>(Element<Value>::get(fresh.node)), fresh.key);
    } catch (...) {
      table_.discard(fresh.node);
      throw;
    }
    if constexpr (std::is_same_v<Value, TensorView>) {
      fresh.node->key = value;
    } else {
      fresh.node->key = &value->first;
    }
    table_.link(fresh.node);
    return iterator(fresh.node);
  }

  Table table_;
};

}  // namespace internal

template <class V>
class TensorKeyMap : public internal::Container<std::pair<const TensorView, V>> {
  using Base = internal::Container<std::pair<const TensorView, V>>;
  using Base::table_;

 public:
  using mapped_type = V;
  using typename Base::const_iterator;
  using typename Base::iterator;
  using typename Base::value_type;

  TensorKeyMap() noexcept : TensorKeyMap(MapOptions{}) {}
  explicit TensorKeyMap(const MapOptions& options) noexcept
      : Base(internal::TableOptions{.canonical = options.canonical}) {}
  explicit TensorKeyMap(const internal::TableOptions& options) noexcept : Base(options) {}
  // As in the standard library, the first of several equal keys counts.
  TensorKeyMap(std::initializer_list<value_type> items, const MapOptions& options = {})
      : TensorKeyMap(options) {
    insert(items.begin(), items.end());
  }
  TensorKeyMap(const TensorKeyMap& other) : TensorKeyMap(other.table_.options()) {
    table_.reserve(other.size());
    for (auto it = other.begin(); it != other.end(); ++it) {
      construct(table_.make_node(*it.node()), it->second);
    }
  }
  TensorKeyMap(TensorKeyMap&&) noexcept = default;
  TensorKeyMap& operator=(TensorKeyMap other) noexcept {
    swap(other);
    return *this;
  }
  ~TensorKeyMap() = default;
  void swap(TensorKeyMap& other) noexcept { table_.swap(other.table_); }
  friend void swap(TensorKeyMap& a, TensorKeyMap& b) noexcept { a.swap(b); }

  [[nodiscard]] V& at(const TensorView& key) { return *found(this->find(key), key); }
  [[nodiscard]] const V& at(const TensorView& key) const { return *found(this->find(key), key); }
  V& operator[](const TensorView& key) { return try_emplace(key).first->second; }

  // args are left alone if the key is present.
  template <class... Args>
  std::pair<iterator, bool> try_emplace(const TensorView& key, Args&&... args) {
    return try_emplace(this->probe(key, "try_emplace"), std::forward<Args>(args)...);
  }
  template <class... Args>
  std::pair<iterator, bool> emplace(const TensorView& key, Args&&... args) {
    return try_emplace(key, std::forward<Args>(args)...);
  }
  std::pair<iterator, bool> insert(const value_type& item) {
    return try_emplace(item.first, item.second);
  }
  std::pair<iterator, bool> insert(value_type&& item) {
    return try_emplace(item.first, std::move(item.second));
  }
  // Each element by itself: what was inserted before an exception stays.
  template <class Input>
  void insert(Input begin, Input end) {
    for (; begin != end; ++begin) insert(*begin);
  }
  template <class M>
  std::pair<iterator, bool> insert_or_assign(const TensorView& key, M&& value) {
    const auto result = try_emplace(this->probe(key, "insert_or_assign"), std::forward<M>(value));
    // try_emplace left `value` alone if it did not insert.
    if (!result.second) result.first->second = std::forward<M>(value);
    return result;
  }

  // As Container::find of a probe.
  template <class... Args>
  std::pair<iterator, bool> try_emplace(const internal::Probe& probe, Args&&... args) {
    if (internal::Node* const node = table_.find(probe)) return {iterator(node), false};
    return {construct(table_.make_node(probe), std::forward<Args>(args)...), true};
  }

  // The same keys with equal values, in any order. Snapshots are compared, so -0.0 and 0.0 differ
  // here even if one of the maps is canonical.
  friend bool operator==(const TensorKeyMap& a, const TensorKeyMap& b) {
    if (a.size() != b.size()) return false;
    for (auto it = a.begin(); it != a.end(); ++it) {
      const auto same = b.find_same(it);
      if (same == b.end() || !(same->second == it->second)) return false;
    }
    return true;
  }

 private:
  template <class... Args>
  iterator construct(internal::Table::Fresh fresh, Args&&... args) {
    return this->link(fresh, [&](void* place, const TensorView& key) {
      return ::new (place) value_type(std::piecewise_construct, std::forward_as_tuple(key),
                                      std::forward_as_tuple(std::forward<Args>(args)...));
    });
  }
  template <class It>
  static auto found(It it, const TensorView& key) -> decltype(&it->second) {
    if (it == It()) internal::throw_not_found(key, "at");
    return &it->second;
  }
};

class TensorKeySet : public internal::Container<TensorView> {
 public:
  TensorKeySet() noexcept : TensorKeySet(MapOptions{}) {}
  explicit TensorKeySet(const MapOptions& options) noexcept
      : Container(internal::TableOptions{.canonical = options.canonical}) {}
  explicit TensorKeySet(const internal::TableOptions& options) noexcept : Container(options) {}
  TensorKeySet(std::initializer_list<TensorView> keys, const MapOptions& options = {})
      : TensorKeySet(options) {
    insert(keys.begin(), keys.end());
  }
  TensorKeySet(const TensorKeySet& other) : TensorKeySet(other.table_.options()) {
    table_.reserve(other.size());
    for (auto it = other.begin(); it != other.end(); ++it) construct(table_.make_node(*it.node()));
  }
  TensorKeySet(TensorKeySet&&) noexcept = default;
  TensorKeySet& operator=(TensorKeySet other) noexcept {
    swap(other);
    return *this;
  }
  ~TensorKeySet() = default;
  void swap(TensorKeySet& other) noexcept { table_.swap(other.table_); }
  friend void swap(TensorKeySet& a, TensorKeySet& b) noexcept { a.swap(b); }

  std::pair<iterator, bool> insert(const TensorView& key) { return insert(probe(key, "insert")); }
  std::pair<iterator, bool> emplace(const TensorView& key) { return insert(key); }
  // Each key by itself: what was inserted before an exception stays.
  template <class Input>
  void insert(Input begin, Input end) {
    for (; begin != end; ++begin) insert(*begin);
  }
  // As Container::find of a probe.
  std::pair<iterator, bool> insert(const internal::Probe& probe) {
    if (internal::Node* const node = table_.find(probe)) return {iterator(node), false};
    return {construct(table_.make_node(probe)), true};
  }

  // The same keys in any order; snapshots are compared.
  friend bool operator==(const TensorKeySet& a, const TensorKeySet& b) {
    if (a.size() != b.size()) return false;
    for (auto it = a.begin(); it != a.end(); ++it) {
      if (b.find_same(it) == b.end()) return false;
    }
    return true;
  }

 private:
  iterator construct(internal::Table::Fresh fresh) {
    return link(fresh,
                [](void* place, const TensorView& key) { return ::new (place) TensorView(key); });
  }
};

// Erases what the predicate accepts (called with an element); returns how many were erased. If the
// predicate throws, what it had accepted before is gone.
template <class Value, class Predicate>
std::size_t erase_if(internal::Container<Value>& container, Predicate predicate) {
  const std::size_t before = container.size();
  for (auto it = container.begin(); it != container.end();) {
    if (predicate(std::as_const(*it))) {
      it = container.erase(it);
    } else {
      ++it;
    }
  }
  return before - container.size();
}

}  // namespace tensorkey
