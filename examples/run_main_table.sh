#!/usr/bin/env bash
# Makes the paper's main table. It trains every method with one of the scripts here. Then it evaluates the trained
# models and the untrained one (16 samples per problem) and joins the rows.
#
#   bash examples/run_main_table.sh                                    all methods with run_qwen3_4b_fsdp.sh
#   METHODS="grpo cast" bash examples/run_main_table.sh                some of them
#   SCRIPT=run_qwen3_8b_megatron.sh bash examples/run_main_table.sh    another model or engine
#   DRY_RUN=1 bash examples/run_main_table.sh                          print the commands, start nothing
#
# Run prepare_data.py first. Arguments go to every training, and to every evaluation except data.* and reward.*. The
# toggles of paper.sh work here too. A stopped loop can be restarted: it repeats nothing that is finished.
set -euo pipefail

HERE=$(dirname "${BASH_SOURCE[0]}")
source "$HERE/shell.sh"
SCRIPT_NAME=${SCRIPT:-run_qwen3_4b_fsdp.sh}
SCRIPT=$HERE/$SCRIPT_NAME
METHODS=${METHODS:-grpo opsd grpo_opsd rlsd rlrt cast}
BENCHMARKS=${BENCHMARKS:-aime24 aime25 aime26 math500 hmmt25}
SAMPLES=${SAMPLES:-16} # per problem
read -ra EVALUATE <<<"${EVALUATE:-}" # more settings of the evaluations, as in "data.max_response_length=8192"
DRY_RUN=${DRY_RUN:-0}
toggle DRY_RUN
unset EXPERIMENT # each method has its own

arguments=("$@") of_evaluation=()
for argument in "$@"; do # the data and the reward of training are not those of the evaluation
  [[ $argument =~ ^[+~]*(data|reward)\. ]] || of_evaluation+=("$argument")
done
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
  [ "$DRY_RUN" = 1 ] || [ -f "${files[-1]}" ] || refuse "${files[-1]} is missing; python $HERE/prepare_data.py writes it."
done

runs=$(value grpo trainer.default_local_dir)
runs=$(dirname "$(dirname "$runs")")
dumps=()
evaluate() { # NAME STEP CHECKPOINT
  dumps+=("$1=$runs/evaluation/$1/validation/$2.jsonl")
  step env SCRIPT="$SCRIPT_NAME" EXPERIMENT="$1" CHECKPOINT="$3" DATA_DIR="$data" OUT_DIR="$runs" SAMPLES="$SAMPLES" \
    BENCHMARKS="$BENCHMARKS" bash "$HERE/evaluate.sh" "${of_evaluation[@]}" "${EVALUATE[@]}"
}

model=$(value grpo actor_rollout_ref.model.path)
evaluate "$(basename "$model")" 0 ""
for method in $METHODS; do
  directory=$(value "$method" trainer.default_local_dir)
  steps=$(value "$method" trainer.total_training_steps)
  # verl writes this file when the checkpoint is complete.
  [ "$(cat "$directory/latest_checkpointed_iteration.txt" 2>/dev/null)" = "$steps" ] || step env METHOD="$method" bash "$SCRIPT" "${arguments[@]}"
  evaluate "$(value "$method" trainer.experiment_name)" "$steps" "$directory/global_step_$steps"
done

step python "$HERE/pass_at_k.py" --samples "$SAMPLES" --data "${files[@]}" --dump "${dumps[@]}"
