"""Laws of the memory that the doctor tells: the teacher's copy takes what the real teacher takes."""

import pytest
import tiny
import torch
from doctor_runs import ACTOR, CAST, changed
from transformers import AutoConfig, Qwen3MoeConfig

from verl_cast import TeacherConfig
from verl_cast.config.methods import cast_config
from verl_cast.teacher.weights import build_teacher
from verl_cast.tools.doctor import memory
from verl_cast.tools.run_config import compose

PARAMETERS = sum(parameter.numel() for parameter in tiny.model().parameters())
MODEL = "actor_rollout_ref.model"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("weights", ["snapshot", "ema", "initial"])
def test_host_memory_is_what_the_teacher_takes(good_run, dtype, weights):
    config, teacher = changed(good_run, **{f"{ACTOR}.fsdp_config.model_dtype": dtype}), TeacherConfig(weights=weights)
    real = build_teacher(teacher, tiny.model().to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]))
    if real.refresh_due(0):
        real.refresh(0)
    hf_config = AutoConfig.from_pretrained(config.actor_rollout_ref.model.path)
    assert memory.host_bytes(config, teacher, hf_config) == (real.host_bytes, 1)


def test_host_memory_follows_the_shards(good_run):
    """FSDP shards over its own ranks; Megatron over model parallelism only, and experts over expert parallelism."""
    teacher, path = TeacherConfig(), good_run.actor_rollout_ref.model.path
    hf_config = AutoConfig.from_pretrained(path)
    eight = changed(good_run, **{"trainer.n_gpus_per_node": 8})
    assert memory.host_bytes(eight, teacher, hf_config) == (pytest.approx(4 * PARAMETERS / 8, abs=4), 8)
    replicas = changed(eight, **{f"{ACTOR}.fsdp_config.fsdp_size": 2})
    assert memory.host_bytes(replicas, teacher, hf_config) == (pytest.approx(2 * PARAMETERS, abs=4), 2)
    config = compose(["model_engine=megatron", "trainer.n_gpus_per_node=8", f"{MODEL}.path={path}"])
    assert memory.host_bytes(config, teacher, hf_config) == (2 * PARAMETERS, 1)
    sizes = {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 8, "expert_tensor_parallel_size": 1}
    config = changed(config, **{f"{ACTOR}.megatron.{key}": value for key, value in sizes.items()})
    shape = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 32}
    experts = 2 * 8 * 3 * 64 * 32
    rest = 2 * 100 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 64 * 8 + 2 * 64 + 2 * 16) + 64
    hf_config = Qwen3MoeConfig(**shape, tie_word_embeddings=False, architectures=["Qwen3MoeForCausalLM"])
    assert memory.host_bytes(config, teacher, hf_config) == (pytest.approx(2 * (experts / 8 + rest / 2), abs=2), 8)


def test_the_copy_on_host_and_disk_is_told(good_run):
    def told(**settings):
        config = changed(good_run, **settings)
        return {line.label: line.text for line in memory.check(config, cast_config(config).teacher, hf_config)}

    hf_config = AutoConfig.from_pretrained(good_run.actor_rollout_ref.model.path)
    whole = f"about {4 * PARAMETERS / 2**20:.1f} MiB"
    lines = told(**{"trainer.save_freq": 5})
    assert lines["host memory"].startswith(f"{whole} on each rank, {whole.removeprefix('about ')} a node")
    assert lines["checkpoints"] == f"{whole} more in each, in 1 file(s)"
    assert told(**{"trainer.save_freq": -1})["checkpoints"].endswith("; this run saves none")
    current = told(**{f"{CAST}.teacher.weights": "current"})
    assert current == {"host memory": "none: teacher.weights=current needs no copy"}
    adapter = {f"{MODEL}.lora_rank": 8}
    assert told(**adapter)["host memory"].startswith("a copy of the adapter on every rank")
    assert told(**adapter, **{f"{CAST}.teacher.weights": "initial"})["host memory"].startswith("none")
