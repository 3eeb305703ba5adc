#!/usr/bin/env bash
# What only a GPU can show, on one GPU, in the environment that is active: it needs verl and this package. It downloads
# nothing and takes under ten minutes. Where vLLM, flash-attn or Megatron are missing, it says what it skips.
#
#   bash tests/run_gpu.sh                         a table at the end
#   bash tests/run_gpu.sh --out gpu.json          and its numbers
#   bash tests/run_gpu.sh --device cpu            the same on a CPU, with a tiny model
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD/tests/support:$PWD/tests/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec python tests/benchmarks/first_gpu.py "$@"
