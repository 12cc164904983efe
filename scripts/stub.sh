#!/usr/bin/env bash
# The generated stub _core.pyi is the typed face of the C++ module. A reviewed copy of it lies in
# python/tests, so that a change of the interface shows in a diff.
#
#   scripts/stub.sh            takes the built stub as the reviewed copy
#   scripts/stub.sh --check    fails, with the difference, when they differ
set -euo pipefail
cd "$(dirname "$0")/.."

reviewed=python/tests/_core.pyi.ref
built=$(.venv/bin/python -I -c 'import importlib.util as u; print(u.find_spec("tensorkey").submodule_search_locations[0])')/_core.pyi

if [ "${1:-}" != --check ]; then
  cp "$built" "$reviewed"
elif ! diff -u "$reviewed" "$built"; then
  echo "The interface of tensorkey._core changed. If that is intended: scripts/stub.sh" >&2
  exit 1
fi
