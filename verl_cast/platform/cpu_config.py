"""Settings of a verl run that cannot work under VERL_PLATFORM=cpu: refused before Ray starts, never changed silently.

Each rule comes from a failed run, or from the code of verl 0.9.1 and vLLM 0.30. Slow settings are allowed.
With FSDP, use_remove_padding may stay on: transformers' sdpa keeps packed sequences apart by their position ids.
"""

from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

_ACTOR = "actor_rollout_ref.actor"
_MODEL = "actor_rollout_ref.model"
_ROLLOUT = "actor_rollout_ref.rollout"
_MEGATRON = f"{_ACTOR}.megatron"
_TRANSFORMER = f"{_MEGATRON}.override_transformer_config"
_NEEDS_TE = "needs TransformerEngine, which needs an accelerator"


class Requirement(NamedTuple):
    """
    Attributes:
        default: verl's value if the key is not in the config.
        works: the values that work; the remedy names the first.
    """

    key: str
    default: Any
    works: tuple[Any, ...]
    reason: str

    @property
    def remedy(self) -> str:
        value = "null" if self.works[0] is None else self.works[0]
        return f"set ++{self.key}={value}; {self.reason}"


_EVERYWHERE = (
    Requirement("trainer.device", "cuda", ("cpu",), "verl does not adjust it to this platform by itself"),
    Requirement(f"{_ACTOR}.strategy", None, ("fsdp2", "fsdp", "megatron"), "no other engine is registered for the CPU"),
    Requirement(f"{_ROLLOUT}.name", None, ("vllm",), "rollouts on the CPU come from vLLM's CPU build"),
    Requirement(f"{_ROLLOUT}.free_cache_engine", True, (False,), "vLLM cannot sleep on a CPU"),
    Requirement(f"{_ROLLOUT}.enable_sleep_mode", True, (False,), "vLLM cannot sleep on a CPU"),
    Requirement(
        f"{_ROLLOUT}.full_determinism",
        False,
        (False,),
        'it puts a seed in each request, which crashes vLLM\'s CPU engine ("CPU Generator does not use offset")',
    ),
)
_FSDP = (
    Requirement(
        f"{_MODEL}.override_config.attn_implementation",
        "flash_attention_2",
        ("sdpa", "eager"),
        "flash attention needs an accelerator",
    ),
)
_KERNELS = ("apply_rope_fusion", "gradient_accumulation_fusion", "masked_softmax_fusion", "persist_layer_norm")
_OF_MEGATRON = (
    Requirement(f"{_MEGATRON}.vanilla_mbridge", False, (True,), f"Megatron-Bridge {_NEEDS_TE}"),
    Requirement(f"{_MODEL}.use_remove_padding", True, (False,), f"attention over packed sequences {_NEEDS_TE}"),
    Requirement(f"{_MEGATRON}.context_parallel_size", 1, (1,), f"context parallelism {_NEEDS_TE}"),
    Requirement(f"{_MEGATRON}.dynamic_context_parallel", False, (False,), f"context parallelism {_NEEDS_TE}"),
    Requirement(f"{_MEGATRON}.use_megatron_fsdp", False, (False,), f"it comes with Megatron-Bridge, which {_NEEDS_TE}"),
    Requirement(f"{_MEGATRON}.dtype", "bfloat16", ("float32", "bfloat16"), "float16 has not been tried"),
    *(Requirement(f"{_TRANSFORMER}.{name}", False, (False,), "its kernel needs an accelerator") for name in _KERNELS),
    Requirement(f"{_TRANSFORMER}.fp8", None, (None,), f"FP8 {_NEEDS_TE}"),
    Requirement(f"{_MODEL}.lora.rank", 0, (0,), f"LoRA in Megatron comes with Megatron-Bridge, which {_NEEDS_TE}"),
)
REQUIREMENTS = {"fsdp": _EVERYWHERE + _FSDP, "fsdp2": _EVERYWHERE + _FSDP, "megatron": _EVERYWHERE + _OF_MEGATRON}


def check_config(config: DictConfig) -> None:
    """Raise a ValueError that names each setting that cannot work on the CPU, its value and the remedy."""
    complaints = []
    for required in REQUIREMENTS.get(OmegaConf.select(config, f"{_ACTOR}.strategy"), _EVERYWHERE):
        value = OmegaConf.select(config, required.key, default=required.default)
        if value not in required.works:
            complaints.append(f"{required.key} is {value!r}: {required.remedy}.")
    complaints += _check_sequence_parallel(config) + _check_separate_async(config) + _check_logical_gpus(config)
    if complaints:
        raise ValueError("VERL_PLATFORM=cpu cannot run this configuration.\n  " + "\n  ".join(complaints))


def _check_sequence_parallel(config: DictConfig) -> list[str]:
    """Only transformers' sdpa exchanges the ranks' parts (fsdp.py). With eager, a rank sees only its own part."""
    key = f"{_ACTOR}.fsdp_config.ulysses_sequence_parallel_size"
    size = OmegaConf.select(config, key, default=1)
    attention = f"{_MODEL}.override_config.attn_implementation"
    if size == 1 or OmegaConf.select(config, attention) != "eager":
        return []
    return [f"{key} is {size}: set ++{key}=1, or ++{attention}=sdpa; with eager, a rank sees only its own part."]


def _is_separate_async(config: DictConfig) -> bool:
    return OmegaConf.select(config, "trainer.v1.trainer_mode") == "separate_async"


def _check_separate_async(config: DictConfig) -> list[str]:
    """Between syncs, verl keeps the old policy as `.cpu()` copies. On a CPU, these are the live weights themselves."""
    if not _is_separate_async(config):
        return []
    complaints = []
    for key, needed, reason in (
        (f"{_ROLLOUT}.checkpoint_engine.backend", "gloo", "verl's own transfers need an accelerator"),
        ("trainer.v1.separate_async.parameter_sync_step", 1, "with more, updates would also change the old policy"),
    ):
        value = OmegaConf.select(config, key)
        if value != needed:
            complaints.append(f"{key} is {value!r}: set ++{key}={needed}; {reason}.")
    return complaints


def _check_logical_gpus(config: DictConfig) -> list[str]:
    """verl's resource pools count GPUs. On a CPU, a local Ray has GPUs only if num_gpus is set."""
    if OmegaConf.select(config, "ray_kwargs.ray_init.address") is not None:
        return []  # a cluster that someone else started, with resources of its own
    key = "ray_kwargs.ray_init.num_gpus"
    takers = ["trainer.n_gpus_per_node"]
    if _is_separate_async(config):
        takers.append(f"{_ROLLOUT}.n_gpus_per_node")
    counts = {taker: OmegaConf.select(config, taker, default=1) for taker in takers}
    needed = sum(counts.values())
    given = OmegaConf.select(config, key) or 0
    if given >= needed:
        return []
    said = ", ".join(f"{taker} is {count}" for taker, count in counts.items())
    return [
        f"{key} is {given}, {said}: set ++{key}={needed}, or lower {' and '.join(takers)}; each training process, and "
        "each process of a standalone rollout, takes one logical GPU."
    ]
