"""The laws of the self-teacher on verl's real actor worker (engine_laws.py): FSDP2, FSDP1, Megatron; 1 and 2 ranks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

SUPPORT = Path(__file__).parent / "support"
MODEL, FSDP = "actor_rollout_ref.model", "actor_rollout_ref.actor.fsdp_config"
LORA = [f"{MODEL}.lora_rank=4", f"{MODEL}.lora_alpha=8", f"{MODEL}.target_modules=all-linear"]
PACKED = [
    f"{MODEL}.use_remove_padding=True",
    f"{MODEL}.enable_gradient_checkpointing=True",
    "actor_rollout_ref.actor.use_dynamic_bsz=True",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=128",
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=160",
]


MCORE = "actor_rollout_ref.actor.megatron"
TENSOR_PARALLEL = [f"{MCORE}.tensor_model_parallel_size=2"]  # sequence parallelism is on with it
PIPELINE = [f"{MCORE}.pipeline_model_parallel_size=2", f"{MCORE}.virtual_pipeline_model_parallel_size=2"]
FSDP_BF16 = [f"+{FSDP}.mixed_precision={{param_dtype:bf16,reduce_dtype:fp32,buffer_dtype:fp32}}"]
OFFLOAD = [f"{MCORE}.param_offload=True", f"{MCORE}.optimizer_offload=True"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("engine")
    tiny.write(path)
    tiny.model(num_layers=4).save_pretrained(path / "model")  # two pipeline stages of two chunks each
    (path / "context.jinja").write_text(
        '{% set shown = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1."}] %}'
        "{{ apply_chat_template(shown + messages) }}"
    )
    return path


def run_ranks(
    directory: Path, engine: str, world_size: int, *arguments: str, script: str = "engine_laws.py"
) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [directory / f"ranks_{port}_{rank}.log" for rank in range(world_size)]
    ranks = []
    try:
        for rank, log in enumerate(logs):
            environment = {"VERL_PLATFORM": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks.append(
                subprocess.Popen(
                    [sys.executable, str(SUPPORT / script), str(directory), engine, *arguments],
                    env={**os.environ, **environment, "RANK": str(rank), "WORLD_SIZE": str(world_size)},
                    stdout=log.open("w"),
                    stderr=subprocess.STDOUT,
                )
            )
        for rank in ranks:
            rank.wait(timeout=280)
    finally:
        for rank in ranks:
            rank.kill()  # nothing where it has ended
    outputs = [log.read_text() for log in logs]
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output[-5000:]
    return outputs


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "engine, world_size, overrides",
    [
        pytest.param("fsdp2", 1, [], id="fsdp2-1"),
        # parameters stay gathered after a forward: a swap of the shards alone would go unnoticed
        pytest.param("fsdp2", 2, [f"{FSDP}.reshard_after_forward=False"], id="fsdp2-2-gathered"),
        pytest.param("fsdp2", 2, LORA, id="fsdp2-2-lora"),
        pytest.param("fsdp2", 2, FSDP_BF16, id="fsdp2-2-bf16"),
        pytest.param("fsdp2", 2, [*PACKED, f"{FSDP}.ulysses_sequence_parallel_size=2"], id="fsdp2-2-ulysses"),
        pytest.param("fsdp", 2, [f"{FSDP}.param_offload=True", f"{FSDP}.optimizer_offload=True"], id="fsdp-2-offload"),
        pytest.param("fsdp", 2, FSDP_BF16, id="fsdp-2-bf16"),
        pytest.param("megatron", 1, OFFLOAD, id="megatron-1-offload"),
        # bf16 parameters, of which the distributed optimizer steps float32 copies: half of them on each rank
        pytest.param("megatron", 2, [f"{MCORE}.dtype=bfloat16"], id="megatron-2-data-parallel-bf16"),
        pytest.param("megatron", 2, TENSOR_PARALLEL, id="megatron-2-tensor-parallel"),
        pytest.param("megatron", 2, PIPELINE, id="megatron-2-virtual-pipeline"),
    ],
)
def test_laws_of_the_self_teacher(directory, engine, world_size, overrides):
    run_ranks(directory, engine, world_size, *overrides)


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
def test_a_fault_on_one_rank_leaves_every_policy_as_it_was(directory, engine, point, overrides):
    outputs = run_ranks(directory, engine, 2, f"--fault={point}", *overrides)
    assert all("the policy is as it was" in output for output in outputs)
