#!/usr/bin/env bash
# The first run on a GPU: Qwen2.5-0.5B-Instruct on GSM8K, all parameters, FSDP2 and vLLM on one GPU of 24 GB.
#
#   python examples/prepare_data.py gsm8k_train gsm8k_test   writes the data into ./data
#   verl-cast doctor bash examples/run_gsm8k.sh              checks everything, and starts nothing
#   bash examples/run_gsm8k.sh                               CAST, with a teacher that is trusted while it is better
#   METHOD=grpo bash examples/run_gsm8k.sh                   its GRPO twin: the advantage differs
#   TEACHER=mine.jinja bash examples/run_gsm8k.sh            another context of the teacher
#   bash examples/run_gsm8k.sh trainer.save_freq=20          any of verl's and CAST's settings come last
#
# Install this repository in verl's environment first. Not measured, as no GPU was available: memory, seconds per step,
# accuracy, and whether the worked examples make this model better. The run itself measures the last in its first step
# (cast/trust/*). With a teacher that is not better, the run is GRPO.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
METHOD=${METHOD:-cast}        # cast or grpo
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen2.5-0.5B-Instruct}
TEACHER=${TEACHER:-$HERE/contexts/gsm8k.jinja} # a template like this one, or plain
DATA_DIR=${DATA_DIR:-$PWD/data}
OUT_DIR=${OUT_DIR:-$PWD/runs}
STEPS=${STEPS:-200}           # of 64 problems; GSM8K has 7473
SEED=${SEED:-1}               # of the data order
VALIDATE_EVERY=${VALIDATE_EVERY:-20} # steps between validations on GSM8K's 1319 test problems; -1: never
DUMP_EVERY=${DUMP_EVERY:-20}  # steps between trajectory dumps of a CAST run, for the report; 0: never
WANDB=${WANDB:-0}
TENSORBOARD=${TENSORBOARD:-0}
DRY_RUN=${DRY_RUN:-0}         # print verl's command as one line for the shell, and start nothing
EXPERIMENT=${EXPERIMENT:-gsm8k_$METHOD} # a run resumes from the newest checkpoint of its EXPERIMENT
RUN_DIR=$OUT_DIR/$EXPERIMENT

source "$HERE/shell.sh"
for name in WANDB TENSORBOARD DRY_RUN; do toggle "$name"; done

# 1. The method. The setting is the study's recommendation (examples/study): the teacher is trusted only while it is
#    better than the policy, tokens flip only in all-wrong groups, which count a tenth, and only where the gap is
#    larger than 1 nat; all-correct groups count nothing.
RECOMMENDED=(
  ++algorithm.cast.trust=measured
  ++algorithm.cast.flip_groups=zero_variance
  ++algorithm.cast.base_correct=0
  ++algorithm.cast.base_wrong=0.1
  ++algorithm.cast.gap_deadzone=1
)
ALGORITHM=(algorithm.adv_estimator="$METHOD")
case $METHOD in
  cast)
    ALGORITHM+=(
      "${RECOMMENDED[@]}"
      ++algorithm.cast.teacher.context="$TEACHER"
      ++algorithm.cast.dump.interval="$DUMP_EVERY"
      ++algorithm.cast.dump.groups=2
    )
    ;;
  grpo) ;;
  *) refuse "METHOD=$METHOD is unknown; use cast or grpo." ;;
esac

# 2. Data. prepare_data.py ends every problem with "put your final answer within \boxed{}".
DATA=(
  data.train_files="$DATA_DIR/gsm8k_train.parquet"
  data.val_files="$DATA_DIR/gsm8k_test.parquet"
  data.train_batch_size=64
  data.max_prompt_length=512
  data.max_response_length=1024
  data.filter_overlong_prompts=True
  data.seed="$SEED"
)

# 3. Reward: 1 if the last \boxed{} equals the answer, else 0. verl's own GSM8K reward wants "#### 42", which these
#    prompts do not ask for. tail_fraction=0: the answer may stand anywhere. The paper's limit, the last 5 % of a
#    response, is too short for a box in a short solution.
REWARD=(
  reward.custom_reward_function.path=pkg://verl_cast.verifier
  reward.custom_reward_function.name=compute_score
  +reward.custom_reward_function.reward_kwargs.extraction=last_box
  +reward.custom_reward_function.reward_kwargs.tail_fraction=0
)

# 4. Model and update. The whole batch is one optimizer step, so the ratio is 1. The clip is CAST's default, and is
#    written here so that the twin has it, too.
ACTOR=(
  actor_rollout_ref.model.path="$MODEL_PATH"
  actor_rollout_ref.model.use_remove_padding=True
  actor_rollout_ref.model.enable_gradient_checkpointing=True
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.ppo_mini_batch_size=64
  actor_rollout_ref.actor.clip_ratio_low=0.2
  actor_rollout_ref.actor.clip_ratio_high=0.28
  actor_rollout_ref.actor.use_kl_loss=False
  actor_rollout_ref.actor.entropy_coeff=0
)

# 5. Memory of a 24 GB GPU, by arithmetic: float32 parameters, gradients and Adam's moments take 8 GB. A micro-batch of
#    4096 tokens has 1.2 GB of bfloat16 logits (151,936 words), and a few times that beside them. vLLM takes 40 %, and
#    frees it during the update. If memory does not suffice, lower MAX_TOKENS (at least 2048) first.
MAX_TOKENS=${MAX_TOKENS:-4096}
MEMORY=(
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS"
  actor_rollout_ref.rollout.gpu_memory_utilization=0.4
)

# 6. Sampling. The teacher's prompt is about 350 tokens longer than the student's; max_model_len has room for it and a
#    response.
SAMPLING=(
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.tensor_model_parallel_size=1
  actor_rollout_ref.rollout.n=8
  actor_rollout_ref.rollout.temperature=1.0
  actor_rollout_ref.rollout.max_model_len=2048
)

# 7. Trainer. Validation is greedy, and the first one comes before training.
LOGGER=console,file
if [ "$WANDB" = 1 ]; then LOGGER+=,wandb; fi
if [ "$TENSORBOARD" = 1 ]; then LOGGER+=,tensorboard; fi
TRAINER=(
  trainer.nnodes=1
  trainer.n_gpus_per_node=1
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000 # total_training_steps ends the run
  trainer.save_freq=50
  trainer.max_actor_ckpt_to_keep=1
  trainer.test_freq="$VALIDATE_EVERY"
  trainer.val_before_train="$([ "$VALIDATE_EVERY" = -1 ] && echo False || echo True)"
  trainer.logger="[$LOGGER]"
  trainer.project_name=cast
  trainer.experiment_name="$EXPERIMENT"
  trainer.default_local_dir="$RUN_DIR/checkpoints"
  +ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH="$RUN_DIR/metrics.jsonl"
  +ray_kwargs.ray_init.runtime_env.env_vars.TENSORBOARD_DIR="$RUN_DIR/tensorboard_log"
)

start "$RUN_DIR" python -m verl.trainer.main_ppo "${ALGORITHM[@]}" "${DATA[@]}" "${REWARD[@]}" "${ACTOR[@]}" \
  "${MEMORY[@]}" "${SAMPLING[@]}" "${TRAINER[@]}" "$@"
