#!/usr/bin/env bash
# CAST | text | vLLM rollout | FSDP2 training | NVIDIA GPUs
#
# Knobs:
#   ADV_ESTIMATOR    cast | grpo (the twin without self-teacher)              (default: cast)
#   TEACHER_CONTEXT  plain | same | path of a Jinja template                  (default: plain)
#   TEACHER_WEIGHTS  snapshot | ema | initial | current                       (default: snapshot)
#   LORA_RANK        0 trains all parameters; the paper's run had 64          (default: 0)
#
# The rule, temperature, top-p, top-k, loss and peak learning rate are those of the paper's evaluated run. Model, data,
# batch size, learning rate schedule and weight decay are not. This script has not been run on GPUs yet.

set -xeuo pipefail

# ---- user-adjustable ----
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-8B}
NNODES=${NNODES:-1}
NGPUS_PER_NODE=${NGPUS_PER_NODE:-8}

adv_estimator=${ADV_ESTIMATOR:-cast}
teacher_context=${TEACHER_CONTEXT:-plain}
teacher_weights=${TEACHER_WEIGHTS:-snapshot}
refresh_interval=${REFRESH_INTERVAL:-10}

# One update per rollout batch: the ratio is 1, and the teacher's pass replaces the pass for old log-probs.
train_batch_size=${TRAIN_BATCH_SIZE:-128}
ppo_mini_batch_size=${PPO_MINI_BATCH_SIZE:-$train_batch_size}
max_prompt_length=${MAX_PROMPT_LENGTH:-1024}
max_response_length=${MAX_RESPONSE_LENGTH:-3072}
ppo_max_token_len_per_gpu=${PPO_MAX_TOKEN_LEN_PER_GPU:-24576}

actor_lr=${ACTOR_LR:-1e-6}
lora_rank=${LORA_RANK:-0}
lora_alpha=${LORA_ALPHA:-128}

rollout_tp=${ROLLOUT_TP:-2}
rollout_gpu_mem_util=${ROLLOUT_GPU_MEM_UTIL:-0.6}
rollout_n=${ROLLOUT_N:-8}

total_epochs=${TOTAL_EPOCHS:-15}
save_freq=${SAVE_FREQ:-20}
test_freq=${TEST_FREQ:-5}

project_name=${PROJECT_NAME:-verl_cast_gsm8k_math}
experiment_name=${EXPERIMENT_NAME:-qwen3_8b_${adv_estimator}_vllm_fsdp}
# ---- end user-adjustable ----

train_files="['$HOME/data/gsm8k/train.parquet', '$HOME/data/math/train.parquet']"
val_files="['$HOME/data/gsm8k/test.parquet', '$HOME/data/math/test.parquet']"
########################### parameter arrays ###########################

ALGORITHM=(
    algorithm.adv_estimator="$adv_estimator"
    algorithm.use_kl_in_reward=False
)
if [ "$adv_estimator" = cast ]; then
    ALGORITHM+=(
        algorithm.cast.teacher.context="$teacher_context"
        algorithm.cast.teacher.weights="$teacher_weights"
        algorithm.cast.teacher.refresh_interval="$refresh_interval"
    )
fi

DATA=(
    data.train_files="$train_files"
    data.val_files="$val_files"
    data.train_batch_size="$train_batch_size"
    data.max_prompt_length="$max_prompt_length"
    data.max_response_length="$max_response_length"
    data.filter_overlong_prompts=True
    data.truncation=error
    +data.apply_chat_template_kwargs.enable_thinking=False
)

MODEL=(
    actor_rollout_ref.model.path="$MODEL_PATH"
    actor_rollout_ref.model.use_remove_padding=True
    actor_rollout_ref.model.enable_gradient_checkpointing=True
)
if [ "$lora_rank" -gt 0 ]; then
    MODEL+=(
        actor_rollout_ref.model.lora_rank="$lora_rank"
        actor_rollout_ref.model.lora_alpha="$lora_alpha"
        actor_rollout_ref.model.target_modules=all-linear
        actor_rollout_ref.model.lora.merge=True
    )
fi

ACTOR=(
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.optim.lr="$actor_lr"
    actor_rollout_ref.actor.ppo_mini_batch_size="$ppo_mini_batch_size"
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$ppo_max_token_len_per_gpu"
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean
    actor_rollout_ref.actor.clip_ratio_low=0.2
    actor_rollout_ref.actor.clip_ratio_high=0.28
    actor_rollout_ref.actor.use_kl_loss=False
    actor_rollout_ref.actor.entropy_coeff=0
    actor_rollout_ref.actor.fsdp_config.param_offload=True
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=True
)

ROLLOUT=(
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.tensor_model_parallel_size="$rollout_tp"
    actor_rollout_ref.rollout.gpu_memory_utilization="$rollout_gpu_mem_util"
    actor_rollout_ref.rollout.n="$rollout_n"
    actor_rollout_ref.rollout.temperature=0.7
    actor_rollout_ref.rollout.top_p=0.95
    actor_rollout_ref.rollout.top_k=20
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu="$ppo_max_token_len_per_gpu"
)

TRAINER=(
    trainer.balance_batch=True
    trainer.logger='["console","wandb"]'
    trainer.project_name="$project_name"
    trainer.experiment_name="$experiment_name"
    trainer.n_gpus_per_node="$NGPUS_PER_NODE"
    trainer.nnodes="$NNODES"
    trainer.save_freq="$save_freq"
    trainer.test_freq="$test_freq"
    trainer.total_epochs="$total_epochs"
)

########################### launch ###########################
python3 -m verl.trainer.main_ppo \
    "${ALGORITHM[@]}" \
    "${DATA[@]}" \
    "${MODEL[@]}" \
    "${ACTOR[@]}" \
    "${ROLLOUT[@]}" \
    "${TRAINER[@]}" \
    "$@"
