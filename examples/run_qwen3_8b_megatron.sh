#!/usr/bin/env bash
SIZE=8b source "$(dirname "${BASH_SOURCE[0]}")/run_qwen3_megatron.sh"
