#!/usr/bin/env bash
SIZE=1.7b source "$(dirname "${BASH_SOURCE[0]}")/run_qwen3_fsdp.sh"
