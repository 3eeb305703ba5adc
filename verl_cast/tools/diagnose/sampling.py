"""Samples with vLLM, with the sampling settings of the run's training rollouts."""

import os
from collections.abc import Sequence
from typing import Any

import psutil
from omegaconf import OmegaConf

from verl_cast.tools.cli import UserError, first_line


def sample(setup: Any, prompts: Sequence[Sequence[int]], samples: int, seed: int) -> list[list[dict[str, Any]]]:
    """
    Args:
        setup: a `Setup`.
        prompts: token ids.
        samples: responses per prompt.

    Returns:
        per prompt, `samples` times {"ids": token ids, end of sequence included, "truncated": the limit was reached}.

    Raises:
        UserError: vLLM failed; its own messages stand above it on the terminal.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process has threads of torch and verl
    from vllm import LLM, SamplingParams

    rollout = setup.rollout
    parameters = SamplingParams(
        n=samples,
        temperature=float(rollout.temperature),
        top_p=float(rollout.top_p),
        top_k=int(rollout.top_k),
        repetition_penalty=float(rollout.get("repetition_penalty", 1.0)),
        ignore_eos=bool(rollout.ignore_eos),
        max_tokens=int(rollout.response_length),
        detokenize=False,
    )
    try:
        engine = LLM(**engine_arguments(setup, max(map(len, prompts))), seed=seed)
        outputs = engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], parameters)
        engine.llm_engine.engine_core.shutdown()  # frees the accelerator for the scoring
    except Exception as error:  # vLLM raises whatever its parts raise
        raise UserError(
            f"vLLM cannot sample from {setup.model_config.path} (its reason is above): {first_line(error)} Its "
            "settings are those of actor_rollout_ref.rollout; engine_kwargs.vllm there goes to it unchanged."
        ) from error
    return [
        [{"ids": list(one.token_ids), "truncated": one.finish_reason == "length"} for one in output.outputs]
        for output in outputs
    ]


def engine_arguments(setup: Any, longest_prompt: int) -> dict[str, Any]:
    """vLLM's arguments, from the run's own `actor_rollout_ref.rollout`."""
    from vllm.platforms import current_platform

    rollout, model = setup.rollout, setup.model_config
    own = OmegaConf.to_container(rollout.engine_kwargs, resolve=True).get("vllm") or {}
    arguments = {
        "model": model.local_path,
        "tokenizer": model.local_tokenizer_path,
        "trust_remote_code": model.trust_remote_code,
        "dtype": rollout.dtype,
        "enforce_eager": bool(rollout.enforce_eager),
        "gpu_memory_utilization": float(rollout.gpu_memory_utilization),
        "tensor_parallel_size": int(rollout.tensor_model_parallel_size),
        "max_num_seqs": int(rollout.max_num_seqs),
        # A teacher's context may be longer than the prompts of the run's own rollouts.
        "max_model_len": max(int(rollout.max_model_len or 0), longest_prompt + int(rollout.response_length)),
    }
    if current_platform.is_cpu() and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        # On a CPU vLLM wants gpu_memory_utilization of the whole memory, and does not start where less is free.
        arguments["kv_cache_memory_bytes"] = max(2**30, psutil.virtual_memory().available // 4)
    return {**arguments, **{key: value for key, value in own.items() if value is not None}}
