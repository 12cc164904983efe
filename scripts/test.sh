#!/usr/bin/env bash
# All tests, the quickest to fail first. Each runner prints its usual summary; the first failure
# ends the run. Needs what scripts/setup.sh test makes ready.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }
pytest() { .venv/bin/python -m pytest -p no:cacheprovider "$@"; }

# quietly COMMAND...: its output only when it fails.
quietly() {
  local log
  log=$(mktemp)
  if ! "$@" > "$log" 2>&1; then
    cat "$log" >&2
    return 1
  fi
  rm -f "$log"
}

# build PRESET [TARGET...]
build() {
  local preset=$1
  shift
  quietly cmake --preset "$preset"
  cmake --build --preset "$preset" --parallel "$(nproc)" --target all "$@" -- --quiet
}

step "C++ with AddressSanitizer and UBSan"
build asan
ctest --preset asan --parallel "$(nproc)"

step "C++ threads with ThreadSanitizer"
build tsan
ctest --preset tsan --parallel "$(nproc)" --no-tests=error -R 'Thread|Concurren'

step "C++ as it is shipped; each public header compiled alone; consumers"
build release all_verify_interface_header_sets
ctest --preset release --parallel "$(nproc)"

step "Python"
pytest --ignore-glob='*/test_keras*'

# Keras takes its backend once for a process.
for backend in tensorflow torch; do
  step "Keras on $backend"
  KERAS_BACKEND=$backend pytest python/tests/frontends/test_keras*.py
done
