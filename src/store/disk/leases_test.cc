#include "store/disk/leases.h"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <tensorkey/digest.h>

namespace tensorkey::internal {
namespace {

namespace fs = std::filesystem;

Key key_of(std::uint64_t id) { return Key(blake3(std::as_bytes(std::span(&id, 1)))); }

std::vector<Key> keys_of(std::uint64_t begin, std::uint64_t end) {
  std::vector<Key> keys;
  for (std::uint64_t id = begin; id < end; ++id) keys.push_back(key_of(id));
  return keys;
}

bool acquire(Leases& leases, const Key& key) {
  std::uint8_t mine = 7;
  leases.acquire({&key, 1}, {&mine, 1});
  EXPECT_LE(mine, 1);
  return mine == 1;
}

void release(Leases& leases, const Key& key) { leases.release({&key, 1}); }

// A process that does its work, tells so, and then waits to be killed.
class Child {
 public:
  explicit Child(const std::function<bool()>& work) {
    std::array<int, 2> ends{};
    if (::pipe(ends.data()) != 0) throw std::runtime_error("no pipe");
    Descriptor told(ends[0]);
    Descriptor tell(ends[1]);
    id_ = ::fork();
    if (id_ == 0) {
      const char good = work() ? 'y' : 'n';
      (void)!::write(tell.get(), &good, 1);
      for (;;) ::pause();
    }
    tell.reset();
    char answer = '?';
    good_ = ::read(told.get(), &answer, 1) == 1 && answer == 'y';
  }
  ~Child() { kill(); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  [[nodiscard]] bool good() const { return good_; }
  void kill() {
    if (id_ <= 0) return;
    ::kill(id_, SIGKILL);
    ::waitpid(id_, nullptr, 0);
    id_ = 0;
  }

 private:
  pid_t id_ = 0;
  bool good_ = false;
};

class LeasesTest : public ::testing::Test {
 protected:
  LeasesTest() {
    std::string name = (fs::temp_directory_path() / "tensorkey_leases_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary directory");
    base_ = name;
    directory_ = std::make_unique<Directory>(DirectoryOptions{.path = base_});
  }
  ~LeasesTest() override { fs::remove_all(base_); }

  std::string base_;
  std::unique_ptr<Directory> directory_;
};

TEST_F(LeasesTest, TwoObjectsExcludeEachOther) {
  Leases one(*directory_);
  Leases two(*directory_);
  EXPECT_TRUE(acquire(one, key_of(1)));
  EXPECT_FALSE(acquire(two, key_of(1)));
  EXPECT_TRUE(acquire(two, key_of(2)));
  EXPECT_FALSE(acquire(one, key_of(2)));
  release(two, key_of(1));  // not its own
  EXPECT_FALSE(acquire(two, key_of(1)));
  release(one, key_of(1));
  EXPECT_TRUE(acquire(two, key_of(1)));
}

TEST_F(LeasesTest, ABatchGetsWhatIsFree) {
  Leases one(*directory_);
  Leases two(*directory_);
  for (const std::uint64_t id : {3U, 5U}) EXPECT_TRUE(acquire(one, key_of(id)));
  const std::vector<Key> keys = keys_of(1, 7);
  std::vector<std::uint8_t> mine(keys.size());
  two.acquire(keys, mine);
  EXPECT_EQ(mine, (std::vector<std::uint8_t>{1, 1, 0, 1, 0, 1}));
  two.release(keys);
  one.acquire(keys, mine);
  EXPECT_EQ(mine, std::vector<std::uint8_t>(6, 1));
}

TEST_F(LeasesTest, AsManyAsThereMayBe) {
  Leases one(*directory_);
  Leases two(*directory_);
  const std::vector<Key> keys = keys_of(0, Leases::kMost + 10);
  std::vector<std::uint8_t> mine(keys.size(), 1);
  std::vector<std::uint8_t> expected(keys.size(), 0);
  std::fill_n(expected.begin(), Leases::kMost, 1);
  one.acquire(keys, mine);
  EXPECT_EQ(mine, expected);
  two.acquire(std::span(keys).first(Leases::kMost), mine);
  EXPECT_EQ(mine, std::vector<std::uint8_t>(keys.size(), 0));
  one.release(keys);
  two.acquire(keys, mine);
  EXPECT_EQ(mine, expected);
}

TEST_F(LeasesTest, AKeyOfAllOnesHasAPlace) {
  Digest bytes;
  bytes.fill(0xff);
  Leases one(*directory_);
  Leases two(*directory_);
  EXPECT_TRUE(acquire(one, Key(bytes)));
  EXPECT_FALSE(acquire(two, Key(bytes)));
  EXPECT_TRUE(acquire(two, Key{}));
  EXPECT_TRUE(two.lock_index({}));
}

TEST_F(LeasesTest, Presence) {
  Leases one(*directory_);
  EXPECT_TRUE(one.alone());
  {
    Leases two(*directory_);
    EXPECT_FALSE(one.alone());
    EXPECT_FALSE(two.alone());
  }
  EXPECT_TRUE(one.alone());
  Child other([&] {
    const Directory directory({.path = base_});
    return !Leases(directory).alone();
  });
  EXPECT_TRUE(other.good());
}

TEST_F(LeasesTest, AKilledHolderFreesAtOnce) {
  Leases leases(*directory_);
  std::unique_ptr<Leases> held;
  Child holder([&] {
    held = std::make_unique<Leases>(*directory_);
    return acquire(*held, key_of(1)) && held->lock_index({}) && !held->alone();
  });
  ASSERT_TRUE(holder.good());
  EXPECT_FALSE(acquire(leases, key_of(1)));
  EXPECT_FALSE(leases.lock_index(std::chrono::milliseconds(10)));
  EXPECT_FALSE(leases.alone());
  holder.kill();
  EXPECT_TRUE(acquire(leases, key_of(1)));
  EXPECT_TRUE(leases.lock_index({}));
  EXPECT_TRUE(leases.alone());
}

TEST_F(LeasesTest, AForkedChildHasNoneAndFreesNone) {
  Leases leases(*directory_);
  Leases other(*directory_);
  ASSERT_TRUE(acquire(leases, key_of(1)));
  ASSERT_TRUE(leases.lock_index({}));
  leases.distrust(key_of(9));
  Child child([&] {
    const bool none = !leases.distrusted(key_of(9)) && !acquire(leases, key_of(1)) &&
                      !leases.lock_index({}) && !leases.alone();
    release(leases, key_of(1));
    leases.unlock_index();
    return none && acquire(leases, key_of(2));
  });
  EXPECT_TRUE(child.good());
  EXPECT_TRUE(leases.distrusted(key_of(9)));
  EXPECT_FALSE(acquire(other, key_of(1)));
  EXPECT_FALSE(other.lock_index({}));
  EXPECT_FALSE(acquire(leases, key_of(2)));
  child.kill();
  EXPECT_TRUE(acquire(leases, key_of(2)));
}

// A forked child shares the descriptions of its parent, and so would keep its locks.
TEST_F(LeasesTest, ASleepingChildKeepsNoneOfAKilledParent) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  Descriptor told(ends[0]);
  Descriptor tell(ends[1]);
  std::unique_ptr<Leases> held;
  Child parent([&] {
    held = std::make_unique<Leases>(*directory_);
    const bool good = acquire(*held, key_of(1)) && held->lock_index({});
    if (::fork() == 0) {
      const pid_t self = ::getpid();  // told by the sleeper: it has come out of fork()
      (void)!::write(tell.get(), &self, sizeof self);
      for (;;) ::pause();
    }
    return good;
  });
  ASSERT_TRUE(parent.good());
  pid_t sleeper = 0;
  ASSERT_EQ(::read(told.get(), &sleeper, sizeof sleeper), ssize_t{sizeof sleeper});
  Leases leases(*directory_);
  EXPECT_FALSE(acquire(leases, key_of(1)));
  parent.kill();
  EXPECT_EQ(::kill(sleeper, 0), 0);
  EXPECT_TRUE(acquire(leases, key_of(1)));
  EXPECT_TRUE(leases.lock_index({}));
  EXPECT_TRUE(leases.alone());
  ::kill(sleeper, SIGKILL);
}

TEST_F(LeasesTest, DistrustEndsWhenTheLeaseWasFree) {
  Leases one(*directory_);
  Leases two(*directory_);
  ASSERT_TRUE(acquire(one, key_of(1)));
  EXPECT_FALSE(two.distrusted(key_of(1)));
  two.distrust(key_of(1));
  EXPECT_TRUE(two.distrusted(key_of(1)));
  EXPECT_FALSE(two.distrusted(key_of(2)));
  EXPECT_FALSE(one.distrusted(key_of(1)));
  EXPECT_FALSE(acquire(two, key_of(1)));
  EXPECT_TRUE(two.distrusted(key_of(1)));
  release(one, key_of(1));
  EXPECT_TRUE(acquire(two, key_of(1)));
  EXPECT_FALSE(two.distrusted(key_of(1)));
}

TEST_F(LeasesTest, DistrustIsBounded) {
  Leases leases(*directory_);
  const auto plain = [](std::uint64_t id) {
    Digest bytes{};
    std::memcpy(bytes.data(), &id, sizeof id);
    return Key(bytes);
  };
  constexpr std::uint64_t kMany = 200'000;
  for (std::uint64_t id = 0; id < kMany; ++id) leases.distrust(plain(id));
  EXPECT_TRUE(leases.distrusted(plain(kMany - 1)));
  EXPECT_FALSE(leases.distrusted(plain(0)));
}

TEST_F(LeasesTest, WithoutALockFileNobodyIsAlone) {
  ASSERT_TRUE(directory_->remove(kLockFile));
  Leases leases(*directory_);
  EXPECT_FALSE(leases.alone());
  EXPECT_FALSE(acquire(leases, key_of(1)));
  EXPECT_FALSE(leases.lock_index(std::chrono::milliseconds(5)));
  release(leases, key_of(1));
  leases.unlock_index();
  ASSERT_TRUE(directory_->open(kLockFile, O_RDWR | O_CREAT));
  EXPECT_TRUE(leases.alone());
  EXPECT_TRUE(acquire(leases, key_of(1)));
}

TEST_F(LeasesTest, TheIndexIsLockedByOne) {
  Leases one(*directory_);
  Leases two(*directory_);
  std::atomic<int> most{0};
  std::atomic<int> now{0};
  std::array<std::thread, 4> threads;
  for (std::size_t i = 0; i < threads.size(); ++i) {
    threads[i] = std::thread([&, i] {
      Leases& leases = i % 2 == 0 ? one : two;
      for (int round = 0; round < 10; ++round) {
        ASSERT_TRUE(leases.lock_index(std::chrono::seconds(30)));
        most = std::max(most.load(), ++now);
        std::this_thread::yield();
        --now;
        leases.unlock_index();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
}

TEST_F(LeasesTest, Threads) {
  Leases one(*directory_);
  Leases two(*directory_);
  constexpr std::uint64_t kKeys = 50;
  std::array<std::atomic<int>, kKeys> holders{};
  std::atomic<bool> shared{false};
  std::vector<std::thread> threads;
  // Threads of one object keep to keys of their own: with the other object they meet.
  for (std::uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      Leases& leases = i < 2 ? one : two;
      for (std::uint64_t round = 0; round < 200; ++round) {
        for (std::uint64_t id = i % 2; id < kKeys; id += 2) {
          const Key key = key_of(id);
          if (acquire(leases, key)) {
            if (++holders[id] > 1) shared = true;
            --holders[id];
            release(leases, key);
          } else {
            leases.distrust(key);
          }
          (void)leases.distrusted(key);
        }
        if (leases.alone()) shared = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(shared);
}

}  // namespace
}  // namespace tensorkey::internal
