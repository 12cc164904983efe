// The frontend for LibTorch. One translation unit: the parts are in files by noun.
#include <string>
#include <vector>

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "bench.h"
#include "layer_tests.h"
#include "script_tests.h"
#include "share.h"
#include "view_tests.h"

namespace {
// LibTorch warns of features that the tests only want to see refused.
struct Quiet : c10::WarningHandler {
  void process(const c10::Warning& /*warning*/) override {}
};
}  // namespace

int main(int argc, char** argv) {
  Quiet quiet;
  c10::WarningUtils::set_warning_handler(&quiet);
  if (argc > 1 && std::string(argv[1]) == "share") return share::main({argv + 2, argv + argc});
  if (argc > 1 && std::string(argv[1]) == "bench") return bench::main();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
