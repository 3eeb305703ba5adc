"""What CAST adds to runs of large models, by the doctor's own estimate: `python tests/benchmarks/large_models.py`.

No weight is loaded and no GPU is needed. The sizes of the models are those of their published configs. The teacher is
the default one, a snapshot every 10 steps.
"""

from typing import NamedTuple

from omegaconf import DictConfig
from transformers import PretrainedConfig, Qwen3Config, Qwen3MoeConfig

from verl_cast.config.methods import cast_config
from verl_cast.tools.doctor import estimate
from verl_cast.tools.run_config import compose

ACTOR, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"
MCORE = f"{ACTOR}.megatron"
COMMON = ("algorithm.adv_estimator=cast", "actor_rollout_ref.rollout.n=8", "data.train_batch_size=128")
ONE_UPDATE = (*COMMON, f"{ACTOR}.ppo_mini_batch_size=128")

QWEN3_4B = Qwen3Config(
    vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, tie_word_embeddings=True
)
QWEN3_8B = Qwen3Config(
    vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, tie_word_embeddings=False
)
for dense in (QWEN3_4B, QWEN3_8B):
    dense.update({"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128})
    dense.architectures = ["Qwen3ForCausalLM"]
QWEN3_30B_A3B = Qwen3MoeConfig(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    tie_word_embeddings=False,
    architectures=["Qwen3MoeForCausalLM"],
)

# name: (the model's config, overrides)
RUNS: dict[str, tuple[PretrainedConfig, tuple[str, ...]]] = {
    "Qwen3-4B, LoRA rank 32, 8 GPUs, FSDP2": (
        QWEN3_4B,
        (
            f"{ACTOR}.strategy=fsdp2",
            f"{MODEL}.lora_rank=32",
            f"{MODEL}.target_modules=all-linear",
            "trainer.n_gpus_per_node=8",
        ),
    ),
    "Qwen3-8B, all parameters, 8 GPUs, FSDP2": (
        QWEN3_8B,
        (f"{ACTOR}.strategy=fsdp2", "trainer.n_gpus_per_node=8"),
    ),
    "Qwen3-30B-A3B, 16 GPUs, Megatron TP 2, PP 1, EP 8": (
        QWEN3_30B_A3B,
        (
            "model_engine=megatron",
            f"{MCORE}.tensor_model_parallel_size=2",
            f"{MCORE}.expert_model_parallel_size=8",
            f"{MCORE}.expert_tensor_parallel_size=1",
            f"{MCORE}.param_offload=True",
            "trainer.n_gpus_per_node=8",
            "trainer.nnodes=2",
        ),
    ),
}


class Row(NamedTuple):
    memory: estimate.Memory
    node_bytes: int


def row(name: str) -> Row:
    model, overrides = RUNS[name]
    config: DictConfig = compose([*ONE_UPDATE, *overrides])
    memory = estimate.memory(config, cast_config(config).teacher, model)
    return Row(memory, memory.host_bytes * config.trainer.n_gpus_per_node)


def main() -> None:
    print("| run | trained parameters | host memory a rank / a node | teacher in a checkpoint | swap |")
    print("|---|---|---|---|---|")
    for name in RUNS:
        memory, node_bytes = row(name)
        print(
            f"| {name} | {memory.trained / 1e9:.3f} billion, {str(memory.dtype).removeprefix('torch.')} | "
            f"{memory.host_bytes / 1e9:.2f} / {node_bytes / 1e9:.1f} GB | "
            f"{memory.checkpoint_bytes / 1e9:.1f} GB in {memory.shards} files | {memory.swap_seconds:.2g} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
