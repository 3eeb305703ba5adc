"""Megatron on the CPU works with the installed megatron-core, mbridge and verl. Changed seams and bad settings raise.

Each probe runs in a fork of one child interpreter with VERL_PLATFORM=cpu.
"""

import importlib
import importlib.util
import sys
import types

import pytest
import torch
from forks import Fork, changed_seam, good_config, print_report, report_of, results_of
from omegaconf import OmegaConf

from verl_cast.platform.cpu_config import REQUIREMENTS, check_config

pytestmark = pytest.mark.timeout(240)
needs_megatron = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("megatron", "mbridge", "vllm")),
    reason="megatron-core, mbridge or vLLM is not installed",
)
_CORE = "megatron.core"
_ENGINE = "verl.workers.engine.megatron.transformer_impl"


# ------------------------------------------------------------------------------------ probes (in the child process)


def probe_import_of_verl():
    """Megatron modules that `import verl` alone has loaded."""
    return sorted({"megatron.core", "mbridge", _ENGINE} & set(sys.modules))


def probe_torch_is_untouched():
    """Other code in a process with megatron's modules sees torch unchanged."""
    from verl_cast.platform import cuda_names

    with cuda_names.tensors_pass_for_cuda():
        inside = [torch.ones(1).type(), torch.ones(1).cuda().device.type]
    try:
        torch.ones(1, device="cuda")
        refusal = ""
    except (AssertionError, RuntimeError) as error:
        refusal = str(error)
    return {
        "names": sorted({"cuda", "type"} & set(vars(torch.Tensor))),
        "type": torch.ones(1).type(),
        "inside": inside,
        "refused": bool(refusal),
        "factory": torch.empty.__module__ in ("torch", "torch._C._VariableFunctions", None),
        "seen by megatron": [
            importlib.import_module("megatron.core.utils").torch.empty(1, device="cuda").device.type,
            importlib.import_module("megatron.core.utils").torch.cuda.current_device().type,
        ],
    }


def probe_engine():
    from verl.workers.engine.base import EngineRegistry

    return EngineRegistry.get_engine_cls("language_model", "megatron").__name__


def probe_config():
    from verl.workers.config import McoreEngineConfig

    dtypes = [McoreEngineConfig(dtype=dtype).dtype for dtype in ("float32", "bfloat16")]
    try:
        McoreEngineConfig(dtype="float64")
    except AssertionError as error:
        return [*dtypes, str(error)]


def probe_mask():
    """Rows padded on the right need no mask. Other rows are refused."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    seen = []
    stock = DotProductAttention.forward.__wrapped__

    def code_of(self, query, key, value, attention_mask, *args, **kwargs):
        seen.append(attention_mask)

    wrapper = DotProductAttention.forward
    cell = next(cell for cell in wrapper.__closure__ if cell.cell_contents is stock)
    cell.cell_contents = code_of
    right = torch.tensor([[True, True, False], [True, True, True]])
    wrapper(None, None, None, None, right)
    try:
        wrapper(None, None, None, None, right.flip(1))
    except NotImplementedError as error:
        return [seen, str(error)]


def probe_norm():
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_config import TransformerConfig

    marks = []
    for sequence_parallel in (True, False):
        config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1, normalization="RMSNorm")
        config.sequence_parallel = sequence_parallel
        norm = WrappedTorchNorm(config, 8)
        marks.append([type(norm).__name__, norm.weight.sequence_parallel, config.sequence_parallel])
    return marks


def probe_restored_adam():
    """Restores a saved step into an optimizer without state. Each of its two parameters counts its own steps."""
    from megatron.core.optimizer import distrib_optimizer

    optimizer = types.SimpleNamespace(
        optimizer=torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]),
        init_state_fn=lambda adam, config: [
            adam.state[p].update(exp_avg=torch.zeros(2), exp_avg_sq=torch.zeros(2))
            for group in adam.param_groups
            for p in group["params"]
        ],
        config=types.SimpleNamespace(fp16=False),
        ddp_config=types.SimpleNamespace(use_megatron_fsdp=False),
        grad_scaler=None,
    )
    cls = distrib_optimizer.DistributedOptimizer
    fresh = cls.state_dict(optimizer)["optimizer"]["param_groups"][0]["step"]
    for group in optimizer.optimizer.param_groups:  # megatron's identifiers of a parameter group
        group.update({key: 0 for key in distrib_optimizer.param_group_identifier_keys})
    state_dict = cls.state_dict(optimizer)
    state_dict["optimizer"]["param_groups"][0]["step"] = 7.0
    cls.load_state_dict(optimizer, state_dict)
    steps = [state["step"] for state in optimizer.optimizer.state.values()]
    return [fresh, [float(step) for step in steps], steps[0] is not steps[1]]


def probe_offload():
    """Load and offload calls of an engine with offloaded parameters when its context is entered and left."""
    from verl.workers.engine.megatron import transformer_impl

    calls = []
    for name in ("offload_megatron_model_to_cpu", "offload_megatron_optimizer"):
        setattr(transformer_impl, name, lambda what, name=name: calls.append(name))
    for name in ("load_megatron_model_to_gpu", "load_megatron_optimizer"):
        setattr(transformer_impl, name, lambda what, name=name, **kwargs: calls.append(name))
    engine = object.__new__(transformer_impl.MegatronEngineWithLMHead)
    engine._is_offload_param = engine._is_offload_optimizer = True
    engine.module, engine.optimizer = [], object()
    with engine.eval_mode():
        calls.append("eval")
    with engine.train_mode(zero_grad_on_exit=False):
        calls.append("train")
    return calls


def probe_late_report():
    """A changed seam raises when the engine is built, not when megatron is imported."""
    from verl.workers.engine.megatron import transformer_impl

    from verl_cast.platform import megatron

    departure = dict(megatron.DEPARTURES)[f"{_CORE}.jit"]
    module = importlib.import_module(f"{_CORE}.jit")
    del module.disable_jit_fuser
    departure(module)
    try:
        transformer_impl.MegatronEngineWithLMHead()
    except Exception as error:
        return str(error)


CHANGES = [
    (f"{_CORE}.utils", "torch"),
    (f"{_CORE}.dist_checkpointing.exchange_utils", "exchange_loaded_tensors_broadcast"),
    (f"{_CORE}.jit", "disable_jit_fuser"),
    (f"{_CORE}.optimizer.clip_grads", "clip_grad_by_total_norm_fp32"),
    (f"{_CORE}.optimizer.optimizer", "Float16OptimizerWithFloat16Params.__init__"),
    (f"{_CORE}.optimizer.distrib_optimizer", "DistributedOptimizer.__init__"),
    (f"{_CORE}.optimizer.distrib_optimizer", "DistributedOptimizer.state_dict"),
    (f"{_CORE}.optimizer.distrib_optimizer", "DistributedOptimizer.load_state_dict"),
    (f"{_CORE}.optimizer.distrib_optimizer", "DistributedOptimizer._set_main_param_and_optimizer_states"),
    (f"{_CORE}.tensor_parallel.random", "_set_cuda_rng_state"),
    (f"{_CORE}.tensor_parallel.random", "CudaRNGStatesTracker.fork"),
    (f"{_CORE}.transformer.dot_product_attention", "DotProductAttention.forward"),
    (f"{_CORE}.transformer.torch_norm", "WrappedTorchNorm.__new__"),
    ("mbridge.core.bridge", "Bridge._weight_name_mapping_mcore_to_hf"),
    ("mbridge.core.bridge", "Bridge._weight_to_hf_format"),
    ("mbridge.core.llm_bridge", "LLMBridge._get_transformer_layer_spec"),
    ("mbridge.core.util", "get_model"),
    ("verl.utils.megatron_utils", "mapping_string_to_attn_backend"),
    ("verl.utils.megatron_utils", "_can_safely_resize_storage"),
    ("verl.utils.megatron_utils", "offload_megatron_model_to_cpu"),
    ("verl.workers.config.engine", "McoreEngineConfig.__post_init__"),
    (_ENGINE, "MegatronEngine.to"),
    (_ENGINE, "EngineEvalModeCtx.__enter__"),
    (_ENGINE, "MegatronEngineWithLMHead._build_tf_config"),
    (_ENGINE, "EngineRegistry.register"),
]
PROBES = (
    probe_torch_is_untouched,
    probe_engine,
    probe_config,
    probe_mask,
    probe_norm,
    probe_restored_adam,
    probe_offload,
    probe_late_report,
)


def main():
    import verl  # noqa: F401

    report = {"import of verl": Fork(probe_import_of_verl).result()}
    import mbridge  # noqa: F401
    import verl.workers.engine  # each fork would import it
    import verl.workers.engine_workers  # noqa: F401

    from verl_cast.platform import megatron

    report["changed"] = [str(error) for error in megatron._changed_seams]
    report |= results_of(PROBES)
    report |= {change[1]: Fork(changed_seam, megatron.SEAMS, *change).result() for change in CHANGES}
    print_report(report)


# ---------------------------------------------------------------------------------------- what the probes must find


@pytest.fixture(scope="module")
def report():
    return report_of(__file__)


@needs_megatron
def test_importing_verl_imports_no_megatron_and_all_seams_are_as_expected(report):
    assert report["import of verl"] == []
    assert report["changed"] == []


@needs_megatron
def test_torch_itself_stays_as_it_is(report):
    assert report["torch_is_untouched"] == {
        "names": [],
        "type": "torch.FloatTensor",
        "inside": ["torch.cuda.FloatTensor", "cpu"],
        "refused": True,
        "factory": True,
        "seen by megatron": ["cpu", "cpu"],
    }


@needs_megatron
def test_engine_is_registered(report):
    assert report["engine"] == "MegatronEngineWithLMHead"


@needs_megatron
def test_float32_is_allowed_and_other_names_are_not(report):
    assert report["config"] == ["float32", "bfloat16", "dtype float64 not supported"]


@needs_megatron
def test_mask_of_row_lengths_is_causality(report):
    seen, refusal = report["mask"]
    assert seen == [None]
    assert "not padded on the right" in refusal


@needs_megatron
def test_norms_are_marked_for_sequence_parallelism(report):
    assert report["norm"] == [["RMSNorm", True, True], ["RMSNorm", False, False]]


@needs_megatron
def test_restored_adam_counts_its_steps(report):
    assert report["restored_adam"] == [0.0, [7.0, 7.0], True]


@needs_megatron
def test_leaving_a_context_offloads(report):
    model = ["load_megatron_model_to_gpu", "offload_megatron_model_to_cpu"]
    optimizer = ["load_megatron_optimizer", "offload_megatron_optimizer"]
    assert report["offload"] == [model[0], "eval", model[1], model[0], optimizer[0], "train", model[1], optimizer[1]]


@needs_megatron
def test_changed_seam_is_reported_by_the_engine(report):
    assert "megatron.core.jit.disable_jit_fuser to exist" in report["late_report"]


@needs_megatron
def test_changed_seam_is_refused_by_name(report):
    from verl_cast.platform import megatron

    asked = {name for name, departure in megatron.SEAMS if departure is not megatron.see_the_cpu}
    assert asked <= {name for name, _ in CHANGES}
    for module_name, path in CHANGES:
        refusals = report[path]
        assert refusals, f"no departure noticed another {module_name}.{path}"
        assert any(f".{path.rpartition('.')[2]} " in refusal for refusal in refusals), refusals


# ----------------------------------------------------------------------------------------------------- the config


def good_megatron_config():
    config = good_config()
    del config.actor_rollout_ref.model.override_config  # an FSDP setting
    actor = config.actor_rollout_ref.actor
    actor.strategy = "megatron"
    actor.megatron = {"vanilla_mbridge": True, "param_offload": True, "optimizer_offload": True}
    actor.megatron.override_transformer_config = {"attention_backend": "flash"}  # verl's default
    config.actor_rollout_ref.model.use_remove_padding = False
    return config


def test_good_megatron_config_passes():
    check_config(good_megatron_config())


BAD = {"context_parallel_size": 2, "dtype": "float16", "vanilla_mbridge": False, "fp8": "hybrid", "rank": 8}


OF_MEGATRON = [rule for rule in REQUIREMENTS["megatron"] if rule not in REQUIREMENTS["fsdp"]]


@pytest.mark.parametrize("rule", OF_MEGATRON, ids=lambda rule: rule.key)
def test_each_bad_setting_is_named_with_its_remedy_for_megatron_alone(rule):
    config = good_megatron_config()
    bad = BAD.get(rule.key.rpartition(".")[2], True)
    OmegaConf.update(config, rule.key, bad, force_add=True)
    with pytest.raises(ValueError) as caught:
        check_config(config)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.strip() == f"{rule.key} is {bad!r}: {rule.remedy}."
    assert f"++{rule.key}=" in rule.remedy

    other = good_config()
    OmegaConf.update(other, rule.key, bad, force_add=True)
    check_config(other)


if __name__ == "__main__":
    main()
