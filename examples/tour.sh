#!/usr/bin/env bash
# One group of responses through CAST by hand: rewards, B, gap, flips, advantages, and the picture of the same tokens.
#
#   bash examples/tour.sh           takes seconds; nothing is trained; the picture is .quickstart/tour/report.html
#
# Runs in the environment of examples/setup_cpu.sh, or in any Python that has this package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/shell.sh

export PATH="${VENV:-$PWD/.venv}/bin:$PATH"
python -c 'import torch, verl_cast.advantage' 2>/dev/null ||
  refuse "$(command -v python || echo python) has no verl_cast; run bash examples/setup_cpu.sh first, or pip install -e ."
python examples/tour.py "${OUT:-$PWD/.quickstart/tour}"
