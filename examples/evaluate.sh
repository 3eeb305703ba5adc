#!/usr/bin/env bash
# Avg@16 and Pass@16 of a model or of a checkpoint. verl samples and grades (trainer.val_only) with the settings of
# one of the scripts here. Then pass_at_k.py reads the samples that verl wrote.
#
#   MODEL_PATH=Qwen/Qwen3-8B SIZE=8b bash examples/evaluate.sh                     a Hugging Face model
#   CHECKPOINT=runs/MINE/checkpoints/global_step_300 bash examples/evaluate.sh     a checkpoint, as verl resumes it
#   SCRIPT=run_qwen3_megatron.sh CHECKPOINT=... bash examples/evaluate.sh          a checkpoint of another script
#   bash examples/evaluate.sh data.max_response_length=8192                        any of verl's settings come last
#
# Run prepare_data.py first. verl resumes a checkpoint with the engine and the number of ranks that saved it. So SCRIPT,
# SIZE, LORA, NGPUS, NNODES and TP must be those of the run, and so must settings of the model at its command's end.
# METHOD does not matter, as no advantage is computed. Other toggles:
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SCRIPT=$HERE/${SCRIPT:-run_qwen3_fsdp.sh}
CHECKPOINT=${CHECKPOINT:-}           # .../global_step_N; without it, MODEL_PATH is evaluated
EXPERIMENT=${EXPERIMENT:-}           # name of the row in the table (default: the run's, or the model's)
BENCHMARKS=${BENCHMARKS:-aime24 aime25 aime26 math500 hmmt25} # files in DATA_DIR
DATA_DIR=${DATA_DIR:-$PWD/data}
OUT_DIR=${OUT_DIR:-$PWD/runs}        # gets evaluation/EXPERIMENT
SAMPLES=${SAMPLES:-16}               # per problem
DRY_RUN=${DRY_RUN:-0}                # print the commands, start nothing
source "$HERE/shell.sh"
toggle DRY_RUN

STEP=0
RESUME=(trainer.resume_mode=disable)
if [ -n "$CHECKPOINT" ]; then
  CHECKPOINT=${CHECKPOINT%/}
  STEP=${CHECKPOINT##*global_step_}
  if [[ ! $STEP =~ ^[0-9]+$ || (! -d $CHECKPOINT/actor && $DRY_RUN = 0) ]]; then
    refuse "CHECKPOINT=$CHECKPOINT is no checkpoint of verl; name a directory global_step_N that has a directory actor."
  fi
  RESUME=(trainer.resume_mode=resume_path ++trainer.resume_from_path="$(realpath -m "$CHECKPOINT")")
  EXPERIMENT=${EXPERIMENT:-$(basename "$(realpath -m "$CHECKPOINT/../..")")}
fi
EXPERIMENT=${EXPERIMENT:-$(basename "${MODEL_PATH:-untrained}")}
FILES=()
for benchmark in $BENCHMARKS; do
  FILES+=("$DATA_DIR/$benchmark.parquet")
  [ "$DRY_RUN" = 1 ] || [ -f "${FILES[-1]}" ] || refuse "${FILES[-1]} is missing; python $HERE/prepare_data.py writes it."
done
LIST="[$(IFS=, && echo "${FILES[*]}")]"
DUMP=$OUT_DIR/evaluation/$EXPERIMENT/validation/$STEP.jsonl

# The evaluation of the paper's run: the last box counts, no thinking (paper.sh), no penalties (verl's values).
EVALUATION=(
  data.train_files="$LIST" # verl opens them and does not train
  data.val_files="$LIST"
  data.max_prompt_length=4096 # longer problems would be left out, and pass_at_k.py would say so
  data.max_response_length=32768
  actor_rollout_ref.rollout.val_kwargs.n="$SAMPLES"
  actor_rollout_ref.rollout.val_kwargs.do_sample=True
  actor_rollout_ref.rollout.val_kwargs.temperature=0.7
  actor_rollout_ref.rollout.val_kwargs.top_p=0.8
  actor_rollout_ref.rollout.val_kwargs.top_k=20
  reward.custom_reward_function.path="$HERE/pass_at_k.py" # grades with the verifier, and notes the data source
  +reward.custom_reward_function.reward_kwargs.tail_fraction=0
  +reward.custom_reward_function.reward_kwargs.extraction=last_box
  trainer.val_only=True
  trainer.val_before_train=True
  trainer.validation_data_dir="$(dirname "$DUMP")"
  "${RESUME[@]}"
)

if [ -f "$DUMP" ]; then
  echo "$DUMP is there, so nothing is sampled; remove it to evaluate again."
else
  METHOD=grpo ABLATION=none EXPERIMENT=$EXPERIMENT OUT_DIR=$OUT_DIR/evaluation bash "$SCRIPT" "${EVALUATION[@]}" "$@"
fi
TABLE=(python "$HERE/pass_at_k.py" --samples "$SAMPLES" --data "${FILES[@]}" --dump "$EXPERIMENT=$DUMP")
if [ "$DRY_RUN" = 1 ]; then quoted "${TABLE[@]}"; else "${TABLE[@]}"; fi
