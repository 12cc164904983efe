#include <tensorkey/layer.h>

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <latch>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <tensorkey/error.h>

#include "memo/layer_test_calls.h"

namespace tensorkey {
namespace {

using testing::ask;
using testing::Batch;
using testing::clean;
using testing::Function;
using testing::in_chunks;
using testing::memory;
using testing::Runner;

const Batch& data() {
  static const Batch batch(300, 7, 5);
  return batch;
}

std::vector<std::int64_t> draw(std::mt19937& random, std::size_t most) {
  std::vector<std::int64_t> places(random() % most + 1);
  for (std::int64_t& place : places) place = static_cast<std::int64_t>(random() % 300);
  return places;
}

TEST(LayerThreads, ShareAnEngine) {
  LayerEngine engine(memory(), {.chunk = 32, .verify = 0.05});
  std::barrier start(4);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      start.arrive_and_wait();
      for (int round = 0; round < 60; ++round) {
        const Batch batch(data(), draw(random, 40));
        const LayerCall call{.weights = Digest{static_cast<std::uint8_t>(round % 3)},
                             .pending = t == 3};
        if (ask(engine, batch, testing::several, call).bytes !=
            in_chunks(testing::several, batch, 32)) {
          ++wrong;
        }
        if (t == 3 && round % 7 == 0) engine.confirm();
        if (t == 3 && round % 11 == 0) engine.drop_pending();
        if (t == 2 && round % 20 == 0) engine.clear();
        static_cast<void>(engine.stats());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(engine.stats().deviating, 0U);
  const MemoStats stats = engine.memo().stats();
  EXPECT_EQ(stats.hits + stats.misses, stats.lookups);
}

TEST(LayerThreads, OneProbesAndOneRunsEachRow) {
  LayerEngine engine(memory(), {});
  std::barrier start(4);
  std::atomic<int> runs{0};
  const Function counted = [&](const Batch& x) {
    ++runs;
    return clean(x);
  };
  std::vector<std::thread> threads;
  threads.reserve(4);
  const Batch batch(data(), {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      start.arrive_and_wait();
      EXPECT_EQ(ask(engine, batch, counted).bytes, in_chunks(clean, batch, 32));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(static_cast<std::uint64_t>(runs), engine.stats().probe_runs + 1);
}

// A thread that waits for another's rows gets what the other's layer threw; rows of one that was
// stopped, or that bypasses, are its own to compute.
TEST(LayerThreads, WaitersLearnOfFailuresAndTakeOverWhatWasGivenUp) {
  const Batch batch(data(), {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});
  for (const int kind : {0, 1, 2}) {
    LayerEngine engine(memory(), {.probe = false});
    ask(engine, Batch(data(), {100, 101}), clean, {});
    std::latch running(1);
    std::latch waiting(1);
    std::thread leader([&] {
      const Function stopped = [&](const Batch&) -> testing::Leaves {
        running.count_down();
        waiting.wait();
        if (kind == 0) throw std::range_error("the layer's own");
        if (kind == 1) throw LayerBypassed("out of memory");
        throw LayerAbandoned(std::make_exception_ptr(std::range_error("stopped")));
      };
      EXPECT_ANY_THROW(ask(engine, batch, stopped));
    });
    running.wait();
    class Waiter final : public LayerRunner {
     public:
      Waiter(Runner& inner, std::latch& waiting) : inner_(inner), waiting_(waiting) {}
      std::unique_ptr<LayerOutput> run(std::span<const std::int64_t> positions) override {
        return inner_.run(positions);
      }
      std::vector<std::string> changes() override { return inner_.changes(); }
      void restore() override { inner_.restore(); }
      std::string random_state() override { return inner_.random_state(); }
      void set_random_state(std::string_view state) override { inner_.set_random_state(state); }
      void poll() override {
        if (polls_++ == 0) waiting_.count_down();
      }

     private:
      Runner& inner_;
      std::latch& waiting_;
      int polls_ = 0;
    };
    Runner inner(batch, clean);
    Waiter waiter(inner, waiting);
    const testing::Members members(batch);
    const LayerCall call{.members = members.span()};
    if (kind == 0) {
      EXPECT_THROW(static_cast<void>(engine.answer(call, waiter)), std::range_error);
    } else {
      const LayerAnswer answer = engine.answer(call, waiter);
      EXPECT_EQ(testing::assemble(answer), in_chunks(clean, batch, 1));
      EXPECT_EQ(answer.hits(), 0U);
    }
    leader.join();
    EXPECT_EQ(ask(engine, batch, clean).bytes, in_chunks(clean, batch, 1));
  }
}

// Ctrl-C in a thread that waits for another's probe.
TEST(LayerThreads, WaitingForAProbePolls) {
  LayerEngine engine(memory(), {});
  const Batch batch(data(), {0, 1, 2, 3});
  std::latch running(1);
  std::latch stopped(1);
  std::thread prober([&] {
    bool first = true;
    ask(engine, batch, [&](const Batch& x) {
      if (std::exchange(first, false)) {
        running.count_down();
        stopped.wait();
      }
      return clean(x);
    });
  });
  running.wait();
  class Stopped final : public LayerRunner {
   public:
    std::unique_ptr<LayerOutput> run(std::span<const std::int64_t>) override { return nullptr; }
    std::vector<std::string> changes() override { return {}; }
    void restore() override {}
    std::string random_state() override { return {}; }
    void set_random_state(std::string_view) override {}
    void poll() override { throw std::domain_error("Ctrl-C"); }
  } impatient;
  const testing::Members members(batch);
  EXPECT_THROW(static_cast<void>(engine.answer({.members = members.span()}, impatient)),
               std::domain_error);
  stopped.count_down();
  prober.join();
  EXPECT_EQ(ask(engine, batch, clean).hits, 4U);
}

TEST(LayerThreads, ALayerThatCallsItselfIsNotWaitedFor) {
  LayerEngine engine(memory(), {});
  const Batch batch(data(), {0, 1, 2, 3});
  int bypassed = 0;
  const Function recursive = [&](const Batch& x) {
    try {
      ask(engine, batch, clean);
    } catch (const LayerBypassed&) {
      ++bypassed;
    }
    return clean(x);
  };
  EXPECT_EQ(ask(engine, batch, recursive).bytes, in_chunks(clean, batch, 1));
  EXPECT_GT(bypassed, 0);
}

}  // namespace
}  // namespace tensorkey
