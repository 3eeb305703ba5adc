"""Laws of the self-teacher on verl's real actor worker: FSDP2, FSDP1 and Megatron, dense and MoE, on 1 to 4 ranks.

Each test reports one law of tests/support/engine_laws.py in one layout. The ranks of a layout run once, for all laws
that were selected: -k takes the name of a layout and words of a law. A fault on one rank changes no policy.
"""

import functools
import re

import pytest
import ranks
import tiny
from engine_laws import LAWS

MODEL, FSDP = "actor_rollout_ref.model", "actor_rollout_ref.actor.fsdp_config"
MCORE = "actor_rollout_ref.actor.megatron"
LORA = [f"{MODEL}.lora_rank=4", f"{MODEL}.lora_alpha=8", f"{MODEL}.target_modules=all-linear"]
PACKED = [
    f"{MODEL}.use_remove_padding=True",
    f"{MODEL}.enable_gradient_checkpointing=True",
    "actor_rollout_ref.actor.use_dynamic_bsz=True",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=128",
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=160",
]
TENSOR_PARALLEL = [f"{MCORE}.tensor_model_parallel_size=2"]  # this turns on sequence parallelism too
PIPELINE = [f"{MCORE}.pipeline_model_parallel_size=2", f"{MCORE}.virtual_pipeline_model_parallel_size=2"]
FSDP_BF16 = [f"+{FSDP}.mixed_precision={{param_dtype:bf16,reduce_dtype:fp32,buffer_dtype:fp32}}"]

# name: (model, engine, number of ranks, overrides)
LAYOUTS = {
    "fsdp2-1-tied-embeddings-and-bos": ("tied-with-bos", "fsdp2", 1, []),
    # Parameters stay gathered after a forward, so the next forward would miss a swap of the shards alone.
    "fsdp2-2-gathered-moe": ("moe", "fsdp2", 2, [f"{FSDP}.reshard_after_forward=False"]),
    "fsdp2-2-lora": ("qwen3", "fsdp2", 2, LORA),
    "fsdp2-2-bf16": ("qwen3", "fsdp2", 2, FSDP_BF16),
    "fsdp2-2-ulysses": ("qwen3", "fsdp2", 2, [*PACKED, f"{FSDP}.ulysses_sequence_parallel_size=2"]),
    "fsdp-2-offload": ("qwen3", "fsdp", 2, [f"{FSDP}.param_offload=True", f"{FSDP}.optimizer_offload=True"]),
    "fsdp-2-bf16": ("qwen3", "fsdp", 2, FSDP_BF16),
    # verl's eval_mode() then reshards at its exit, which FSDP1 can do only after its own set-up.
    "fsdp-2-sharded": ("qwen3", "fsdp", 2, [f"{FSDP}.fsdp_size=2"]),
    "fsdp-2-original-parameters": ("qwen3", "fsdp", 2, [f"{FSDP}.fsdp_size=2", f"{FSDP}.use_orig_params=True"]),
    # Hybrid sharding: replicas of the shards. FSDP1 needs two shards for it (checks/run.py refuses one).
    "fsdp-4-hybrid": ("qwen3", "fsdp", 4, [f"{FSDP}.fsdp_size=2"]),
    "fsdp2-2-hybrid-mrope": ("mrope", "fsdp2", 2, [f"{FSDP}.fsdp_size=1"]),
    "megatron-1-offload": ("qwen3", "megatron", 1, [f"{MCORE}.param_offload=True", f"{MCORE}.optimizer_offload=True"]),
    # The parameters are bf16. The distributed optimizer updates float32 copies, half of them on each rank.
    "megatron-2-data-parallel-bf16": ("qwen3", "megatron", 2, [f"{MCORE}.dtype=bfloat16"]),
    "megatron-2-tensor-parallel": ("qwen3", "megatron", 2, TENSOR_PARALLEL),
    "megatron-2-virtual-pipeline": ("qwen3-4-layers", "megatron", 2, PIPELINE),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """directories(model): what a layout with this model reads."""

    @functools.cache
    def write(model: str):
        path = tmp_path_factory.mktemp(model)
        tiny.write_for_engine_laws(path, model)
        return path

    return write


def title(law: str) -> str:
    """The first sentence of a law."""
    return re.split(r"\.\s|\.$", LAWS[law].__doc__)[0]


@pytest.fixture(scope="module")
def outputs_of(request, directories):
    """outputs_of(layout): the output of each rank."""
    calls = [item.callspec.params for item in request.session.items if item.originalname == "test_law"]

    @functools.cache
    def run(layout: str) -> list[str]:
        model, engine, world_size, overrides = LAYOUTS[layout]
        directory = directories(model)
        selected = [name for name in LAWS if {"layout": layout, "law": name} in calls]
        arguments = [directory, engine, ",".join(selected), *overrides]
        return ranks.run("engine_laws", world_size, arguments, logs=directory, may_fail=True)

    return run


@pytest.mark.timeout(300)
@pytest.mark.parametrize("law", LAWS, ids=title)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_law(outputs_of, layout, law):
    for rank, output in enumerate(outputs_of(layout)):
        if f"law {law}: holds" in output:
            continue
        if f"law {law}: begins" not in output:
            pytest.fail(f"not reached on rank {rank}: another law failed before it")
        pytest.fail(f"rank {rank}: {output[-5000:]}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "engine, point, overrides",
    [
        ("fsdp2", "before", []),
        ("fsdp2", "within", []),
        ("fsdp2", "after", []),
        ("fsdp2", "saving", []),
        ("fsdp2", "saving a marker", []),
        ("megatron", "within", TENSOR_PARALLEL),
    ],
)
def test_a_fault_on_one_rank_leaves_every_policy_as_it_was(directories, engine, point, overrides):
    directory = directories("qwen3")
    outputs = ranks.run("engine_faults", 2, [directory, engine, point, *overrides], logs=directory)
    assert all("the policy is as it was" in output for output in outputs)
