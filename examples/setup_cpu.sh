#!/usr/bin/env bash
# Makes the environment that needs no GPU: .venv with pinned versions of verl, torch, vLLM (CPU builds) and this plugin.
#
#   bash examples/setup_cpu.sh         creates .venv, or brings it up to date; does nothing when it is
#
# Needs Python 3.11 or 3.12 (PYTHON=... names it) and a package index; about 4 GB of disk. Measurements and CI are with
# 3.11. On 3.12 this script has not run; the tests without real runs passed there with torch 2.11 (tests/README.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=2.13.0
VENV=${VENV:-$PWD/.venv}
LOCK=examples/requirements-cpu.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1

fits() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

find_python() {
  local candidate candidates=(python3.11 python3.12 python3 python)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if fits "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  echo "$(basename "$0"): ${candidates[*]}: none is Python 3.11 or 3.12; install one, or name it:" \
    "PYTHON=/path/to/python3.11 bash examples/setup_cpu.sh" >&2
  exit 1
}

# The stamp says which lock and which checkout the environment was made from.
stamp=$(cat "$LOCK" pyproject.toml "${BASH_SOURCE[0]}" | cksum; pwd)
if [ -f "$VENV/.verl_cast_stamp" ] && [ "$(cat "$VENV/.verl_cast_stamp")" = "$stamp" ]; then
  echo "environment: $VENV is up to date"
  exit
fi

python=$(find_python)
started=$SECONDS
echo "environment: making $VENV with $python (a few minutes, most of them for part 2 of 2)"
[ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
rm -f "$VENV/.verl_cast_stamp"

echo "environment: 1 of 2, torch $TORCH for CPUs"
# torch's CPU build comes from pip's own sources if they have it, else from PyTorch's CPU index, which uv knows.
if ! "$VENV/bin/pip" install --quiet --no-deps --no-compile "torch==$TORCH+cpu" 2>/dev/null; then
  echo "environment: pip has no torch $TORCH+cpu; asking uv for it"
  "$VENV/bin/pip" install --quiet uv
  VIRTUAL_ENV=$VENV "$VENV/bin/uv" pip install --no-deps --torch-backend cpu "torch==$TORCH"
fi
echo "environment: 2 of 2, $(grep -c == "$LOCK") packages ($((SECONDS - started)) s so far)"
"$VENV/bin/pip" install --quiet --no-deps --no-compile --requirement "$LOCK"
"$VENV/bin/pip" install --quiet --no-deps --no-build-isolation --editable .
# pip compiles Python files on one core; this uses all. It fails at templates that are no Python, as pip silently does.
"$VENV/bin/python" -m compileall -q -j 0 "$VENV/lib" >/dev/null 2>&1 || true
echo "$stamp" >"$VENV/.verl_cast_stamp"
echo "environment: ready after $((SECONDS - started)) s"
