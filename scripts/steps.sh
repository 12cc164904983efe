# Sourced by lint.sh and test.sh: every step runs, and what failed is told at the end.
failed=()

# step TITLE COMMAND...
step() {
  local start=$SECONDS
  printf '\n== %s\n' "$1"
  "${@:2}" || failed+=("$1")
  printf '== %s: %d s\n' "$1" $((SECONDS - start))
}

# finish NAME: the verdict, and the exit status.
finish() {
  if ((${#failed[@]} == 0)); then
    printf '\n%s passed\n' "$1"
    return
  fi
  printf '\n%s failed:\n' "$1" >&2
  printf '  %s\n' "${failed[@]}" >&2
  exit 1
}
