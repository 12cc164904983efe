#!/usr/bin/env bash
# Rewrites requirements/constraints.txt: the exact version of everything that requirements/*.txt
# bring with them. Run it after changing one of those files.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --dry-run \
  --report "$work/report.json" \
  -r requirements/lint.txt -r requirements/wheel.txt -r requirements/bench.txt
"$work/venv/bin/python" - "$work/report.json" > "$work/constraints.txt" <<'PYTHON'
import json
import sys

print("# Everything that requirements/*.txt bring with them; written by scripts/lock.sh.")
items = [item["metadata"] for item in json.load(open(sys.argv[1]))["install"]]
for item in sorted(items, key=lambda item: item["name"].lower()):
    # Without the local part: torch 2.13.0 is also the build 2.13.0+cpu.
    print(f"{item['name']}=={item['version'].partition('+')[0]}")
PYTHON
mv "$work/constraints.txt" requirements/constraints.txt
