// Runs the built program, as a user does.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

namespace {

struct Outcome {
  int status;
  std::string text;  // both streams
};

Outcome run(const std::string& arguments) {
  const std::string command = std::string("'") + TENSORKEY_SIMULATE + "' " + arguments + " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {-1, ""};
  Outcome outcome;
  std::array<char, 4096> part;
  while (const std::size_t count = std::fread(part.data(), 1, part.size(), pipe)) {
    outcome.text.append(part.data(), count);
  }
  outcome.status = WEXITSTATUS(pclose(pipe));
  return outcome;
}

class Program : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "tensorkey_simulate_" +
            testing::UnitTest::GetInstance()->current_test_info()->name();
    std::ofstream file(path_);
    file << "# a trace\nx 100 2\ny 100 1\nx 100 2\nz 100 1\ny 100 1\n";
  }
  void TearDown() override { std::remove(path_.c_str()); }

  std::string path_;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_F(Program, PrintsATable) {
  const Outcome all = run(path_ + " --bytes '200 B'");
  EXPECT_EQ(all.status, 0);
  EXPECT_TRUE(contains(all.text, "5 requests, capacity 200 bytes")) << all.text;
  EXPECT_TRUE(contains(all.text, "tensorkey ")) << all.text;
  // x y x z y: the z takes the place of y under LRU.
  EXPECT_TRUE(contains(all.text, "lru                   20.00%    20.00%    28.57%")) << all.text;
  EXPECT_TRUE(contains(all.text, "belady                40.00%    40.00%    42.86%")) << all.text;
}

TEST_F(Program, PrintsJsonForOnePolicy) {
  const Outcome json = run("--entries 2 --json --policy lru - < " + path_);
  EXPECT_EQ(json.status, 0);
  EXPECT_TRUE(contains(json.text, "\"unit\": \"entries\"")) << json.text;
  EXPECT_TRUE(contains(json.text, "\"hits\": 1, \"hit_ratio\": 0.200000")) << json.text;
  EXPECT_FALSE(contains(json.text, "belady")) << json.text;
}

TEST_F(Program, ExplainsItself) {
  const Outcome help = run("--help");
  EXPECT_EQ(help.status, 0);
  EXPECT_TRUE(contains(help.text, "usage: tensorkey-simulate")) << help.text;
  EXPECT_TRUE(contains(help.text, "w-tinylfu")) << help.text;
}

TEST_F(Program, RefusesMistakes) {
  struct Case {
    std::string arguments;
    std::string message;
  };
  const std::string bad = path_ + "_bad";
  std::ofstream(bad) << "x 100\ny -5\n";
  for (const Case& mistake : {
           Case{"", "no trace was named"},
           Case{path_, "no capacity was given"},
           Case{path_ + " --bytes 0", "--bytes is \"0\""},
           Case{path_ + " --bytes '2 parsecs'", "--bytes is \"2 parsecs\""},
           Case{path_ + " --bytes nan", "--bytes is \"nan\""},
           Case{path_ + " --bytes 1e300GiB", "--bytes is"},
           Case{path_ + " --bytes", "--bytes has no value"},
           Case{path_ + " --entries -3", "--entries is \"-3\""},
           Case{path_ + " --entries 3 --bytes 3", "the capacity is given twice"},
           Case{path_ + " --entries 3 --colour", "no option is called --colour"},
           Case{path_ + " --entries 3 --policy mru", "no policy is called \"mru\""},
           Case{path_ + " " + path_ + " --entries 3", "there are two traces"},
           Case{path_ + ".absent --entries 3", "cannot be opened"},
           Case{bad + " --entries 3", "line 2: the size is \"-5\""},
       }) {
    const Outcome outcome = run(mistake.arguments);
    EXPECT_EQ(outcome.status, 2) << mistake.arguments;
    EXPECT_TRUE(contains(outcome.text, mistake.message)) << outcome.text;
  }
  std::remove(bad.c_str());
}

}  // namespace
