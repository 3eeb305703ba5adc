#!/usr/bin/env bash
# A Ray cluster over several nodes without Slurm, and one of the scripts in it.
#
#   NNODES=2 bash examples/ray_cluster.sh head      on the first node: starts Ray, prints the commands for the others
#   ... bash examples/ray_cluster.sh join           on every other node, as printed
#   ... bash examples/ray_cluster.sh run [SETTING...]       on the first node, as printed: SCRIPT, when all have joined
#
# `head` and `join` stay in the foreground; Ctrl-C ends that node's Ray, and no one else's. Every node needs verl's
# environment with this repository, and must see the model, DATA_DIR and OUT_DIR. Toggles: NNODES, NGPUS (per node),
# SCRIPT (run_qwen3_8b_fsdp.sh), PORT, HEAD_IP, and those of paper.sh. It has been tried with two Ray nodes on one
# machine (tests/runs/test_scripts.py), on no real cluster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/shell.sh

SCRIPT=${SCRIPT:-run_qwen3_8b_fsdp.sh}
export NNODES=${NNODES:-2} NGPUS=${NGPUS:-8}
role=${1:-none}
[ $# = 0 ] || shift
case $role in
  head)
    HEAD_IP=$(head_ip)
    ray_token
    join=$(quoted RAY_ADDRESS="$HEAD_IP:${PORT:-6379}" RAY_AUTH_TOKEN="$RAY_AUTH_TOKEN" NNODES="$NNODES" NGPUS="$NGPUS")
    echo "on $((NNODES - 1)) other nodes, in this directory:    $join bash examples/ray_cluster.sh join"
    echo "then here, in a second terminal:    $join SCRIPT=$SCRIPT bash examples/ray_cluster.sh run"
    exec env -u RAY_ADDRESS ray start --head --node-ip-address="$HEAD_IP" --port="${PORT:-6379}" --num-gpus="$NGPUS" --block
    ;;
  join | run)
    [ -n "${RAY_ADDRESS:-}" ] || refuse "RAY_ADDRESS is not set; start with the command that $0 head prints."
    ray_token
    if [ "$role" = join ]; then exec ray start --address="$RAY_ADDRESS" --num-gpus="$NGPUS" --block; fi
    wait_for_nodes "$NNODES"
    bash "examples/$SCRIPT" "$@"
    ;;
  *) refuse "$role is no role; use head, join or run (the first lines of this script explain them)." ;;
esac
