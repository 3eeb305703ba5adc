"""verl without an accelerator: the platform works with the installed verl and vLLM, and refuses changed seams.

A failed weight transfer reaches the sender with its reason. Settings that cannot work on a CPU are refused.
"""

import asyncio
import copy
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import types
import uuid
from concurrent.futures import Future

import pytest
import torch
from forks import Fork, changed_seam, good_config, print_report, report_of, results_of
from omegaconf import OmegaConf

from verl_cast.platform import is_cpu
from verl_cast.platform.cpu_config import REQUIREMENTS, check_config
from verl_cast.platform.expect import SeamChanged, expect_mentions, expect_parameters

pytestmark = pytest.mark.timeout(180)
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


# ------------------------------------------------------------------------------------------------------ the seams


def test_changed_signature_or_body_is_refused_by_name():
    class Loader:
        def load(self, path):
            return self.opener("name", path)

    module = types.ModuleType("some.library")
    module.load = lambda path, strict: None
    assert expect_parameters(module, "load", ["path", "strict"]) is module.load
    with pytest.raises(SeamChanged, match=r"some\.library\.load to take \(path\); .* has \(path, strict\)"):
        expect_parameters(module, "load", ["path"])
    with pytest.raises(SeamChanged, match=r"some\.library\.gone to exist"):
        expect_parameters(module, "gone", [])
    expect_mentions(Loader, "load", "opener", "name")
    with pytest.raises(SeamChanged, match=r"Loader\.load to use closer"):
        expect_mentions(Loader, "load", "opener", "closer")


# ------------------------------------------------------------------------------------ probes (in the child process)


def probe_install():
    """What `import verl` alone has done, before any other import."""
    from verl_cast.platform import cpu, vllm

    heavy = {"vllm", "verl.workers.engine.base", "verl.workers.rollout.vllm_rollout.vllm_rollout"} & set(sys.modules)
    cpu.install()
    cpu.install()
    from verl.plugin.platform import get_platform

    finders = [finder for finder in sys.meta_path if isinstance(finder, vllm.VllmDistributionName)]
    return {
        "heavy": sorted(heavy),
        "platform": type(get_platform()).__name__,
        "finders": len(finders),
        "kv cache": get_platform().rollout_env_vars(),
        "departures": [name for name, _ in cpu.DEPARTURES],
    }


def probe_device():
    from verl.utils.device import get_device_id, get_device_name, get_nccl_backend
    from verl.utils.memory_utils import aggressive_empty_cache, get_memory_info, reset_memory_stats
    from verl.utils.profiler.performance import _get_current_mem_info

    aggressive_empty_cache()
    reset_memory_stats()
    get_memory_info()
    allocated, reserved, used, total = _get_current_mem_info()
    return {
        "allocated": allocated,
        "reserved": reserved,
        "used below total": 0 < float(used) < float(total),
        "names": [str(torch.ones(1).to(get_device_id()).device), get_device_name(), get_nccl_backend()],
    }


def probe_vllm_name():
    from verl.utils.vllm.utils import is_version_ge

    return {
        "version": importlib.metadata.version("vllm"),
        "enough for verl": is_version_ge("vllm", "0.18.0"),
        "listed": sum(d.name == "vllm" for d in importlib.metadata.distributions()),
    }


def probe_engines():
    from verl.workers.engine.base import EngineRegistry

    return [EngineRegistry.get_engine_cls("language_model", backend).__name__ for backend in ("fsdp", "fsdp2")]


def probe_process_group():
    """Starts the process group through the name that the actor worker imported."""
    from verl.workers import engine_workers

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    engine_workers.initialize_global_process_group_ray()
    total = torch.ones(2)
    torch.distributed.all_reduce(total)
    return [torch.distributed.get_backend(), total.tolist()]


def probe_offloaded_reference():
    """verl's reference policies, with FSDP2 and with FSDP1, give the same outputs as the plain module."""
    from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel, fully_shard
    from verl.workers.engine.fsdp import transformer_impl

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    stock = torch.nn.Linear(8, 4)
    x = torch.randn(2, 8)
    expected = stock(x)
    fsdp2 = fully_shard(copy.deepcopy(stock), offload_policy=transformer_impl.CPUOffloadPolicy(pin_memory=True))
    offload, device = CPUOffload(offload_params=True), torch.device("cpu")
    fsdp1 = FullyShardedDataParallel(copy.deepcopy(stock), cpu_offload=offload, device_id=device)
    return [torch.equal(module(x), expected) for module in (fsdp2, fsdp1)]


SEQUENCES = (5, 4, 3)  # packed into one row, which is split in the middle of the second sequence


def probe_sequence_parallel(rank: int, path: str):
    """Two ranks have half a row each. Returns their largest error against attention on each sequence alone."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from verl.utils import ulysses

    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    ulysses.set_ulysses_sequence_parallel_group(torch.distributed.group.WORLD)
    generator = torch.Generator().manual_seed(0)
    length = sum(SEQUENCES)
    whole = [torch.randn(1, heads, length, 8, generator=generator).requires_grad_() for heads in (4, 2, 2)]
    positions = torch.cat([torch.arange(n) for n in SEQUENCES])[None]

    parts = zip(*(tensor.split(SEQUENCES, dim=2) for tensor in whole), strict=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    expected = torch.cat([attention(*part, is_causal=True, enable_gqa=True) for part in parts], dim=2).transpose(1, 2)
    weight = torch.randn(expected.shape, generator=generator)
    gradients = torch.autograd.grad((expected * weight).sum(), whole)

    mine = slice(rank * length // 2, (rank + 1) * length // 2)
    shards = [tensor.detach()[:, :, mine].requires_grad_() for tensor in whole]
    layer = types.SimpleNamespace(num_key_value_groups=2, is_causal=True)
    output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](layer, *shards, None, scaling=8**-0.5, position_ids=positions[:, mine])
    found = torch.autograd.grad((output * weight[:, mine]).sum(), shards)
    pairs = [(output, expected[:, mine])]
    pairs += [(g, whole_gradient[:, :, mine]) for g, whole_gradient in zip(found, gradients, strict=True)]
    return max((a - b).abs().max().item() for a, b in pairs)


def probe_gloo_transfer():
    """One transfer from two actor ranks to one standalone rollout. Only the first rank sends."""
    from verl.checkpoint_engine.base import CheckpointEngineRegistry

    engines = [CheckpointEngineRegistry.new("gloo", bucket_size=1, is_master=i == 0) for i in range(3)]
    metadata = [engine.prepare() for engine in engines]
    arguments = type(engines[0]).build_topology(2, 1, metadata)
    ranks = [
        {name: values[i] for name, values in kwargs.items()} for kwargs in arguments for i in range(len(kwargs["rank"]))
    ]
    weights = {"matrix": torch.randn(3, 4).T, "half": torch.randn(5).bfloat16(), "scalar": torch.tensor(2.0)}
    received = {}

    async def receive():
        async for name, weight in engines[2].receive_weights():
            received[name] = weight

    async def transfer():
        await asyncio.gather(
            *(asyncio.to_thread(e.init_process_group, **r) for e, r in zip(engines, ranks, strict=True))
        )
        await asyncio.gather(*(engine.send_weights(iter(weights.items())) for engine in engines[:2]), receive())

    asyncio.run(transfer())
    for engine in engines:
        engine.finalize()
    same = [
        torch.equal(received[name], weight) and received[name].dtype == weight.dtype for name, weight in weights.items()
    ]
    return [list(received), same]


def probe_lora_names():
    """verl's adapter sync needs vLLM's table of names for renames, without stacking."""
    from vllm.model_executor.models.utils import WeightsMapper

    mapper = WeightsMapper(orig_to_new_prefix={"model.": "language_model."})
    return mapper.get_unstacked_mapper().apply_list(["model.q"])


def probe_linear_weights():
    """Load, pack, sync new weights, pack again: the layer computes with the new ones."""
    from vllm.model_executor.layers import utils

    layer = torch.nn.Linear(256, 512, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(4, 256, dtype=torch.bfloat16)
    for _ in range(2):
        layer.weight.copy_(torch.randn(512, 256))
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        expected = torch.nn.functional.linear(x.float(), layer.weight.float())
        torch.testing.assert_close(layer.cpu_linear(x, layer.weight, None).float(), expected, atol=0.5, rtol=0.02)
    try:
        utils.dispatch_cpu_unquantized_gemm(torch.nn.Conv1d(4, 4, 3), remove_weight=True)
    except NotImplementedError as error:
        return [list(layer.weight.shape), str(error)]


def probe_experts():
    """Errors of a mixture of experts after its first loading and after a sync of new weights; a refusal."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory

    def experts(size: int):
        one_rank = {"tp_size": 1, "dp_size": 1, "pcp_size": 1}
        with set_current_vllm_config(VllmConfig()):
            layer = FusedMoEFactory(3, 2, 64, size, params_dtype=torch.float32, **one_rank).routed_experts
        return layer, layer.quant_method

    layer, method = experts(32)
    x, weights = torch.randn(4, 64), torch.rand(4, 2)
    chosen = torch.tensor([[0, 1], [1, 2], [2, 0], [1, 0]], dtype=torch.int32)
    errors = []
    for _ in range(2):
        gate_up, down = torch.randn(3, 64, 64), torch.randn(3, 64, 32)
        layer.w13_weight.data.copy_(gate_up)
        layer.w2_weight.data.copy_(down)
        method.process_weights_after_loading(layer)
        gate, up = torch.einsum("th,eoh->teo", x, gate_up).chunk(2, dim=-1)
        outputs = torch.einsum("teo,eho->teh", torch.nn.functional.silu(gate) * up, down)
        expected = (outputs[torch.arange(4)[:, None], chosen] * weights[..., None]).sum(1)
        error = (method.apply(layer, x, weights, chosen, None, None) - expected).abs().max() / expected.abs().max()
        errors.append(error.item())
    layer, method = experts(48)
    try:
        method.process_weights_after_loading(layer)
    except NotImplementedError as refusal:
        return [errors, str(refusal)]


_TRANSFER = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"
_EXPERTS = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"
CHANGES = [
    ("verl.utils.distributed", "initialize_global_process_group_ray"),
    ("verl.workers.engine.fsdp.transformer_impl", "EngineRegistry.register"),
    ("verl.workers.engine.fsdp.transformer_impl", "CPUOffloadPolicy"),
    ("verl.workers.engine.fsdp.transformer_impl", "FSDPEngine._build_fsdp_module"),
    ("torch.distributed.fsdp._init_utils", "_init_param_handle_from_params"),
    ("torch.distributed.fsdp._init_utils", "_check_module_states_for_sync_module_states"),
    ("torch.distributed.fsdp._init_utils", "_sync_module_params_and_buffers"),
    ("verl.utils.fsdp_utils", "load_fsdp_model_to_gpu"),
    ("transformers.modeling_utils", "sdpa_attention_forward"),
    ("vllm.model_executor.models.utils", "WeightsMapper.get_rename_mapper"),
    ("vllm.model_executor.layers.utils", "dispatch_cpu_unquantized_gemm"),
    ("vllm.model_executor.layers.linear", "UnquantizedLinearMethod.process_weights_after_loading"),
    (_EXPERTS, "UnquantizedFusedMoEMethod.process_weights_after_loading"),
    (_EXPERTS, "UnquantizedFusedMoEMethod._setup_kernel"),
    ("verl.checkpoint_engine.base", "CheckpointEngine.prepare"),
    ("verl.checkpoint_engine.base", "CheckpointEngine.build_topology"),
    ("verl.checkpoint_engine.base", "CheckpointEngine.send_weights"),
    ("verl.checkpoint_engine.base", "CheckpointEngine.receive_weights"),
    (_TRANSFER, "BucketedWeightReceiver.receive_weights"),
    (_TRANSFER, "BucketedWeightReceiver._init_socket"),
    (_TRANSFER, "BucketedWeightReceiver._cleanup"),
    (_TRANSFER, "BucketedWeightSender._init_socket"),
    (_TRANSFER, "BucketedWeightSender._init_buffer"),
    (_TRANSFER, "BucketedWeightSender.async_send_weights"),
    ("verl.workers.rollout.vllm_rollout.vllm_rollout", "ServerAdapter._execute_method"),
    ("verl.workers.rollout.vllm_rollout.vllm_rollout", "ServerAdapter.update_weights"),
]
WEIGHTS = 6
FAULTS = {
    "raises": "RuntimeError: no room for layer.3",
    "shared memory": "FileNotFoundError: no shared memory here",
    "dies": "RuntimeError: the engine is dead",
    "ends early": "it returned before it had received all weights",
}


def receive(zmq_handle: str, fault: str):
    """The vLLM worker's side of a transfer."""
    from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer

    kept = {}
    if fault.startswith("cluster"):
        os.environ["RAY_RAYLET_PID"] = fault
    if fault in ("dies", "ends early"):
        os._exit(1)
    if fault == "shared memory":

        def rebuild_shared_memory(name, size, dtype=None):
            raise FileNotFoundError("no shared memory here")

        bucketed_weight_transfer.rebuild_shared_memory = rebuild_shared_memory

    def on_bucket_received(weights, is_last):
        if fault == "raises" and kept:
            raise RuntimeError("no room for layer.3")
        kept.update(weights)

    receiver = bucketed_weight_transfer.BucketedWeightReceiver(zmq_handle, torch.device("cpu"), use_shm=True)
    receiver.receive_weights(on_bucket_received)
    return {name: weight.unique().tolist() for name, weight in kept.items()}


def send(zmq_handle: str, fault: str):
    """The actor worker's side of a transfer."""
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

    from verl_cast.platform import weight_transfer

    if fault in ("dies", "ends early"):  # the worker's call has failed or has returned
        call = Future()
        call.set_exception(RuntimeError("the engine is dead")) if fault == "dies" else call.set_result(None)
        weight_transfer._receiver_calls[zmq_handle] = call
    first = 0
    if fault.startswith("cluster"):
        os.environ["RAY_RAYLET_PID"], first = fault, 100 * int(fault[-1])
    sender = BucketedWeightSender(zmq_handle, bucket_size_mb=1, use_shm=True)
    weights = ((f"layer.{i}", torch.full((256, 1024), float(first + i))) for i in range(WEIGHTS))  # one bucket each
    try:
        asyncio.run(sender.async_send_weights(weights))
    except weight_transfer.WeightTransferError as error:
        return str(error)
    return "sent"


def transfer(fault: str):
    """Results of both ends of a real transfer between two processes."""
    address = f"ipc:///tmp/verl-cast-test-{uuid.uuid4().hex}.sock"
    ends = [Fork(send, address, fault), Fork(receive, address, fault)]
    return [end.result(timeout=60) for end in ends]


def transfer_in_two_clusters():
    """Weights received by two runs on one machine. Their Ray jobs have the same number."""
    address = f"ipc:///tmp/verl-cast-test-{uuid.uuid4().hex}.sock"
    ends = [Fork(end, address, cluster) for end in (send, receive) for cluster in ("cluster 1", "cluster 2")]
    return [end.result(timeout=60) for end in ends][2:]


def sequence_parallel():
    """Results of both ranks."""
    with tempfile.TemporaryDirectory() as directory:
        ranks = [Fork(probe_sequence_parallel, rank, f"{directory}/store") for rank in range(2)]
        return [rank.result() for rank in ranks]


def main():
    """The child process: import everything once, run each probe in a fork, print the results."""
    import verl  # noqa: F401

    report = {"install": Fork(probe_install).result()}
    import verl.workers.engine  # each fork would import it
    import verl.workers.engine_workers
    import verl.workers.rollout.vllm_rollout.vllm_rollout  # noqa: F401
    import vllm.model_executor.layers.fused_moe.layer
    import vllm.model_executor.layers.linear  # noqa: F401

    from verl_cast.platform.cpu import DEPARTURES

    probes = [probe_device, probe_vllm_name, probe_engines, probe_process_group, probe_linear_weights]
    report |= results_of([*probes, probe_offloaded_reference, probe_lora_names, probe_gloo_transfer, probe_experts])
    report["sequence_parallel"] = sequence_parallel()
    report |= {change[1]: Fork(changed_seam, DEPARTURES, *change).result() for change in CHANGES}
    report |= {f"transfer {fault}": transfer(fault) for fault in ("none", *FAULTS)}
    report["two clusters"] = transfer_in_two_clusters()
    print_report(report)


# ---------------------------------------------------------------------------------------- what the probes must find


@pytest.fixture(scope="module")
def report():
    return report_of(__file__)


@needs_vllm
def test_importing_verl_installs_the_platform_once_and_imports_nothing_heavy(report):
    install = report["install"]
    assert (install["heavy"], install["platform"], install["finders"]) == ([], "PlatformCPU", 1)
    assert install["kv cache"] == {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE") or "1"}


@pytest.mark.skipif(is_cpu(), reason="this session itself runs with VERL_PLATFORM=cpu")
def test_nothing_is_installed_without_the_variable():
    import verl  # noqa: F401
    from verl.plugin.platform.platform_manager import PlatformRegistry

    assert PlatformRegistry.get("cpu") is None


@needs_vllm
def test_device_has_what_verl_asks_for(report):
    names = ["cpu", "cpu", "gloo"]
    assert report["device"] == {"allocated": "0.00", "reserved": "0.00", "used below total": True, "names": names}


@needs_vllm
def test_vllm_cpu_answers_for_vllm(report):
    installed = {d.name: d.version for d in importlib.metadata.distributions() if d.name in ("vllm", "vllm-cpu")}
    if "vllm" in installed:
        expected = {"version": installed["vllm"], "listed": 1}
    else:
        expected = {"version": f"{installed['vllm-cpu']}+cpu", "listed": 0}
    assert report["vllm_name"] == {"enough for verl": True, **expected}


@needs_vllm
def test_verls_workers_run_on_gloo_and_pageable_memory(report):
    assert report["engines"] == ["FSDPEngineWithLMHead"] * 2
    assert report["process_group"] == ["cpu:gloo", [1.0, 1.0]]
    assert report["offloaded_reference"] == [True, True]


@needs_vllm
def test_sequence_parallel_ranks_attend_to_whole_sequences(report):
    errors = report["sequence_parallel"]
    assert all(isinstance(error, float) and error < 1e-5 for error in errors), errors


@needs_vllm
def test_rollouts_get_the_weights_and_lora_finds_the_table_of_names(report):
    assert report["gloo_transfer"] == [["matrix", "half", "scalar"], [True, True, True]]
    assert report["lora_names"] == ["language_model.q"]


@needs_vllm
def test_linear_layers_keep_their_weights_and_use_new_ones(report):
    shape, refusal = report["linear_weights"]
    assert shape == [512, 256]
    assert refusal.startswith("Conv1d packs its weight of shape (4, 4, 3) in place on the CPU")


@needs_vllm
def test_experts_use_new_weights(report):
    errors, refusal = report["experts"]
    assert max(errors) < 1e-6, errors
    assert refusal.startswith("vLLM's CPU build pads experts of shape (3, 96, 64) to (3, 128, 64)")


@needs_vllm
def test_changed_seam_of_verl_or_vllm_is_refused_by_name(report):
    assert set(report["install"]["departures"]) == {name for name, _ in CHANGES}
    for module_name, path in CHANGES:
        refusals = report[path]
        assert refusals, f"no departure noticed another {module_name}.{path}"
        assert all(f".{path} to " in refusal for refusal in refusals), refusals


@needs_vllm
def test_weights_arrive_whole(report):
    """Each weight fills a bucket. Without clones, all but the last would be overwritten."""
    assert report["transfer none"] == ["sent", {f"layer.{i}": [float(i)] for i in range(WEIGHTS)}]


@needs_vllm
def test_two_runs_on_one_machine_get_their_own_weights(report):
    expected = [{f"layer.{i}": [100.0 * run + i] for i in range(WEIGHTS)} for run in (1, 2)]
    assert report["two clusters"] == expected


@needs_vllm
@pytest.mark.parametrize("fault", FAULTS)
def test_failed_transfer_reaches_the_sender_with_its_reason(report, fault):
    sender_error, _ = report[f"transfer {fault}"]
    assert sender_error.startswith("the rollout worker") and FAULTS[fault] in sender_error.splitlines()[0]


# ----------------------------------------------------------------------------------------------------- the config


def test_good_config_passes():
    check_config(good_config())


BAD = {
    "trainer.device": "cuda",
    "actor_rollout_ref.actor.strategy": "veomni",
    "actor_rollout_ref.model.override_config.attn_implementation": "flash_attention_2",
    "actor_rollout_ref.rollout.name": "sglang",
    "actor_rollout_ref.rollout.free_cache_engine": True,
    "actor_rollout_ref.rollout.enable_sleep_mode": True,
    "actor_rollout_ref.rollout.full_determinism": True,
}


@pytest.mark.parametrize("rule", REQUIREMENTS["fsdp2"], ids=lambda rule: rule.key)
def test_each_bad_setting_is_named_with_its_remedy(rule):
    config = good_config()
    OmegaConf.update(config, rule.key, BAD[rule.key])
    with pytest.raises(ValueError) as caught:
        check_config(config)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.strip() == f"{rule.key} is {BAD[rule.key]!r}: {rule.remedy}."
    assert f"++{rule.key}=" in rule.remedy


def test_missing_settings_count_as_verls_defaults_and_all_are_named():
    config = good_config()
    del config.actor_rollout_ref.rollout.enable_sleep_mode
    del config.actor_rollout_ref.model.override_config
    with pytest.raises(ValueError) as caught:
        check_config(config)
    message = str(caught.value)
    assert "++actor_rollout_ref.rollout.enable_sleep_mode=False" in message
    assert "++actor_rollout_ref.model.override_config.attn_implementation=sdpa" in message


def test_sequence_parallel_needs_sdpa():
    config = good_config()
    OmegaConf.update(config, "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size", 2)
    check_config(config)
    config.actor_rollout_ref.model.override_config.attn_implementation = "eager"
    with pytest.raises(ValueError, match=r"\+\+actor_rollout_ref\.model\.override_config\.attn_implementation=sdpa"):
        check_config(config)


def test_logical_gpus_must_be_given_to_a_local_ray():
    config = good_config()
    config.trainer.n_gpus_per_node = 2
    with pytest.raises(ValueError, match=r"\+\+ray_kwargs\.ray_init\.num_gpus=2"):
        check_config(config)
    config.ray_kwargs.ray_init = {"address": "auto"}
    check_config(config)


def test_separate_async_needs_its_transfer_and_a_gpu_more():
    config = good_config()
    OmegaConf.update(config, "trainer.v1", {"trainer_mode": "separate_async", "separate_async": {}})
    config.trainer.v1.separate_async.parameter_sync_step = 4
    OmegaConf.update(config, "actor_rollout_ref.rollout.n_gpus_per_node", 1)
    with pytest.raises(ValueError) as caught:
        check_config(config)
    message = str(caught.value)
    assert "set ++actor_rollout_ref.rollout.checkpoint_engine.backend=gloo" in message
    assert "set ++trainer.v1.separate_async.parameter_sync_step=1" in message
    assert "set ++ray_kwargs.ray_init.num_gpus=2" in message
    OmegaConf.update(config, "actor_rollout_ref.rollout.checkpoint_engine.backend", "gloo")
    config.trainer.v1.separate_async.parameter_sync_step = 1
    config.ray_kwargs.ray_init.num_gpus = 2
    check_config(config)


if __name__ == "__main__":
    main()
