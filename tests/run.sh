#!/usr/bin/env bash
# The test command: sets up the CPU environment (.venv) and runs every test. Arguments go to pytest.
#
#   bash tests/run.sh                    everything, about 40 minutes on 2 cores
#   bash tests/run.sh -m "not slow"      without the runs through Ray and vLLM
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash examples/setup_cpu.sh
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
exec python -m pytest "$@"
