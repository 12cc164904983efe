#!/usr/bin/env bash
# Formats, static analysis and types; warnings are errors. Needs what scripts/setup.sh lint makes ready.
#
#   scripts/lint.sh          checks
#   scripts/lint.sh --fix    rewrites what clang-format and ruff can
set -euo pipefail
cd "$(dirname "$0")/.."

# check TITLE COMMAND...: all of them run, and what failed is told at the end.
failed=()
check() {
  printf '\n== %s\n' "$1"
  "${@:2}" || failed+=("$1")
}
# Tracked and new files alike, never ignored ones.
files() { git ls-files --cached --others --exclude-standard --deduplicate -- "$@" | while read -r f; do
  [ -e "$f" ] && echo "$f"
done; }
# Debian 12's version 14 decides; a newer one formats a few lines differently.
newest_of() { command -v "$1-14" || command -v "$1"; }

clang_format=$(newest_of clang-format)
ruff=.venv/bin/ruff
if [ "${1:-}" = --fix ]; then
  files '*.cc' '*.h' | xargs "$clang_format" -i
  "$ruff" format .
  "$ruff" check --fix .
  exit
fi

format_cpp() { files '*.cc' '*.h' | xargs "$clang_format" --dry-run -Werror; }

check "clang-format" format_cpp
check "ruff check" "$ruff" check .
check "ruff format" "$ruff" format --check .
check "mypy --strict" .venv/bin/python -m mypy --strict -p tensorkey
check "the stub of _core as it was reviewed" scripts/stub.sh --check
check "clang-tidy" scripts/tidy.sh

if ((${#failed[@]})); then
  printf '\nlint failed: %s\n' "${failed[*]}" >&2
  exit 1
fi
printf '\nlint passed\n'
