#!/usr/bin/env bash
SIZE=4b source "$(dirname "${BASH_SOURCE[0]}")/run_qwen3_megatron.sh"
