#!/usr/bin/env bash
# Qwen3-1.7B with FSDP2: CAST, GRPO and the other methods of the paper's comparison, on one node of 8 x 80 GB.
#
#   bash examples/run_qwen3_1.7b_fsdp.sh                          CAST
#   METHOD=grpo bash examples/run_qwen3_1.7b_fsdp.sh              its twin: the advantage differs
#   ABLATION=no_flip bash examples/run_qwen3_1.7b_fsdp.sh         an ablation of CAST
#   LORA=0 bash examples/run_qwen3_1.7b_fsdp.sh                   all parameters
#   bash examples/run_qwen3_1.7b_fsdp.sh trainer.save_freq=50     any of verl's and CAST's settings come last
#
# Needs: this repository installed in verl's environment, and `verl-cast data`. The other toggles, the methods and the
# values of the evaluated run are in paper.sh; what is here is this model on this engine.
set -euo pipefail

MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-1.7B}
LORA=${LORA:-1}             # 1: LoRA, as in the evaluated run; 0: all parameters
ROLLOUT_TP=${ROLLOUT_TP:-1} # GPUs of one vLLM engine
# Tokens of one micro-batch on a GPU: two rows of 1024 + 3072, and the longest context that a teacher has (RLRT's
# shows a second response). The GPUs that hold different rows have to divide the 16 of a step, or verl fills up with
# padding rows.
MAX_TOKENS=${MAX_TOKENS:-8192}
source "$(dirname "${BASH_SOURCE[0]}")/paper.sh"

MODEL=(
  actor_rollout_ref.model.path="$MODEL_PATH"
  actor_rollout_ref.model.use_remove_padding=True
  actor_rollout_ref.model.enable_gradient_checkpointing=True
)
# The adapter reaches vLLM merged into the weights: the sync of adapters fails with newer vLLM (the README's limits).
if [ "$LORA" = 1 ]; then
  MODEL+=(
    actor_rollout_ref.model.lora_rank="$LORA_RANK"
    actor_rollout_ref.model.lora_alpha="$LORA_ALPHA"
    actor_rollout_ref.model.target_modules=all-linear
    actor_rollout_ref.model.lora.merge=True
  )
fi

# bfloat16 arithmetic on float32 parameters, verl's default (the evaluated run's frozen base was bfloat16 itself).
# verl's FSDP has no linear schedule: the learning rate falls along half a cosine instead, between the same two
# values.
ACTOR=(
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr_scheduler_type=cosine
  actor_rollout_ref.actor.optim.min_lr_ratio="$LR_END_RATIO"
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS" # log-probs, the teacher's too, take the same budget
)

# vLLM shares the GPUs with training, and gives its memory back while the policy is updated.
ROLLOUT=(
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.tensor_model_parallel_size="$ROLLOUT_TP"
  actor_rollout_ref.rollout.gpu_memory_utilization=0.5
)

run python -m verl.trainer.main_ppo --config-name=cast_trainer \
  "${ALGORITHM[@]}" "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${OBJECTIVE[@]}" "${OPTIMIZER[@]}" \
  "${ROLLOUT[@]}" "${SAMPLING[@]}" "${REWARD[@]}" "${TRAINER[@]}" "$@"
