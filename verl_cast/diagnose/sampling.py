"""Samples of a model under many prompts, by vLLM in a process of its own.

A process of its own gives back all of the accelerator's memory before the scoring begins, and keeps vLLM's many lines
in a file. `python -m verl_cast.diagnose.sampling REQUEST RESULT PROGRESS_FD` is that process.
"""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from verl_cast.cli import UserError


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
        # A teacher's context may be longer than what the run's own rollouts need.
        "max_model_len": max(int(rollout.max_model_len or 0), longest_prompt + int(rollout.response_length)),
        **{key: value for key, value in own.items() if value is not None},
    }


def sampling_arguments(setup: Any) -> dict[str, Any]:
    """The run's sampling of training rollouts, as verl hands it to vLLM."""
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
        per prompt, `samples` times {"ids": token ids, end of sequence included, "truncated": it reached its limit}.

    Raises:
        UserError: vLLM failed; with the reason that it gave.
    """
    request, result, log = (directory / name for name in ("sampling.request", "sampling.result", "sampling.log"))
    request.write_text(
        json.dumps(
            {
                "engine": engine_arguments(setup, max(map(len, prompts))),
                "sampling": sampling_arguments(setup),
                "prompts": [list(prompt) for prompt in prompts],
                "samples": samples,
                "seed": seed,
            }
        )
    )
    progress = os.dup(sys.stderr.fileno())
    try:
        with log.open("wb") as output:
            command = [sys.executable, "-m", "verl_cast.diagnose.sampling", str(request), str(result), str(progress)]
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, pass_fds=(progress,))
        if done.returncode:
            raise UserError(f"vLLM could not sample: {root_cause(log.read_text(errors='replace'))} (its log: {log})")
        return json.loads(result.read_text())
    finally:
        os.close(progress)
        for scratch in (request, result):
            scratch.unlink(missing_ok=True)


def root_cause(log: str) -> str:
    """The first exception of vLLM's log: its later ones, of other processes, only say that something failed."""
    causes = re.findall(r"^(?:\(.*?\) )?(?:ERROR .*?\] )?((?:\w+\.)*\w*(?:Error|Exception): .+)$", log, re.MULTILINE)
    lines = [line for line in log.splitlines() if line.strip()] or ["it said nothing"]
    return (causes or lines[-1:])[0].strip()[:300]


def main(request_path: str, result_path: str, progress_fd: str) -> None:
    from tqdm import tqdm
    from vllm import LLM, SamplingParams

    request = json.loads(Path(request_path).read_text())
    samples, seed = request["samples"], request["seed"]
    progress = os.fdopen(int(progress_fd), "w")
    llm = LLM(**request["engine"], seed=seed)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
        # A seed per prompt: vLLM counts on from it for the prompt's further samples.
        [
            SamplingParams(n=samples, seed=seed + i * samples, detokenize=False, **request["sampling"])
            for i in range(len(request["prompts"]))
        ],
        use_tqdm=functools.partial(tqdm, file=progress, leave=False) if progress.isatty() else False,
    )
    result = [
        [{"ids": list(one.token_ids), "truncated": one.finish_reason == "length"} for one in output.outputs]
        for output in outputs
    ]
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
