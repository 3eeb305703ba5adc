"""Samples from a model with vLLM in a separate process; yields a prompt's samples when they are finished.

The process frees all of the accelerator's memory when it ends. vLLM's output goes to a log file. The process is
`python -m verl_cast.tools.vllm_process FD`. It reads a request from its standard input, and writes a line of JSON for
every finished prompt to the file descriptor FD. If it ends early, the reader decides what to keep.
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

import psutil

from verl_cast.tools.cli import UserError

MAX_MESSAGE = 2000  # characters of a message from vLLM; the log has the rest


def sample(
    engine: Mapping[str, Any],
    sampling: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    log: Path,
) -> Iterator[dict[str, Any]]:
    """Sample every prompt; vLLM chooses the batches.

    Args:
        engine: arguments of `vllm.LLM`.
        sampling: arguments of `vllm.SamplingParams`, including n (samples per prompt).
        prompts: token ids.
        seeds: one per prompt; a prompt's further samples use the seeds that follow it.
        log: file for vLLM's output.

    Yields:
        for every prompt, in the order in which they are finished: {"prompt": its index in `prompts`, "seconds": since
        the previous one was finished (for the first: since vLLM was ready), "samples": n times {"ids": token ids with
        the end-of-sequence token, "truncated": the length limit was reached}}.

    Raises:
        UserError: vLLM failed; the message gives its reason.
    """
    request = {
        "engine": dict(engine),
        "sampling": dict(sampling),
        "prompts": [list(prompt) for prompt in prompts],
        "seeds": list(seeds),
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
            with contextlib.suppress(BrokenPipeError):  # it ended early; its log gives the reason
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            for line in lines:
                if line.endswith("\n"):  # else the process was killed while writing it
                    yield json.loads(line)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # ends the process if it is still running
            process.wait()
    if process.returncode:
        raise UserError(f"vLLM could not sample: {root_cause(log.read_text(errors='replace'))} (its log: {log})")


# A line of the log: the mark of its process and record (a name and pid, a rank, a log record's head), then the text.
_LINE = re.compile(r"((?:\(.*?\) |\[.*?\]: )?(?:[A-Z]+ \d[^\]]*\] )?)(.*)")
_EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception): .")
_NEXT_RECORD = re.compile(r"Traceback |During handling |The above exception |$")


def root_cause(log: str) -> str:
    """The first exception in a log, its whole message on one line. Later ones only report that something failed."""
    lines = [_LINE.match(line).groups() for line in log.splitlines()]
    for i, (mark, text) in enumerate(lines):
        if not _EXCEPTION.match(text):
            continue
        message = [text]
        for next_mark, more in lines[i + 1 :]:
            if next_mark != mark or _NEXT_RECORD.match(more) or _EXCEPTION.match(more):
                break
            message.append(more)
        return " ".join(" ".join(message).split())[:MAX_MESSAGE]
    texts = [mark + text for mark, text in lines if text.strip()] or ["the log is empty"]
    return texts[-1].strip()[:MAX_MESSAGE]


def kv_cache_on_a_cpu(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, int]:
    """vLLM's KV cache on a CPU: a quarter of the free memory, at least 1 GiB, unless someone chose its size.

    Without a size, vLLM takes gpu_memory_utilization of the host's memory, and refuses to start if less is free.
    """
    if environment.get("VLLM_CPU_KVCACHE_SPACE") or "kv_cache_memory_bytes" in arguments:
        return {}
    return {"kv_cache_memory_bytes": max(2**30, psutil.virtual_memory().available // 4)}


def _end_with_the_parent() -> None:
    """Interrupt this process, and with it vLLM's own, when the reader closes the input or ends, even by SIGKILL."""
    os.read(sys.stdin.fileno(), 1)  # returns at the end of the input: nothing more is written
    os.kill(os.getpid(), signal.SIGINT)


def main(result_fd: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    result = os.fdopen(int(result_fd), "w", buffering=1)
    arguments = request["engine"]
    if current_platform.is_cpu():
        # Chunked prefill rewinds a seeded generator, which torch's CPU generator does not support.
        arguments = {"enable_chunked_prefill": False, **kv_cache_on_a_cpu(arguments, os.environ), **arguments}
    # The engine is used directly: LLM.generate returns only when all prompts are finished.
    engine = LLM(**arguments).llm_engine
    since = time.perf_counter()
    for number, (prompt, seed) in enumerate(zip(request["prompts"], request["seeds"], strict=True)):
        parameters = SamplingParams(
            seed=seed, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **request["sampling"]
        )
        engine.add_request(str(number), {"prompt_token_ids": prompt}, parameters)
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
