#!/usr/bin/env bash
# clang-tidy over the library's own sources, with one compile database for C++ and one for Python.
# A file is skipped when it, all headers, .clang-tidy and the database are what they were when it
# last passed.
#
# Left out: tests, whose macros expand to what the checks forbid, and files that Highway compiles
# once for each instruction set (HWY_TARGET_INCLUDE): the analyser would walk every copy.
set -euo pipefail
cd "$(dirname "$0")/.."

cmake --preset dev > build/dev-configure.log || { cat build/dev-configure.log >&2; exit 1; }
clang_tidy=.venv/bin/clang-tidy
passed=build/tidy
mkdir -p "$passed"

common=$(cat .clang-tidy include/tensorkey/*.h $(find src python/src -name '*.h' | sort) |
  cat - <("$clang_tidy" --version) CMakeLists.txt cmake/*.cmake | sha256sum)

# tidy FILE DATABASE
tidy() {
  local stamp
  stamp=$passed/$(cat "$1" - <<< "$common$1" | sha256sum | cut -c1-32)
  if [ -e "$stamp" ]; then return; fi
  echo "$1"
  "$clang_tidy" --quiet -p "$2" "$1" 2> >(
    grep -v 'warnings\?.* generated\.$' >&2) && touch "$stamp"
}
export -f tidy
export clang_tidy passed common

{
  grep -L 'define HWY_TARGET_INCLUDE' $(find src -name '*.cc' ! -name '*_test.cc' | sort) |
    sed 's/$/ build\/dev/'
  find python/src -name '*.cc' | sort | sed 's/$/ build\/python/'
} | xargs -P "$(nproc)" -L 1 bash -c 'tidy "$0" "$1"'
