# All run_qwen3_*.sh source this file. It has the method, the ablation, and the values of the evaluated CAST run
# (Qwen3-4B, 300 steps). A comment marks every departure from that run.
# shellcheck shell=bash disable=SC2034
#
# The sourcing script sets SIZE, ENGINE, LORA, MODEL_PATH, ROLLOUT_TP and GPU_MEMORY. At its end it calls `train`.
#
# Toggles come from the environment. Their defaults:
METHOD=${METHOD:-cast}       # cast grpo opsd grpo_opsd rlsd rlrt; it changes nothing else
ABLATION=${ABLATION:-none}   # of METHOD=cast; listed below
DATA_DIR=${DATA_DIR:-$PWD/data} # written by prepare_data.py
OUT_DIR=${OUT_DIR:-$PWD/runs}   # gets a directory per experiment (on a cluster: visible to every node)
NGPUS=${NGPUS:-8}            # per node
NNODES=${NNODES:-1}
STEPS=${STEPS:-300}
SEED=${SEED:-1}              # of the data order
VALIDATE_EVERY=${VALIDATE_EVERY:-50} # steps between validations on AIME24, one response each; -1: never
DUMP_EVERY=${DUMP_EVERY:-50} # steps between trajectory dumps of a CAST run, for the report; 0: never
# On or off: 1 or true, 0 or false.
WANDB=${WANDB:-0}            # also log to Weights & Biases
TENSORBOARD=${TENSORBOARD:-0} # also write TensorBoard's event files, into the experiment's tensorboard_log
DRY_RUN=${DRY_RUN:-0}        # print verl's command as one line for the shell, and start nothing

source "$(dirname "${BASH_SOURCE[0]}")/shell.sh"
for name in LORA WANDB TENSORBOARD DRY_RUN; do toggle "$name"; done

# 1. The method. The packaged config cast_trainer has a settings group per method, with all defaults. ABLATION changes
#    CAST's group. The teachers of opsd, grpo_opsd and rlsd read the reference answer. DAPO-Math-17K has final answers
#    and no solutions. rlrt's teacher reads a correct response of the same group. CAST's teacher reads neither.
case $METHOD in
  cast | grpo | opsd | grpo_opsd | rlsd | rlrt) ;;
  *) refuse "METHOD=$METHOD is unknown; use cast, grpo, opsd, grpo_opsd, rlsd or rlrt." ;;
esac
case $ABLATION in
  none)            CHANGES=() ;;
  mixed_only)      CHANGES=(base_correct=0 base_wrong=0) ;; # all-correct and all-wrong groups teach nothing, as in GRPO
  no_flip)         CHANGES=(flip=none) ;;
  flip_correct)    CHANGES=(flip=correct) ;;
  flip_wrong)      CHANGES=(flip=wrong) ;;
  zero_variance)   CHANGES=(flip_groups=zero_variance) ;; # no flips in mixed groups
  symmetric_clip)  CHANGES=("positive_clip=[0.8,1.2]" "negative_clip=[0.8,1.2]") ;;
  half_base)       CHANGES=(base_correct=0.5 base_wrong=0.5) ;;
  initial_teacher) CHANGES=(teacher.weights=initial) ;;
  same_prompt)     CHANGES=(teacher.context=same) ;;
  ema_teacher)     CHANGES=(teacher.weights=ema) ;;
  *) refuse "ABLATION=$ABLATION is unknown; use none, mixed_only, no_flip, flip_correct, flip_wrong, zero_variance," \
            "symmetric_clip, half_base, initial_teacher, same_prompt or ema_teacher." ;;
esac
[ "$ABLATION" = none ] || [ "$METHOD" = cast ] ||
  refuse "ABLATION=$ABLATION is an ablation of CAST; use METHOD=cast, or ABLATION=none with METHOD=$METHOD."
ALGORITHM=(algorithm.adv_estimator="$METHOD" "${CHANGES[@]/#/algorithm.cast.}")
# The dump changes nothing in training. The other methods have none.
if [ "$METHOD" = cast ]; then
  ALGORITHM+=(algorithm.cast.dump.interval="$DUMP_EVERY" algorithm.cast.dump.groups=2)
fi

# A run resumes from the newest checkpoint of its EXPERIMENT. Set EXPERIMENT yourself for other seeds or settings.
PARAMETERS=full
if [ "$LORA" = 1 ]; then PARAMETERS=lora; fi
NAME=qwen3_${SIZE}_${ENGINE}_${PARAMETERS}_$METHOD
[ "$ABLATION" = none ] || NAME+=_$ABLATION
EXPERIMENT=${EXPERIMENT:-$NAME}
RUN_DIR=$OUT_DIR/$EXPERIMENT

# 2. Data: DAPO-Math-17K, two prompts per step, Qwen3's chat template without thinking. Longer prompts are left out.
DATA=(
  data.train_files="$DATA_DIR/dapo_math_17k.parquet"
  data.val_files="$DATA_DIR/aime24.parquet"
  data.train_batch_size=2
  data.max_prompt_length=1024
  data.max_response_length=3072
  data.filter_overlong_prompts=True
  data.seed="$SEED"
  +data.apply_chat_template_kwargs.enable_thinking=False
)

# 3. Sampling. Departure: the evaluated run had a presence penalty of 0.2, for which verl has no key. vLLM shares the
#    GPUs with training and frees its memory during the update. ROLLOUT_TP is the number of GPUs per vLLM engine.
SAMPLING=(
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.tensor_model_parallel_size="$ROLLOUT_TP"
  actor_rollout_ref.rollout.gpu_memory_utilization="$GPU_MEMORY"
  actor_rollout_ref.rollout.n=8
  actor_rollout_ref.rollout.temperature=0.7
  actor_rollout_ref.rollout.top_p=0.95
  actor_rollout_ref.rollout.top_k=20
  actor_rollout_ref.rollout.val_kwargs.do_sample=True # validation as in the paper's evaluation, except its 32k tokens
  actor_rollout_ref.rollout.val_kwargs.temperature=0.7
  actor_rollout_ref.rollout.val_kwargs.top_p=0.8
  actor_rollout_ref.rollout.val_kwargs.top_k=20
)

# 4. Reward: math equivalence, 0 or 1. An answer counts if it starts within the last 5 % of the response's tokens. The
#    model's own tokenizer counts them.
REWARD=(
  reward.custom_reward_function.path=pkg://verl_cast.verifier
  reward.custom_reward_function.name=compute_score
  +reward.custom_reward_function.reward_kwargs.tokenizer="$MODEL_PATH"
)

# 5. Objective: the same for every method except for the loss. CAST's loss is GRPO's without the dual clip. Both losses are
#    equal at ratio 1. The ratio is 1 here, since the whole batch is one optimizer step. The mean is over a response's
#    tokens, then over responses. Departure: the evaluated run left truncated responses out of the loss. verl has no
#    switch for that, so they stay in the loss, graded by the verifier.
OBJECTIVE=(
  actor_rollout_ref.actor.ppo_mini_batch_size=2
  actor_rollout_ref.actor.ppo_epochs=1
  actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean
  actor_rollout_ref.actor.clip_ratio_low=0.2
  actor_rollout_ref.actor.clip_ratio_high=0.28
  actor_rollout_ref.actor.use_kl_loss=False
  actor_rollout_ref.actor.entropy_coeff=0
)

# 6. Micro-batches by tokens. The budget fits two rows of 1024 + 3072, or a teacher's longest context (RLRT's shows a
#    second response). Log-prob passes, including the teacher's, have the same budget. The number of GPUs with different
#    rows should divide the step's 16 rows, or verl adds padding rows.
MAX_TOKENS=${MAX_TOKENS:-8192} # of one micro-batch on a GPU
MICRO_BATCHES=(
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS"
)

# 7. Optimizer: AdamW at 1e-6, warm-up over 5 % of the steps, then decay to 1e-7. The engines have different schedules, so
#    their scripts set them. The evaluated run's script sets no weight decay. The default of its trainer (TRL) is 0.
LR_END=1e-7
LR_END_RATIO=0.1 # of the peak
OPTIMIZER=(
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.05
  actor_rollout_ref.actor.optim.weight_decay=0
  actor_rollout_ref.actor.optim.clip_grad=1.0
)

# 8. LoRA as in the evaluated run, on all linear layers. The engines have different keys for it.
LORA_RANK=64
LORA_ALPHA=128

# 9. Trainer. A checkpoint every 25 steps; the last two are kept.
LOGGER=console,file
if [ "$WANDB" = 1 ]; then LOGGER+=,wandb; fi
if [ "$TENSORBOARD" = 1 ]; then LOGGER+=,tensorboard; fi
TRAINER=(
  trainer.nnodes="$NNODES"
  trainer.n_gpus_per_node="$NGPUS"
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000 # total_training_steps ends the run
  trainer.save_freq=25
  trainer.max_actor_ckpt_to_keep=2
  trainer.test_freq="$VALIDATE_EVERY"
  trainer.val_before_train=False
  trainer.logger="[$LOGGER]"
  trainer.project_name=cast
  trainer.experiment_name="$EXPERIMENT"
  trainer.default_local_dir="$RUN_DIR/checkpoints"
  # The trainer is a Ray process and may run on another node, so the job carries the paths.
  +ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH="$RUN_DIR/metrics.jsonl"
  +ray_kwargs.ray_init.runtime_env.env_vars.TENSORBOARD_DIR="$RUN_DIR/tensorboard_log"
)

# train SETTINGS... -- ARGUMENTS...: start verl, or print its command. The arguments of the command line come last.
train() {
  local settings=()
  while [ "$1" != -- ]; do
    settings+=("$1")
    shift
  done
  shift
  start "$RUN_DIR" python -m verl.trainer.main_ppo --config-name=cast_trainer "${settings[@]}" \
    "${ALGORITHM[@]}" "${DATA[@]}" "${OBJECTIVE[@]}" "${MICRO_BATCHES[@]}" "${OPTIMIZER[@]}" \
    "${SAMPLING[@]}" "${REWARD[@]}" "${TRAINER[@]}" "$@"
}
