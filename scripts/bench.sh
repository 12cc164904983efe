#!/usr/bin/env bash
# Runs the benchmarks, one after the other on an idle machine: tables on the terminal, JSON under
# build/bench. Needs what scripts/setup.sh bench makes ready.
#
#   scripts/bench.sh [QUESTION...]    folders of bench/; all of them by default
set -euo pipefail
cd "$(dirname "$0")/.."

cmake --preset release > build/release-configure.log
cmake --build --preset release --parallel "$(nproc)" -- --quiet
mkdir -p build/bench

questions=("$@")
if ((${#questions[@]} == 0)); then
  for folder in bench/*/; do questions+=("$(basename "$folder")"); done
fi
for question in "${questions[@]}"; do
  for program in bench/"$question"/bench_*.py build/release/bench/"$question"/*_bench; do
    [ -e "$program" ] || continue
    name=$question-$(basename "$program" .py)
    printf '\n== %s\n' "$program"
    case $program in
      *.py) .venv/bin/python "$program" > "build/bench/$name.json" ;;
      *) "$program" > "build/bench/$name.json" ;;
    esac
  done
done
printf '\nresults: build/bench; bench/report.py makes docs/benchmarks.md of them, and\n'
printf 'bench/policy/chart.py docs/hit_ratios.png\n'
