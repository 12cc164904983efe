#!/usr/bin/env bash
# Makes ready what a make target needs: system packages, .venv, and the package built into .venv.
# Whatever is there already is left as it is; with nothing to do it takes a second.
#
#   scripts/setup.sh NAME...     NAME: demo, test, lint, wheel or bench (requirements/NAME.txt)
#
# PYTHON names the interpreter for a new .venv. System packages are installed by apt-get when this
# is root or can become root without a password; otherwise the line to run is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
# logged COMMAND...: quiet when it works; when it fails, the end of its output and a failure.
logged() {
  local log="build/$1.log"
  if ! "$@" > "$log" 2>&1 < /dev/null; then
    tail -n 60 "$log" >&2
    die "$1 failed; all it said is in $log"
  fi
}
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# --- System packages: a tool counts when it is on PATH, a library when its package is there.
missing=()

# need_tool PACKAGE COMMAND...: the package is missing unless one of the commands exists.
need_tool() {
  local package=$1
  shift
  for command in "$@"; do
    if command -v "$command" > /dev/null; then return; fi
  done
  missing+=("$package")
}

need_packages() {
  local installed
  installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2> /dev/null || true)
  for package in "$@"; do
    grep -qx "installed $package" <<< "$installed" || missing+=("$package")
  done
}

have_environment() { .venv/bin/python -c 'import pip' 2> /dev/null; }

# The first interpreter that is new enough, able to make environments and to build modules.
find_python() {
  local check='import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(header)))'
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 /usr/bin/python3}; do
    if "$candidate" -c "$check" 2> /dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

install_missing() {
  if ((${#missing[@]} == 0)); then return; fi
  local root=() apt='DEBIAN_FRONTEND=noninteractive apt-get'
  if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2> /dev/null; then root=(sudo); else
      die "these packages are missing; install them, then run this again:
  sudo apt-get install ${missing[*]}"
    fi
  fi
  say "installing ${missing[*]}"
  logged "${root[@]}" sh -c "$apt update && $apt install -y --no-install-recommends ${missing[*]}"
}

system_packages() {
  if ! command -v dpkg-query > /dev/null; then
    say "this is no Debian: the tools and libraries are taken to be there (CONTRIBUTING.md lists them)"
    return
  fi
  need_tool g++ g++
  need_tool cmake cmake
  need_tool ninja-build ninja
  need_tool ccache ccache
  need_packages libxxhash-dev libhwy-dev libzstd-dev libsqlite3-dev libgtest-dev libbenchmark-dev
  for name in "$@"; do
    case $name in
      demo | test | bench) need_packages wordnet-base ;;&
      test) need_tool b3sum b3sum ;;
      lint) need_tool clang-format clang-format-14 clang-format ;;
    esac
  done
  if ! have_environment && [ -z "$(find_python)" ]; then
    missing+=(python3 python3-venv python3-dev)
  fi
  install_missing
}

# --- The environment. A stamp holds the hash of what a step was made from.
digest() { cat "$@" | sha256sum | cut -c1-32; }

done_already() { [ "$(cat ".venv/stamps/$1" 2> /dev/null)" = "$2" ]; }
remember() { printf '%s\n' "$2" > ".venv/stamps/$1"; }

environment() {
  if have_environment; then return; fi
  local python
  python=$(find_python)
  [ -n "$python" ] || die "no Python 3.11 or newer with venv and headers was found"
  say "making .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv
  mkdir -p .venv/stamps
}

pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }

requirements() {
  local stamp
  stamp=$(digest requirements/*.txt)
  for name in build "$@"; do
    if done_already "$name" "$stamp"; then continue; fi
    say "installing requirements/$name.txt (some minutes the first time; the log is build/pip.log)"
    logged pip install --progress-bar off --no-compile --prefer-binary \
      -c requirements/constraints.txt -r "requirements/$name.txt"
    remember "$name" "$stamp"
  done
}

# The package is built again when one of its sources changed; CMake then compiles what is needed.
package() {
  local stamp
  stamp=$(find include src python/src python/tensorkey cmake CMakeLists.txt pyproject.toml README.md \
    -type f ! -name '*_test.cc' ! -path '*/__pycache__/*' -print0 |
    sort -z | xargs -0 sha256sum | digest)
  if done_already package "$stamp"; then return; fi
  say "building the package"
  # By the name that CMake finds by itself, so that ccache has the library for the C++ build, too.
  CXX=${CXX:-c++} logged pip install -v --no-build-isolation --no-deps --no-compile \
    --config-settings=cmake.define.TENSORKEY_WERROR=ON \
    --config-settings=cmake.define.CMAKE_EXPORT_COMPILE_COMMANDS=ON .
  remember package "$stamp"
}

mkdir -p build
exec 9> build/setup.lock
flock 9  # two runs at a time would damage the environment
system_packages "$@"
environment
requirements "$@"
package
