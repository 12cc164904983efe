#!/usr/bin/env bash
# The frontend for LibTorch: builds tests/consumers/torch (tests, benchmark, the program of
# docs/frontends/libtorch.md) and examples/server against build/release and the PyTorch of .venv, and
# runs them.
#
#   scripts/libtorch.sh            tests and examples
#   scripts/libtorch.sh --bench    the benchmark
set -euo pipefail
cd "$(dirname "$0")/.."

out=build/libtorch
mkdir -p "$out"
logged() { "$@" > "$out/log" 2>&1 || { cat "$out/log"; return 1; }; }

torch=$(.venv/bin/python -c 'import torch; print(torch.utils.cmake_prefix_path)')
logged cmake --install build/release --prefix "$out/prefix"
build=$out/build flags='-O1 -DNDEBUG'
if [ "${1:-}" = --bench ]; then build=$out/bench flags='-O3 -DNDEBUG'; fi
logged cmake -G Ninja -S tests/consumers/torch -B "$build" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_FLAGS_RELEASE="$flags" \
  -DCMAKE_PREFIX_PATH="$PWD/$out/prefix;$torch" -DPYTHON="$PWD/.venv/bin/python"
cmake --build "$build" --parallel "$(nproc)" -- --quiet
if [ "${1:-}" = --bench ]; then exec "$build/torch_test" bench; fi
ctest --test-dir "$build" --no-tests=error --output-on-failure
