#!/usr/bin/env bash
# The long forms of the disk tier's fault tests, one after the other, with their limits of time: on
# an idle machine. Needs what scripts/setup.sh test makes ready.
#
#   scripts/stress.sh [TEST...]    such as disk_kill_test; all of them by default
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/steps.sh

cmake --preset release > build/release-configure.log
cmake --build --preset release --parallel "$(nproc)" --target fault_tests -- --quiet

tests=("$@")
if ((${#tests[@]} == 0)); then
  tests=(disk_{damage,eio,fault,fork,kill,lease,refuse,stop,threads}_test)
fi
export TENSORKEY_STRESS=1
for test in "${tests[@]}"; do
  step "$test" timeout 1200 "build/release/$test" --gtest_brief=1
done
finish "stress tests"
