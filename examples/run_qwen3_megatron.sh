#!/usr/bin/env bash
# Qwen3 with Megatron: CAST, GRPO and the other methods of the paper's comparison, on one node of 8 x 80 GB.
#
#   bash examples/run_qwen3_megatron.sh                          CAST (Qwen3-4B, all parameters)
#   SIZE=8b bash examples/run_qwen3_megatron.sh                  another size: 4b or 8b
#   METHOD=grpo bash examples/run_qwen3_megatron.sh              its GRPO twin: the advantage differs
#   ABLATION=no_flip bash examples/run_qwen3_megatron.sh         an ablation of CAST
#   bash examples/run_qwen3_megatron.sh trainer.save_freq=50     any of verl's and CAST's settings come last
#
# Install this repository in verl's environment for Megatron (with Megatron-Bridge and TransformerEngine) and run
# prepare_data.py first. paper.sh has the other toggles, the methods and the values of the evaluated run. This script
# has the settings of the model and the engine.
set -euo pipefail

SIZE=${SIZE:-4b}
LORA=${LORA:-0} # 0: all parameters; 1: LoRA, see below
ENGINE=megatron
# TP: the number of GPUs that share a layer in training.
case $SIZE in
  4b) TP=${TP:-2} ROLLOUT_TP=${ROLLOUT_TP:-1} GPU_MEMORY=0.5 OFFLOAD=False ;;
  # At this size, parameters and Adam's moments leave the GPU while vLLM samples.
  8b) TP=${TP:-4} ROLLOUT_TP=${ROLLOUT_TP:-2} GPU_MEMORY=0.6 OFFLOAD=True ;;
  *) echo "$(basename "$0"): SIZE=$SIZE is unknown; use 4b or 8b." >&2 && exit 2 ;;
esac
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-${SIZE^^}}
source "$(dirname "${BASH_SOURCE[0]}")/paper.sh"

MODEL=(
  actor_rollout_ref.model.path="$MODEL_PATH"
)
# The evaluated run trained an adapter. verl's LoRA for Megatron uses Megatron-Bridge, which needs a GPU and adapts all
# linear layers by default. LORA=1 composes but has never run. So the default is to train all parameters.
if [ "$LORA" = 1 ]; then
  MODEL+=(
    actor_rollout_ref.model.lora.rank="$LORA_RANK"
    actor_rollout_ref.model.lora.alpha="$LORA_ALPHA"
    actor_rollout_ref.model.lora.merge=True
  )
fi

# bfloat16 with float32 master weights in the distributed optimizer. Activations are recomputed. The learning rate falls
# linearly, as in the evaluated run.
ACTOR=(
  actor_rollout_ref.actor.optim.lr_decay_style=linear
  actor_rollout_ref.actor.optim.min_lr="$LR_END"
  actor_rollout_ref.actor.megatron.tensor_model_parallel_size="$TP"
  actor_rollout_ref.actor.megatron.override_transformer_config.recompute_granularity=full
  actor_rollout_ref.actor.megatron.override_transformer_config.recompute_method=uniform
  actor_rollout_ref.actor.megatron.override_transformer_config.recompute_num_layers=1
  actor_rollout_ref.actor.megatron.param_offload="$OFFLOAD"
  actor_rollout_ref.actor.megatron.optimizer_offload="$OFFLOAD"
)

train model_engine=megatron "${MODEL[@]}" "${ACTOR[@]}" -- "$@"
