#include "xla_ffi_call.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <numeric>
#include <random>
#include <unordered_map>
#include <utility>

#include <tensorkey/canonical.h>
#include <tensorkey/error.h>

#include "errors.h"

namespace tensorkey::python::xla {
namespace {

constexpr std::size_t kMostOpen = 256;  // a program that was stopped never delivers
constexpr std::size_t kMostTold = 32;

void write(std::span<std::int32_t> to, std::span<const std::int64_t> values, std::int32_t rest) {
  std::ranges::transform(values, to.begin(), [](std::int64_t v) { return static_cast<int>(v); });
  std::ranges::fill(to.subspan(values.size()), rest);
}

// REQUIRES: room as the program was traced for.
Found plan_of(const LayerTask& task, const Room& room) {
  write(room.positions, task.positions(), 0);
  write(room.targets, task.targets(), static_cast<std::int32_t>(task.rows()));
  write(room.sources, task.sources(), 0);
  if (task.chunks() > 0 || task.whole() != LayerTask::Whole::kNot) {  // else all are read
    for (const std::span<std::byte> table : room.tables) std::ranges::fill(table, std::byte{0});
  }
  task.read(room.tables);
  return {.whole = static_cast<std::int32_t>(task.whole()),
          .chunks = static_cast<std::int32_t>(task.chunks())};
}

}  // namespace

Found aside(const Room& room) {
  std::ranges::fill(room.positions, 0);
  std::ranges::fill(room.targets, static_cast<std::int32_t>(room.sources.size()));
  std::iota(room.sources.begin(), room.sources.end(), 0);
  for (const std::span<std::byte> table : room.tables) std::ranges::fill(table, std::byte{0});
  return {.whole = static_cast<std::int32_t>(LayerTask::Whole::kAnswer)};
}

Call::Call(std::shared_ptr<Engine> engine, CallOptions options, std::unique_ptr<Listener> listener)
    : engine_(std::move(engine)), options_(std::move(options)), listener_(std::move(listener)) {}

std::optional<Digest> Call::weights(std::span<const TensorView> tensors) const noexcept {
  try {
    return std::get<1>(options_.weights)->digest(tensors);
  } catch (const std::exception& error) {
    engine_->counters.failed(class_name(error));
    return std::nullopt;
  }
}

Found Call::look_up(std::span<const TensorView> members, const std::optional<Digest>& weights,
                    const Room& room) {
  try {
    const Digest* const fixed = std::get_if<Digest>(&options_.weights);
    if (fixed == nullptr && !weights) return aside(room);
    const Digest& known = fixed != nullptr ? *fixed : *weights;
    tell(known);
    LayerTask task = begin(members, known);
    if (task.rows() != room.sources.size() || task.positions().size() > room.positions.size() ||
        room.targets.size() != room.positions.size()) {
      throw Error(ErrorCode::kInternal, "[xla::Call] more to run than the program has room for");
    }
    Found found = plan_of(task, room);
    const bool more = found.chunks > 0 || task.whole() == LayerTask::Whole::kCompare;
    if (more) found.ticket = keep(std::move(task));
    return found;
  } catch (const LayerBypassed& reason) {
    engine_->counters.bypassed(reason.what());
  } catch (const std::exception& error) {
    engine_->counters.failed(class_name(error));
  }
  return aside(room);
}

LayerTask Call::begin(std::span<const TensorView> members, const Digest& weights) {
  std::vector<TupleMember> named;
  named.reserve(members.size());
  for (std::size_t i = 0; i < members.size(); ++i) {
    named.push_back({.path = options_.paths[i], .view = members[i]});
  }
  LayerCall call{.members = named, .about = options_.about, .weights = weights};
  if (options_.secret) call.secret = *options_.secret;
  return engine_->core.begin(call, {.chunk = options_.chunk, .leaves = options_.leaves});
}

void Call::tell(const Digest& weights) {
  {
    const std::lock_guard lock(mutex_);
    if (std::ranges::find(told_, weights) != told_.end()) return;
    told_.push_back(weights);
    if (told_.size() > kMostTold) told_.pop_front();
  }
  listener_->looked_up(weights);
}

std::int32_t Call::keep(LayerTask task) {
  std::map<std::int32_t, Open>::node_type dropped;  // after the lock
  const std::lock_guard lock(mutex_);
  if (open_.size() >= kMostOpen) dropped = open_.extract(open_.begin());
  do {
    last_ticket_ = last_ticket_ % std::numeric_limits<std::int32_t>::max() + 1;
  } while (open_.contains(last_ticket_));
  open_.emplace(last_ticket_, Open{std::move(task), Clock::now()});
  return last_ticket_;
}

void Call::deliver(std::int32_t ticket, std::int32_t chunk, std::span<const TensorView> outputs) {
  if (ticket == 0) return;  // of no call
  const Clock::time_point now = Clock::now();
  std::map<std::int32_t, Open>::node_type call;  // nobody else's meanwhile
  {
    const std::lock_guard lock(mutex_);
    call = open_.extract(ticket);
  }
  if (call.empty()) {  // too many calls were begun since
    engine_->counters.failed("LostTicket");
    return;
  }
  auto& [task, last] = call.mapped();
  try {
    const std::chrono::duration<double> taken = now - last;
    if (chunk < 0) {
      task.deliver_whole(outputs, taken.count());
    } else {
      task.deliver(static_cast<std::size_t>(chunk), outputs, taken.count());
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kUnsupported) throw;
    engine_->counters.failed(class_name(error));
    return;
  } catch (const std::exception& error) {
    engine_->counters.failed(class_name(error));
    return;
  }
  if (static_cast<std::size_t>(chunk) + 1 == task.chunks()) {
    if (task.deviation().rows > 0) listener_->deviated(task.deviation());
    return;
  }
  last = Clock::now();
  const std::lock_guard lock(mutex_);
  open_.insert(std::move(call));
}

std::optional<Digest> Call::meaning() const {
  using namespace canonical;
  if (options_.secret) return std::nullopt;
  std::string encoded = bytes(options_.about) + integer(options_.chunk);
  for (const std::string& path : options_.paths) encoded += text(path);
  for (const LeafShape& leaf : options_.leaves) {
    encoded += text(to_string(leaf.dtype));
    for (const std::int64_t dim : leaf.shape) encoded += integer(dim);
  }
  const Digest* const fixed = std::get_if<Digest>(&options_.weights);
  encoded += bytes(fixed != nullptr ? *fixed : std::get<1>(options_.weights)->meaning());
  return blake3(std::as_bytes(std::span(encoded)));
}

namespace {

// Never destroyed: programs may still run when the process ends.
struct Registry {
  static Registry& instance() {
    static Registry* const registry = new Registry;
    return *registry;
  }
  internal::ForkMutex mutex{};
  std::unordered_map<std::int64_t, std::weak_ptr<Call>> calls;
};

std::int64_t random_number() {
  std::random_device device;
  return static_cast<std::int64_t>(std::uint64_t{device()} << 32 | device());
}

}  // namespace

std::int64_t enter(const std::shared_ptr<Call>& call) {
  const std::optional<Digest> meaning = call->meaning();
  std::int64_t handle = random_number();  // of one with a secret: never another tenant's
  if (meaning) std::memcpy(&handle, meaning->data(), sizeof handle);
  Registry& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  while (handle == 0 || registry.calls.contains(handle)) {
    handle = static_cast<std::int64_t>(static_cast<std::uint64_t>(handle) + 1);
  }
  registry.calls.emplace(handle, call);
  return handle;
}

void leave(std::int64_t handle) noexcept {
  Registry& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  registry.calls.erase(handle);
}

std::shared_ptr<Call> find(std::int64_t handle) {
  Registry& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  const auto found = registry.calls.find(handle);
  return found == registry.calls.end() ? nullptr : found->second.lock();
}

}  // namespace tensorkey::python::xla
