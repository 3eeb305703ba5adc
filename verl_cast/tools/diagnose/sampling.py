"""Samples a model under many prompts with vLLM (tools/vllm_process.py) and the run's own sampling settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from verl_cast.tools import vllm_process


def engine_arguments(setup: Any, longest_prompt: int) -> dict[str, Any]:
    """vLLM's arguments, from the run's own `actor_rollout_ref.rollout`."""
    rollout = setup.rollout
    own = OmegaConf.to_container(rollout.engine_kwargs, resolve=True).get("vllm") or {}
    return {
        "model": setup.model_path,
        "tokenizer": str(setup.config.actor_rollout_ref.model.get("tokenizer_path", None) or setup.model_path),
        "trust_remote_code": setup.trust_remote_code,
        "dtype": rollout.dtype,
        "enforce_eager": bool(rollout.enforce_eager),
        "gpu_memory_utilization": float(rollout.gpu_memory_utilization),
        "tensor_parallel_size": int(rollout.tensor_model_parallel_size),
        "max_num_seqs": int(rollout.max_num_seqs),
        # A teacher's context may be longer than the prompts of the run's own rollouts.
        "max_model_len": max(int(rollout.max_model_len or 0), longest_prompt + int(rollout.response_length)),
        **{key: value for key, value in own.items() if value is not None},
    }


def sampling_arguments(setup: Any) -> dict[str, Any]:
    """The sampling parameters of the run's training rollouts, as verl passes them to vLLM."""
    rollout = setup.rollout
    return {
        "temperature": setup.temperature,
        "top_p": float(rollout.top_p),
        "top_k": int(rollout.top_k),
        "repetition_penalty": float(rollout.get("repetition_penalty", 1.0)),
        "ignore_eos": bool(rollout.ignore_eos),
        "max_tokens": int(rollout.response_length),
    }


def sample(
    setup: Any, prompts: Sequence[Sequence[int]], samples: int, seed: int, directory: Path
) -> list[list[dict[str, Any]]]:
    """Sample every prompt.

    Args:
        prompts: token ids.
        samples: responses per prompt.
        directory: for vLLM's log (sampling.log).

    Returns:
        per prompt, `samples` times {"ids": token ids, end of sequence included, "truncated": the limit was reached}.

    Raises:
        UserError: vLLM failed; the message holds vLLM's reason.
    """
    finished = vllm_process.sample(
        {"seed": seed, **engine_arguments(setup, max(map(len, prompts)))},
        {"n": samples, **sampling_arguments(setup)},
        prompts,
        [seed + i * samples for i in range(len(prompts))],
        directory / "sampling.log",
    )
    progress = tqdm(finished, total=len(prompts), desc="sampling", leave=False, disable=None)
    by_prompt = {one["prompt"]: one["samples"] for one in progress}
    return [by_prompt[i] for i in range(len(prompts))]
