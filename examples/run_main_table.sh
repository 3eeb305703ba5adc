#!/usr/bin/env bash
# Makes the paper's main table. It trains every method with one of the scripts here. Then it evaluates the trained
# models and the untrained one (16 samples per problem) and joins the rows.
#
#   bash examples/run_main_table.sh                                    all methods with run_qwen3_4b_fsdp.sh
#   METHODS="grpo cast" bash examples/run_main_table.sh                some of them
#   SCRIPT=run_qwen3_8b_megatron.sh bash examples/run_main_table.sh    another model or engine
#   DRY_RUN=1 bash examples/run_main_table.sh                          print the commands, start nothing
#
# Run `verl-cast data` first. Arguments go to every training. The toggles of paper.sh work here too. A stopped loop can
# be restarted: it does not repeat finished trainings and samples.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"
SCRIPT=$(dirname "${BASH_SOURCE[0]}")/${SCRIPT:-run_qwen3_4b_fsdp.sh}
METHODS=${METHODS:-grpo opsd grpo_opsd rlsd rlrt cast}
BENCHMARKS=${BENCHMARKS:-aime24 aime25 aime26 math500 hmmt25}
read -ra EVALUATE <<<"${EVALUATE:-}" # more options of `verl-cast evaluate`, as in "--tensor-parallel-size 2"
DRY_RUN=${DRY_RUN:-0}
toggle DRY_RUN
unset EXPERIMENT # each method has its own

arguments=("$@")
value() { # METHOD KEY: the value that the script would use
  METHOD=$1 DRY_RUN=1 bash "$SCRIPT" "${arguments[@]}" | xargs printf '%s\n' | sed -n "s/^$2=//p" | tail -n 1
}

step() {
  echo "+ $(quoted "$@")"
  [ "$DRY_RUN" = 1 ] || "$@"
}

# An assignment of its own ends this script if the other one refuses a toggle.
data=$(value grpo data.val_files)
data=$(dirname "$data")
files=()
for benchmark in $BENCHMARKS; do
  files+=("$data/$benchmark.parquet")
  # Fail here, not after days of training.
  [ "$DRY_RUN" = 1 ] || [ -f "${files[-1]}" ] || refuse "${files[-1]} is missing; see verl-cast data"
done

runs=$(value grpo trainer.default_local_dir)
runs=$(dirname "$(dirname "$runs")")
rows=()
evaluate() { # NAME MODEL
  rows+=("$runs/evaluation/$1")
  step verl-cast evaluate "$2" --data "${files[@]}" --name "$1" --out "$runs/evaluation/$1" "${EVALUATE[@]}"
}

model=$(value grpo actor_rollout_ref.model.path)
evaluate "$(basename "$model")" "$model"
for method in $METHODS; do
  directory=$(value "$method" trainer.default_local_dir)
  steps=$(value "$method" trainer.total_training_steps)
  checkpoint=$directory/global_step_$steps
  # verl writes this file when the checkpoint is complete.
  [ "$(cat "$directory/latest_checkpointed_iteration.txt" 2>/dev/null)" = "$steps" ] || step env METHOD="$method" bash "$SCRIPT" "${arguments[@]}"
  evaluate "$(value "$method" trainer.experiment_name)" "$checkpoint"
done

step verl-cast evaluate --table "${rows[@]}"
