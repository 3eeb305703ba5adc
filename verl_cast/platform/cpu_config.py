"""Settings of a verl run that cannot work under VERL_PLATFORM=cpu: refused before Ray starts, never changed silently.

Each rule was seen to fail, or follows from the code of verl 0.9.1 and vLLM 0.30. Slow settings are left alone.
use_remove_padding may stay on: transformers' sdpa keeps packed sequences apart by their position ids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

_ACTOR = "actor_rollout_ref.actor"
_MODEL = "actor_rollout_ref.model"
_ROLLOUT = "actor_rollout_ref.rollout"


@dataclass(frozen=True)
class Rule:
    key: str
    default: Any  # what verl uses where the key is not in the config
    works: Callable[[Any], bool]
    remedy: str


def _is(*values) -> Callable[[Any], bool]:
    return lambda value: value in values


RULES = (
    Rule(
        "trainer.device",
        "cuda",
        _is("cpu"),
        "set trainer.device=cpu; verl does not adjust it to this platform by itself",
    ),
    Rule(
        f"{_ACTOR}.strategy",
        None,
        _is("fsdp", "fsdp2"),
        f"set {_ACTOR}.strategy=fsdp2 (or fsdp); no other engine is registered for the CPU",
    ),
    Rule(
        f"{_ACTOR}.fsdp_config.offload_policy",
        False,
        _is(False),
        f"set {_ACTOR}.fsdp_config.offload_policy=False; it pins memory, which needs an accelerator",
    ),
    Rule(
        f"{_ACTOR}.use_kl_loss",
        False,
        _is(False),
        f"set {_ACTOR}.use_kl_loss=False; verl offloads a reference policy to pinned memory, which needs an "
        "accelerator",
    ),
    Rule(
        "algorithm.use_kl_in_reward",
        False,
        _is(False),
        "set algorithm.use_kl_in_reward=False; verl offloads a reference policy to pinned memory, which needs an "
        "accelerator",
    ),
    Rule(
        f"{_MODEL}.override_config.attn_implementation",
        "flash_attention_2",
        _is("sdpa", "eager"),
        f"set +{_MODEL}.override_config.attn_implementation=sdpa; flash attention needs an accelerator",
    ),
    Rule(
        f"{_ROLLOUT}.name",
        None,
        _is("vllm"),
        f"set {_ROLLOUT}.name=vllm; rollouts on the CPU come from vLLM's CPU build",
    ),
    Rule(
        f"{_ROLLOUT}.free_cache_engine",
        True,
        _is(False),
        f"set {_ROLLOUT}.free_cache_engine=False; vLLM cannot sleep on a CPU",
    ),
    Rule(
        f"{_ROLLOUT}.enable_sleep_mode",
        True,
        _is(False),
        f"set +{_ROLLOUT}.enable_sleep_mode=False; vLLM cannot sleep on a CPU",
    ),
    Rule(
        f"{_ROLLOUT}.full_determinism",
        False,
        _is(False),
        f"set {_ROLLOUT}.full_determinism=False; its seed in each request ends vLLM's CPU engine "
        '("CPU Generator does not use offset")',
    ),
)


def check_config(config: DictConfig) -> None:
    """Raise a ValueError that names each setting that cannot work on the CPU, its value and the remedy."""
    complaints = []
    for rule in RULES:
        value = OmegaConf.select(config, rule.key, default=rule.default)
        if not rule.works(value):
            complaints.append(f"{rule.key} is {value!r}: {rule.remedy}.")
    complaints += _check_fsdp1_offload(config) + _check_logical_gpus(config)
    if complaints:
        raise ValueError("VERL_PLATFORM=cpu cannot run this configuration.\n  " + "\n  ".join(complaints))


def _check_fsdp1_offload(config: DictConfig) -> list[str]:
    """Untested: the platform keeps FSDP1 from moving parameters at all."""
    key = f"{_ACTOR}.fsdp_config.param_offload"
    if OmegaConf.select(config, f"{_ACTOR}.strategy") != "fsdp" or not OmegaConf.select(config, key, default=False):
        return []
    return [f"{key} is True: set {key}=False; parameters on the CPU have nowhere to be offloaded to."]


def _check_logical_gpus(config: DictConfig) -> list[str]:
    """verl's resource pools count GPUs; a local Ray has them here only if it is told a number."""
    if OmegaConf.select(config, "ray_kwargs.ray_init.address") is not None:
        return []  # a cluster that someone else started, with resources of its own
    key = "ray_kwargs.ray_init.num_gpus"
    needed = OmegaConf.select(config, "trainer.n_gpus_per_node", default=1)
    given = OmegaConf.select(config, key) or 0
    if given >= needed:
        return []
    return [
        f"{key} is {given}, trainer.n_gpus_per_node is {needed}: set +{key}={needed}, or fewer "
        "trainer.n_gpus_per_node; each training process takes one logical GPU."
    ]
