#!/usr/bin/env bash
# Sets up the CPU environment (.venv) and runs every test. With arguments it runs one pytest with them.
#
#   bash tests/run.sh                    everything, 18 minutes on 2 cores
#   bash tests/run.sh -m "not slow"      without the runs through Ray and vLLM
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash examples/setup_cpu.sh
export PATH="$PWD/.venv/bin:$PATH"

# The report's page is tested in a real browser.
if [ -z "${CHROME:-}" ] && ! command -v chromium chromium-browser google-chrome >/dev/null; then
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "chromium: not found; installing Debian's (apt-get)"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null ||
      echo "chromium: the installation failed; the report's browser tests need it" >&2
  else
    echo "chromium: not found; install it, or name it with CHROME=/path/to/chromium, for the report's browser tests" >&2
  fi
fi

ruff check .
ruff format --check .
[ $# -eq 0 ] || exec python -m pytest "$@"

# First two files at a time, one thread each, in the order of the directories: the long ones come first.
# Then two real runs at a time. The queue prints when each starts and ends.
status=0
OMP_NUM_THREADS=1 python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder || status=$?
OMP_NUM_THREADS=1 python -m pytest -m slow --capture=sys || status=$?
exit $status
