"""Samples of a model by vLLM in a process of its own, prompt by prompt as they are finished.

Such a process gives back all of the accelerator's memory at its end, and keeps vLLM's many lines in a file.
`python -m verl_cast.tools.vllm_process FD` is that process. It reads a request from its standard input, and writes a
line of JSON for every finished prompt to the file descriptor FD. If it ends early, the reader decides what to keep.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_cast.tools.cli import UserError

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM can be told as its largest


def sample(
    engine: Mapping[str, Any],
    sampling: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    log: Path,
    adapter: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Sample every prompt; vLLM batches them as it sees fit.

    Args:
        engine: arguments of `vllm.LLM`.
        sampling: of `vllm.SamplingParams`, n (samples per prompt) among them.
        prompts: token ids.
        seeds: one a prompt; its further samples count on from it.
        log: for vLLM's lines.
        adapter: a LoRA adapter in PEFT's format, upon the engine's model.

    Yields:
        for every prompt, in the order in which they are finished: {"prompt": its number, "seconds": since the one
        before (the first: since vLLM was ready), "samples": n times {"ids": token ids, end of sequence included,
        "truncated": it reached its limit}}.

    Raises:
        UserError: vLLM failed; with the reason that it gave.
    """
    request = {
        "engine": dict(engine),
        "sampling": dict(sampling),
        "prompts": [list(prompt) for prompt in prompts],
        "seeds": list(seeds),
        "adapter": None if adapter is None else str(adapter),
    }
    result, result_in_child = os.pipe()
    with log.open("wb") as output, os.fdopen(result) as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "verl_cast.tools.vllm_process", str(result_in_child)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(result_in_child,),
        )
        os.close(result_in_child)
        try:
            with contextlib.suppress(BrokenPipeError):  # it died early; its log says of what
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            for line in lines:
                if line.endswith("\n"):  # else it was killed in the middle of it
                    yield json.loads(line)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # which ends it, where it has not ended by itself
            process.wait()
    if process.returncode:
        raise UserError(f"vLLM could not sample: {root_cause(log.read_text(errors='replace'))} (its log: {log})")


def root_cause(log: str) -> str:
    """The first exception of a log: its later ones, of other processes, only say that something failed."""
    causes = re.findall(
        r"^(?:\(.*?\) |\[.*?\]: )?(?:ERROR .*?\] )?((?:\w+\.)*\w*(?:Error|Exception): .+)$", log, re.MULTILINE
    )
    lines = [line for line in log.splitlines() if line.strip()] or ["it said nothing"]
    return (causes or lines[-1:])[0].strip()[:300]


def _end_with_the_parent() -> None:
    """Interrupt this process, and by that vLLM's own, when nobody reads its samples any more, by SIGKILL even."""
    os.read(sys.stdin.fileno(), 1)  # nothing more is ever written: this is its end
    os.kill(os.getpid(), signal.SIGINT)


def main(result_fd: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    result = os.fdopen(int(result_fd), "w", buffering=1)
    arguments, lora = request["engine"], None
    if current_platform.is_cpu():
        # With a prompt in pieces vLLM sets a seeded generator back, which torch's for the CPU cannot do.
        arguments = {"enable_chunked_prefill": False, **arguments}
    if request["adapter"] is not None:
        rank = json.loads((Path(request["adapter"]) / "adapter_config.json").read_text())["r"]
        largest = next(allowed for allowed in LORA_RANKS if allowed >= rank)
        arguments = {"enable_lora": True, "max_lora_rank": largest, **arguments}
        lora = LoRARequest("adapter", 1, request["adapter"])
    # The engine itself, as LLM.generate returns only when everything is finished.
    engine = LLM(**arguments).llm_engine
    since = time.perf_counter()
    for number, (prompt, seed) in enumerate(zip(request["prompts"], request["seeds"], strict=True)):
        parameters = SamplingParams(
            seed=seed, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **request["sampling"]
        )
        engine.add_request(str(number), {"prompt_token_ids": prompt}, parameters, lora_request=lora)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if not output.finished:
                continue
            samples = sorted(output.outputs, key=lambda one: one.index)
            now = time.perf_counter()
            line = {
                "prompt": int(output.request_id),
                "seconds": now - since,
                "samples": [
                    {"ids": list(one.token_ids), "truncated": one.finish_reason == "length"} for one in samples
                ],
            }
            result.write(json.dumps(line) + "\n")
            since = now


if __name__ == "__main__":
    main(sys.argv[1])
