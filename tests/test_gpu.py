"""What only a GPU can show; skipped without one. Needs torch and transformers, not verl.

The self-teacher on FSDP2 and FSDP1 in bf16 mixed precision on CUDA: exact swap and restore, pinned host copy, no second
set of parameters on the accelerator. And the advantages on CUDA equal those on the CPU.
"""

import os

import numpy as np
import pytest
import reference
import torch

from verl_cast import CastConfig, TeacherConfig
from verl_cast.advantage import compute_cast_advantage, shape_advantage

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def process_group():
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577", RANK="0", WORLD_SIZE="1")
    dist.init_process_group("cpu:gloo,cuda:nccl")
    torch.cuda.set_device(0)
    yield dist.device_mesh.init_device_mesh("cuda", (1,))
    dist.destroy_process_group()


def sharded_model(strategy, mesh):
    """A Qwen3 of about 0.3 B parameters with float32 shards and bf16 computation, as verl shards it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).float()
    if strategy == "fsdp2":
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        model.cuda()
        kwargs = dict(
            mesh=mesh,
            mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
            reshard_after_forward=True,
        )
        for layer in model.model.layers:
            fully_shard(layer, **kwargs)
        return fully_shard(model, **kwargs)
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

    return FullyShardedDataParallel(
        model,
        device_id=0,
        device_mesh=mesh,
        mixed_precision=MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
        use_orig_params=False,
    )


@torch.no_grad()
def log_probs(model, ids):
    return torch.log_softmax(model(input_ids=ids).logits.float() / 0.7, -1)[:, :-1].gather(-1, ids[:, 1:, None])


@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp"])
def test_swap_is_exact_and_takes_no_accelerator_memory(process_group, strategy, capsys):
    from verl_cast.self_teacher import SelfTeacher, trainable_shards

    model = sharded_model(strategy, process_group)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, 32_000, (4, 256), device="cuda")
    teacher = SelfTeacher(TeacherConfig(), model)
    teacher.refresh(0)
    assert all(tensor.is_pinned() for tensor in teacher._host.values())
    of_snapshot = log_probs(model, ids)

    def step():
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    teacher.policy_moved()
    of_policy = log_probs(model, ids)
    before = {name: tensor.clone() for name, tensor in trainable_shards(model).items()}
    torch.cuda.synchronize()

    torch.cuda.reset_peak_memory_stats()
    log_probs(model, ids)
    peak_without = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with teacher.swapped_in():
        of_teacher = log_probs(model, ids)
    peak_with = torch.cuda.max_memory_allocated()

    assert torch.equal(of_teacher, of_snapshot) and not torch.equal(of_teacher, of_policy)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainable_shards(model).items())
    assert torch.equal(log_probs(model, ids), of_policy)
    with pytest.raises(RuntimeError, match="injected"), teacher.swapped_in():
        log_probs(model, ids)
        raise RuntimeError("injected")
    assert all(torch.equal(before[name], tensor) for name, tensor in trainable_shards(model).items())
    # one parameter's worth of room at most, and that before the forward has taken its own
    assert peak_with <= 1.01 * peak_without
    with capsys.disabled():
        mib = 2**20
        print(
            f"\n{strategy}: host copy {teacher.host_bytes / mib:.0f} MiB pinned, peak of a forward "
            f"{peak_without / mib:.0f} MiB, with the swap {peak_with / mib:.0f} MiB ({peak_with / peak_without:.4f})"
        )


@pytest.mark.parametrize("flip", ["both", "correct", "wrong", "none"])
def test_advantages_on_cuda_equal_the_reference(flip):
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(200_000, generator=generator).double()
    gap = (
        torch.randn(200_000, generator=generator) * 10 ** (6 * torch.rand(200_000, generator=generator) - 5)
    ).double()
    expected = torch.tensor(
        [reference.token(b, g, flip=flip) for b, g in zip(base.tolist(), gap.tolist(), strict=True)],
        dtype=torch.float64,
    )
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        got, _ = shape_advantage(
            base.to("cuda", dtype).unsqueeze(0), gap.to("cuda", dtype).unsqueeze(0), CastConfig(flip=flip)
        )
        torch.testing.assert_close(got.squeeze(0).double().cpu(), expected, rtol=tolerance, atol=tolerance)


def test_whole_estimator_on_cuda_equals_the_cpu():
    generator = torch.Generator().manual_seed(2)
    rows, length = 512, 1024
    rewards = torch.zeros(rows, length)
    rewards[:, -1] = (torch.rand(rows, generator=generator) < 0.4).float()
    mask = (torch.rand(rows, length, generator=generator) < 0.9).long()
    old, teacher = (-torch.rand(rows, length, generator=generator) for _ in range(2))
    index = np.array([f"uid{i // 8}" for i in range(rows)], dtype=object)
    on_cpu, _ = compute_cast_advantage(rewards, mask, index, old, teacher, CastConfig())
    on_gpu, _ = compute_cast_advantage(
        *(t.cuda() for t in (rewards, mask)), index, old.cuda(), teacher.cuda(), CastConfig()
    )
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=2e-6, atol=1e-6)
