#!/usr/bin/env bash
# Formats, static analysis and types; warnings are errors. Needs what scripts/setup.sh lint makes ready.
#
#   scripts/lint.sh          checks
#   scripts/lint.sh --fix    rewrites what clang-format and ruff can
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/steps.sh

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

step "clang-format" format_cpp
step "ruff check" "$ruff" check .
step "ruff format" "$ruff" format --check .
step "mypy --strict" .venv/bin/python -m mypy --strict -p tensorkey
step "the stub of _core as it was reviewed" scripts/stub.sh --check
step "clang-tidy" scripts/tidy.sh
finish lint
