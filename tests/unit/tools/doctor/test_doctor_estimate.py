"""Laws of the estimates: the teacher's copy takes what the real teacher takes."""

import large_models
import pytest
import tiny
import torch
from doctor_runs import ACTOR, CAST, changed, look
from transformers import AutoConfig

from verl_cast import TeacherConfig
from verl_cast.teacher.weights import build_teacher
from verl_cast.tools.doctor import estimate
from verl_cast.tools.run_config import compose

# These tests do not check the warnings that verl and Megatron emit on import.
pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]


def test_large_models_by_hand():
    """The table in training/README.md: parameters counted by hand, bytes and files from the layout of ranks."""
    lora, full, moe = (large_models.row(name) for name in large_models.RUNS)
    # LoRA: (inputs + outputs) x rank of q, k, v, o, gate, up, down; float32, sharded over 8.
    widths = (2560 + 4096) + 2 * (2560 + 1024) + (4096 + 2560) + 2 * (2560 + 9728) + (9728 + 2560)
    assert lora.memory.trained == 36 * 32 * widths
    assert lora.node_bytes == lora.memory.checkpoint_bytes == 4 * lora.memory.trained
    # All parameters: embedding and head, 36 layers of attention, MLP and norms, the last norm.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    assert full.memory.trained == 2 * 151936 * 4096 + 36 * layer + 4096
    assert full.memory.host_bytes == pytest.approx(4 * full.memory.trained / 8, rel=1e-3)
    assert full.memory.swap_seconds == pytest.approx(4 * full.memory.host_bytes / 25e9)
    # Experts over 8 ranks, the rest over 2; bf16. Of 16 ranks 8 hold distinct shards.
    experts = 48 * 128 * 3 * 2048 * 768
    rest = 2 * 151936 * 2048 + 48 * (2 * 2048 * 4096 + 2 * 2048 * 512 + 2048 * 128 + 2 * 2048 + 2 * 128) + 2048
    assert moe.memory.trained == experts + rest
    assert moe.memory.host_bytes == pytest.approx(2 * (experts / 8 + rest / 2), rel=1e-6)
    assert (moe.memory.shards, moe.memory.checkpoint_bytes) == (8, 8 * moe.memory.host_bytes)


def told(config):
    return {line.label: line.text for line in look(config)["Memory"]}


def test_the_copy_on_host_and_disk_is_told(good_run):
    config = changed(good_run, **{"trainer.save_freq": 5, f"{CAST}.teacher.weights": "snapshot"})
    lines = told(config)
    assert "in 1 file(s)" in lines["checkpoints"] and "saves none" not in lines["checkpoints"]
    assert "teacher.pin_memory=auto" in lines["page-locked"] and "no copy" in lines["page-locked"]
    config = changed(config, **{"trainer.save_freq": -1, f"{CAST}.teacher.pin_memory": False})
    lines = told(config)
    assert "this run saves none" in lines["checkpoints"] and "teacher.pin_memory=False" in lines["page-locked"]


def estimated(config, teacher=TeacherConfig()):  # noqa: B008 (frozen)
    return estimate.memory(config, teacher, AutoConfig.from_pretrained(config.actor_rollout_ref.model.path))


def host_bytes(config, model, **teacher):
    """Host bytes by the doctor's estimate, and those of the real teacher of this model."""
    teacher = TeacherConfig(**teacher)
    has_adapter = estimate.lora_rank(config) > 0
    real = build_teacher(teacher, model, has_adapter, adapter_is_new=True)
    if real.refresh_due(0):
        real.refresh(0)
    if not estimate.needs_copy(config, teacher):
        return 0, real.host_bytes
    return estimated(config, teacher).host_bytes, real.host_bytes


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("weights", ["snapshot", "ema", "initial", "current"])
@pytest.mark.parametrize("rank", [0, 8])
def test_host_memory_is_what_the_teacher_takes(good_run, dtype, weights, rank):
    from peft import LoraConfig, get_peft_model

    config = changed(
        good_run,
        **{"actor_rollout_ref.model.lora_rank": rank, f"{ACTOR}.fsdp_config.model_dtype": dtype},
    )
    model = tiny.model()
    if rank:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"))
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    expected, found = host_bytes(config, model, weights=weights)
    assert expected == found
    assert (found == 0) == (weights == "current" or (weights == "initial" and rank > 0))


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_host_memory_follows_fsdp2s_shards(good_run, num_ranks):
    """FSDP2 splits the first dimension into chunks. The first rank has the largest one."""
    config = changed(good_run, **{"trainer.n_gpus_per_node": num_ranks})
    found = estimated(config)
    first = [parameter.chunk(num_ranks)[0].numel() for parameter in tiny.model().parameters()]
    assert found.exact and found.host_bytes == 4 * sum(first) and found.ranks == num_ranks
    one_of_two_replicas = changed(config, **{f"{ACTOR}.fsdp_config.fsdp_size": 1})
    assert estimated(one_of_two_replicas).host_bytes == 4 * sum(
        parameter.numel() for parameter in tiny.model().parameters()
    )


def test_host_memory_under_megatron_follows_model_parallelism(good_run):
    """Data parallelism shards only the optimizer state, so the teacher's copy stays whole."""
    model = good_run.actor_rollout_ref.model.path
    config = compose(["model_engine=megatron", "trainer.n_gpus_per_node=8", f"actor_rollout_ref.model.path={model}"])
    total = 2 * sum(parameter.numel() for parameter in tiny.model().parameters())

    def found(**settings):
        settings = {f"{ACTOR}.megatron.{key}": value for key, value in settings.items()}
        memory = estimated(changed(config, **settings))
        assert not memory.exact
        return memory.host_bytes

    assert found() == total
    assert found(tensor_model_parallel_size=2, pipeline_model_parallel_size=2) == total // 4
