# What all run_*.sh share; they source it. Which method and ablation, and the values of the run that was evaluated as
# CAST (Qwen3-4B, 300 steps; the README says where they come from). What verl cannot do is said at its place.
# shellcheck shell=bash disable=SC2034
#
# Toggles, all from the environment, with their defaults:
METHOD=${METHOD:-cast}       # cast grpo opsd grpo_opsd rlsd rlrt; nothing else changes with it
ABLATION=${ABLATION:-none}   # of METHOD=cast; the list is below
DATA_DIR=${DATA_DIR:-$PWD/data} # what `verl-cast data` wrote
OUT_DIR=${OUT_DIR:-$PWD/runs}   # a directory per experiment is made in it (on a cluster: where every node sees it)
NGPUS=${NGPUS:-8}            # per node
NNODES=${NNODES:-1}
STEPS=${STEPS:-300}
SEED=${SEED:-1}              # of the order of the data
VALIDATE_EVERY=${VALIDATE_EVERY:--1} # steps between validations; -1: never, `verl-cast evaluate` does it better
WANDB=${WANDB:-0}            # 1: also log to Weights & Biases
DRY_RUN=${DRY_RUN:-0}        # 1: print verl's command, an argument a line, and start nothing

refuse() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# 1. The method. cast_trainer, the packaged config, has a group of settings for each, all at their defaults; ABLATION
#    changes those of CAST. The teachers of opsd, grpo_opsd and rlsd read the reference answer (of DAPO-Math-17K: the
#    final answer, as there are no solutions), rlrt's a correct response of the same group; CAST's reads neither.
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
  symmetric_clip)  CHANGES=("positive_clip=[0.8,1.2]" "negative_clip=[0.8,1.2]") ;;
  half_base)       CHANGES=(base_correct=0.5 base_wrong=0.5) ;;
  initial_teacher) CHANGES=(teacher.weights=initial) ;;
  same_prompt)     CHANGES=(teacher.context=same) ;;
  ema_teacher)     CHANGES=(teacher.weights=ema) ;;
  *) refuse "ABLATION=$ABLATION is unknown; use none, mixed_only, no_flip, flip_correct, flip_wrong, symmetric_clip," \
            "half_base, initial_teacher, same_prompt or ema_teacher." ;;
esac
[ "$ABLATION" = none ] || [ "$METHOD" = cast ] ||
  refuse "ABLATION=$ABLATION is an ablation of CAST; use METHOD=cast, or ABLATION=none with METHOD=$METHOD."
ALGORITHM=(algorithm.adv_estimator="$METHOD" "${CHANGES[@]/#/algorithm.cast.}")

# A run goes on from the newest checkpoint of its EXPERIMENT: name one yourself with other seeds or settings.
case $LORA in
  1) PARAMETERS=lora ;;
  0) PARAMETERS=full ;;
  *) refuse "LORA=$LORA: use 1 (LoRA) or 0 (all parameters)." ;;
esac
NAME=$(basename "$0" .sh)_${PARAMETERS}_$METHOD
[ "$ABLATION" = none ] || NAME+=_$ABLATION
EXPERIMENT=${EXPERIMENT:-${NAME#run_}}
RUN_DIR=$OUT_DIR/$EXPERIMENT

# 2. Data: DAPO-Math-17K, two prompts a step, Qwen3's chat template without thinking. Longer prompts are left out.
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

# 3. Sampling. Not here: the evaluated run's presence penalty of 0.2, which verl has no key for.
SAMPLING=(
  actor_rollout_ref.rollout.n=8
  actor_rollout_ref.rollout.temperature=0.7
  actor_rollout_ref.rollout.top_p=0.95
  actor_rollout_ref.rollout.top_k=20
  actor_rollout_ref.rollout.val_kwargs.do_sample=True # validation as in the paper's evaluation, but for its 32k tokens
  actor_rollout_ref.rollout.val_kwargs.temperature=0.7
  actor_rollout_ref.rollout.val_kwargs.top_p=0.8
  actor_rollout_ref.rollout.val_kwargs.top_k=20
)

# 4. Reward: math equivalence, 0 or 1. The answer counts where it starts within the last 5 % of the response's tokens, as
#    the model's own tokenizer counts them.
REWARD=(
  reward.custom_reward_function.path=pkg://verl_cast.verifier
  reward.custom_reward_function.name=compute_score
  +reward.custom_reward_function.reward_kwargs.tokenizer="$MODEL_PATH"
)

# 5. Objective: the same for every method, but for the loss: CAST's is GRPO's without the dual clip, which is the same where
#    the ratio is 1, as here: the whole batch is one optimizer step. The mean over the
#    tokens of a response, then over responses. Not here: the evaluated run left truncated responses out of the loss,
#    which verl has no switch for; here they stay in it, with the verifier's word on them.
OBJECTIVE=(
  actor_rollout_ref.actor.ppo_mini_batch_size=2
  actor_rollout_ref.actor.ppo_epochs=1
  actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean
  actor_rollout_ref.actor.clip_ratio_low=0.2
  actor_rollout_ref.actor.clip_ratio_high=0.28
  actor_rollout_ref.actor.use_kl_loss=False
  actor_rollout_ref.actor.entropy_coeff=0
)

# 6. Optimizer: AdamW, 1e-6, warm-up over 5 % of the steps, then down to 1e-7. How it falls is in the scripts: the two
#    engines have other schedules. The evaluated run's script sets no weight decay, and its trainer's default (TRL's) is 0.
LR_END=1e-7
LR_END_RATIO=0.1 # of the first
OPTIMIZER=(
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.05
  actor_rollout_ref.actor.optim.weight_decay=0
  actor_rollout_ref.actor.optim.clip_grad=1.0
)

# 7. LoRA of the evaluated run, on all linear layers. The engines have keys of their own for it.
LORA_RANK=64
LORA_ALPHA=128

# 8. Trainer. A checkpoint every 25 steps; the last two are kept.
LOGGER=console,file
[ "$WANDB" = 1 ] && LOGGER=$LOGGER,wandb
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
  # The trainer is a Ray process, on a cluster perhaps on another node: the path has to travel with the job.
  +ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH="$RUN_DIR/metrics.jsonl"
)

# The last line of every script: run COMMAND..., or show it.
run() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '%s\n' "$@"
  else
    mkdir -p "$RUN_DIR"
    # verl begins its file of metrics anew at every start; those of an earlier one stay beside it.
    local metrics=$RUN_DIR/metrics.jsonl
    if [ -s "$metrics" ]; then mv "$metrics" "$RUN_DIR/metrics_until_$(date +%Y%m%d_%H%M%S).jsonl"; fi
    "$@"
  fi
}
