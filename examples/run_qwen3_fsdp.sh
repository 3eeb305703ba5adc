#!/usr/bin/env bash
# Qwen3 with FSDP2: CAST, GRPO and the other methods of the paper's comparison, on one node of 8 x 80 GB.
#
#   bash examples/run_qwen3_fsdp.sh                          CAST as in the evaluated run (Qwen3-4B, LoRA)
#   SIZE=8b bash examples/run_qwen3_fsdp.sh                  another size: 1.7b, 4b or 8b
#   METHOD=grpo bash examples/run_qwen3_fsdp.sh              its GRPO twin: the advantage differs
#   ABLATION=no_flip bash examples/run_qwen3_fsdp.sh         an ablation of CAST
#   LORA=0 bash examples/run_qwen3_fsdp.sh                   all parameters
#   bash examples/run_qwen3_fsdp.sh trainer.save_freq=50     any of verl's and CAST's settings come last
#
# Install this repository in verl's environment and run prepare_data.py first. paper.sh has the other toggles, the
# methods and the values of the evaluated run. This script has the settings of the model and the engine.
set -euo pipefail

SIZE=${SIZE:-4b}
LORA=${LORA:-1} # 1: LoRA, as in the evaluated run; 0: all parameters
ENGINE=fsdp
case $SIZE in
  1.7b | 4b) ROLLOUT_TP=${ROLLOUT_TP:-1} GPU_MEMORY=0.5 OFFLOAD=False ;;
  # At this size, parameters and Adam's moments leave the GPU while vLLM samples.
  8b) ROLLOUT_TP=${ROLLOUT_TP:-2} GPU_MEMORY=0.6 OFFLOAD=True ;;
  *) echo "$(basename "$0"): SIZE=$SIZE is unknown; use 1.7b, 4b or 8b." >&2 && exit 2 ;;
esac
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-${SIZE^^}}
source "$(dirname "${BASH_SOURCE[0]}")/paper.sh"

MODEL=(
  actor_rollout_ref.model.path="$MODEL_PATH"
  actor_rollout_ref.model.use_remove_padding=True
  actor_rollout_ref.model.enable_gradient_checkpointing=True
)
# vLLM gets the adapter merged into the weights, because verl's adapter sync fails with newer vLLM.
if [ "$LORA" = 1 ]; then
  MODEL+=(
    actor_rollout_ref.model.lora_rank="$LORA_RANK"
    actor_rollout_ref.model.lora_alpha="$LORA_ALPHA"
    actor_rollout_ref.model.target_modules=all-linear
    actor_rollout_ref.model.lora.merge=True
  )
fi

# Arithmetic is bfloat16 on float32 parameters, verl's default. The evaluated run's frozen base was bfloat16.
# verl's FSDP has no linear schedule. The learning rate follows half a cosine between the same two values.
ACTOR=(
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr_scheduler_type=cosine
  actor_rollout_ref.actor.optim.min_lr_ratio="$LR_END_RATIO"
  actor_rollout_ref.actor.fsdp_config.param_offload="$OFFLOAD"
  actor_rollout_ref.actor.fsdp_config.optimizer_offload="$OFFLOAD"
)

train "${MODEL[@]}" "${ACTOR[@]}" -- "$@"
