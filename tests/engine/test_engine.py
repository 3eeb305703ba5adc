"""Laws of the self-teacher on verl's real actor worker: FSDP2, FSDP1 and Megatron, on 1 and 2 ranks.

Each test reports one law of tests/support/engine_laws.py in one layout. A fault on one rank changes no policy.
"""

import functools

import pytest
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

# name: (engine, number of ranks, overrides)
LAYOUTS = {
    "fsdp2-1": ("fsdp2", 1, []),
    # Parameters stay gathered after a forward, so the next forward would miss a swap of the shards alone.
    "fsdp2-2-gathered": ("fsdp2", 2, [f"{FSDP}.reshard_after_forward=False"]),
    "fsdp2-2-lora": ("fsdp2", 2, LORA),
    "fsdp2-2-bf16": ("fsdp2", 2, FSDP_BF16),
    "fsdp2-2-ulysses": ("fsdp2", 2, [*PACKED, f"{FSDP}.ulysses_sequence_parallel_size=2"]),
    "fsdp-2-offload": ("fsdp", 2, [f"{FSDP}.param_offload=True", f"{FSDP}.optimizer_offload=True"]),
    "fsdp-2-bf16": ("fsdp", 2, FSDP_BF16),
    # verl's eval_mode() then reshards at its exit, which FSDP1 can do only after its own set-up.
    "fsdp-2-sharded": ("fsdp", 2, [f"{FSDP}.fsdp_size=2"]),
    "fsdp-2-original-parameters": ("fsdp", 2, [f"{FSDP}.fsdp_size=2", f"{FSDP}.use_orig_params=True"]),
    # Hybrid sharding: replicas of the shards. FSDP1 needs two shards for it (checks/run.py refuses one).
    "fsdp-4-hybrid": ("fsdp", 4, [f"{FSDP}.fsdp_size=2"]),
    "fsdp2-2-hybrid": ("fsdp2", 2, [f"{FSDP}.fsdp_size=1"]),
    "megatron-1-offload": ("megatron", 1, [f"{MCORE}.param_offload=True", f"{MCORE}.optimizer_offload=True"]),
    # The parameters are bf16. The distributed optimizer updates float32 copies, half of them on each rank.
    "megatron-2-data-parallel-bf16": ("megatron", 2, [f"{MCORE}.dtype=bfloat16"]),
    "megatron-2-tensor-parallel": ("megatron", 2, TENSOR_PARALLEL),
    "megatron-2-virtual-pipeline": ("megatron", 2, PIPELINE),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("engine")
    tiny.write_for_engine_laws(path)
    return path


@pytest.fixture(scope="module")
def outputs_of(warm_process, directory):
    """outputs_of(layout): the output of each rank. A layout runs once for all laws."""

    @functools.cache
    def run(layout: str) -> list[str]:
        engine, world_size, overrides = LAYOUTS[layout]
        arguments = [directory, engine, *overrides]
        return warm_process.run("engine_laws", world_size, arguments, logs=directory, may_fail=True)

    return run


@pytest.mark.timeout(300)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_law(outputs_of, layout, law):
    for rank, output in enumerate(outputs_of(layout)):
        if f"law {law}: holds" in output:
            continue
        broken = next(name for name in LAWS if f"law {name}: holds" not in output)
        if broken != law:
            pytest.fail(f"not reached on rank {rank}: {broken} failed before it")
        pytest.fail(f"rank {rank}: {output[-5000:]}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "engine, point, overrides",
    [
        ("fsdp2", "before", []),
        ("fsdp2", "within", []),
        ("fsdp2", "after", []),
        ("fsdp2", "saving", []),
        ("megatron", "within", TENSOR_PARALLEL),
    ],
)
def test_a_fault_on_one_rank_leaves_every_policy_as_it_was(warm_process, directory, engine, point, overrides):
    outputs = warm_process.run("engine_faults", 2, [directory, engine, point, *overrides], logs=directory)
    assert all("the policy is as it was" in output for output in outputs)
