#!/usr/bin/env bash
# Qwen3-8B with Megatron: CAST, GRPO and the other methods of the paper's comparison, on one node of 8 x 80 GB.
#
#   bash examples/run_qwen3_8b_megatron.sh                          CAST
#   METHOD=grpo bash examples/run_qwen3_8b_megatron.sh              its twin: the advantage differs
#   ABLATION=no_flip bash examples/run_qwen3_8b_megatron.sh         an ablation of CAST
#   bash examples/run_qwen3_8b_megatron.sh trainer.save_freq=50     any of verl's and CAST's settings come last
#
# Needs: this repository installed in verl's environment for Megatron (with Megatron-Bridge and TransformerEngine),
# and `verl-cast data`. The other toggles, the methods and the values of the evaluated run are in paper.sh; what is
# here is this model on this engine.
set -euo pipefail

MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-8B}
LORA=${LORA:-0}             # 0: all parameters; 1: LoRA, see below
TP=${TP:-4}                 # GPUs that share a layer in training
ROLLOUT_TP=${ROLLOUT_TP:-2} # GPUs of one vLLM engine
# Tokens of one micro-batch on a GPU: two rows of 1024 + 3072, and the longest context that a teacher has (RLRT's
# shows a second response). The GPUs that hold different rows have to divide the 16 of a step, or verl fills up with
# padding rows.
MAX_TOKENS=${MAX_TOKENS:-8192}
source "$(dirname "${BASH_SOURCE[0]}")/paper.sh"

MODEL=(
  actor_rollout_ref.model.path="$MODEL_PATH"
)
# The evaluated run trained an adapter. verl has LoRA for Megatron through Megatron-Bridge (its defaults adapt all
# linear layers), which takes a GPU: LORA=1 composes here and has never run, so all parameters are the default.
if [ "$LORA" = 1 ]; then
  MODEL+=(
    actor_rollout_ref.model.lora.rank="$LORA_RANK"
    actor_rollout_ref.model.lora.alpha="$LORA_ALPHA"
    actor_rollout_ref.model.lora.merge=True
  )
fi

# bfloat16 with float32 master weights in the distributed optimizer, activations recomputed, and the learning rate falls
# linearly, as in the evaluated run.
ACTOR=(
  actor_rollout_ref.actor.optim.lr_decay_style=linear
  actor_rollout_ref.actor.optim.min_lr="$LR_END"
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS" # log-probs, the teacher's too, take the same budget
  actor_rollout_ref.actor.megatron.tensor_model_parallel_size="$TP"
  actor_rollout_ref.actor.megatron.override_transformer_config.recompute_granularity=full
  actor_rollout_ref.actor.megatron.override_transformer_config.recompute_method=uniform
  actor_rollout_ref.actor.megatron.override_transformer_config.recompute_num_layers=1
  # Parameters and Adam's moments of this size leave the GPU while vLLM samples.
  actor_rollout_ref.actor.megatron.param_offload=True
  actor_rollout_ref.actor.megatron.optimizer_offload=True
)

# vLLM shares the GPUs with training, and gives its memory back while the policy is updated.
ROLLOUT=(
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.tensor_model_parallel_size="$ROLLOUT_TP"
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6
)

run python -m verl.trainer.main_ppo --config-name=cast_trainer model_engine=megatron \
  "${ALGORITHM[@]}" "${DATA[@]}" "${MODEL[@]}" "${ACTOR[@]}" "${OBJECTIVE[@]}" "${OPTIMIZER[@]}" \
  "${ROLLOUT[@]}" "${SAMPLING[@]}" "${REWARD[@]}" "${TRAINER[@]}" "$@"
