#!/usr/bin/env bash
# All tests. Each runner prints its usual summary. Needs what scripts/setup.sh test makes ready.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/steps.sh

# cpp PRESET TARGETS [CTEST-OPTION...]: configure, build and run the C++ tests.
cpp() {
  local log=build/$1-configure.log
  cmake --preset "$1" > "$log" 2>&1 || { cat "$log"; return 1; }
  # shellcheck disable=SC2086
  cmake --build --preset "$1" --parallel "$(nproc)" --target $2 -- --quiet &&
    ctest --preset "$1" --parallel "$(nproc)" --no-tests=error "${@:3}"
}

# A process a core.
pytest() {
  .venv/bin/python -m pytest -p no:cacheprovider --numprocesses "$(nproc)" --dist worksteal "$@"
}

# An import of Keras takes half a minute where bytecode is not kept, as containers often ask for.
bytecode() {
  env -u PYTHONDONTWRITEBYTECODE KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 .venv/bin/python \
    -c 'import equinox, flax, hypothesis, keras, torch._dynamo, torch.onnx, transformers' 2> build/bytecode.log ||
    { cat build/bytecode.log; return 1; }
}

# Keras takes its backend once for a process.
keras() { KERAS_BACKEND=$1 pytest python/tests/frontends/test_keras*.py; }

# GCC 12's AddressSanitizer leaves its allocator locked in the child of a fork: release runs those.
step "C++ with AddressSanitizer and UBSan" cpp asan all -E Fork
step "C++ threads with ThreadSanitizer" cpp tsan thread_tests -R 'Thread|Concurren'
step "C++ as it is shipped, each public header alone, consumers" \
  cpp release "all all_verify_interface_header_sets"
step "LibTorch" scripts/libtorch.sh
step "Bytecode of the frameworks" bytecode
step "Python" pytest --ignore-glob='*/test_keras*'
step "Keras on TensorFlow" keras tensorflow
step "Keras on PyTorch" keras torch
step "Keras on JAX" keras jax
finish tests
