"""Cost of a CAST step relative to a step of verl's own GRPO, alternating inside one real verl run. Not a test.

    cd tests/benchmarks
    python bench_steps.py --list                                      lists the points
    python bench_steps.py                                             the point `base`, a tiny model
    python bench_steps.py --arms grpo,measured batch_64x8             a measurement of trust=measured
    python bench_steps.py base lora response_long+context_same        several runs; + joins points
    python bench_steps.py --model DIR --rounds 8 --out FILE base      a real model; one JSON line per run
    python bench_steps.py base actor_rollout_ref.actor.optim.lr=1e-5  verl settings come last and win

All arms share a run: its processes, engine, weights, policy loss and prompts, which are the same in every step. The
policy loss is `cast`, which costs GRPO no more than verl's `vanilla`. Every response has its full length (ignore_eos),
so all steps have the same shape. Mixed lengths are not measured. The learning rate is tiny but moves the weights. The
teacher is the snapshot from before the first step, so the time of taking a snapshot is not measured.

A round holds one step of each arm (bench_trainer.py), and ratios are taken within rounds. The first rounds are warm-up
and are dropped. Without a GPU the run uses the CPU platform. With a GPU it uses verl's own platform, also in float32.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import tiny
import torch
from bench_trainer import ALL_ARMS, ARMS, GRPO, MEASURED, ONE_PASS, TWO_PASS, arm_of_step
from verl_run import command_and_environment, execute

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
MAX_PROMPT = 96  # tokens
TITLES = {GRPO: "GRPO", ONE_PASS: "CAST one-pass", TWO_PASS: "CAST two-pass", MEASURED: "GRPO, measured"}
# verl's stages, in the order of a step; others follow.
STAGES = ("gen", "reward", "old_log_prob", "ref", "cast_teacher", "adv", "update_actor", "update_weights")
MIB, GIB = 2**20, 2**30


class BenchError(Exception):
    """A run did not measure what its point and its arms stand for. The message names the difference."""


@dataclass(frozen=True)
class Workload:
    """The work of every step of a run."""

    prompts: int = 4
    responses: int = 8  # of each prompt
    length: int = 64  # tokens of each response
    micro_batch: int = 8  # rows
    dynamic: bool = False  # micro-batches by tokens (as many as `micro_batch` full rows have), without padding
    lora_rank: int = 0
    context: str = "plain"
    made_model: tuple[int, int] | None = None  # (layers, width) of a model made here in place of --model

    def overrides(self, data: Path, model: Path, steps: int) -> list[str]:
        """verl's settings."""
        settings = [
            "algorithm.adv_estimator=cast",
            "+algorithm.cast.teacher.refresh_interval=1000000",
            "+algorithm.cast.noise_floor_interval=null",
            f"+algorithm.cast.teacher.context={self.context}",
            f"data.train_files={data}",
            f"data.val_files={data}",
            f"data.train_batch_size={self.prompts}",
            f"data.max_prompt_length={MAX_PROMPT}",
            f"data.max_response_length={self.length}",
            "data.shuffle=False",
            f"{MODEL}.path={model}",
            f"{ACTOR}.ppo_mini_batch_size={self.prompts}",
            f"{ACTOR}.ppo_micro_batch_size_per_gpu={self.micro_batch}",
            f"{ACTOR}.optim.lr=1e-6",
            f"{ROLLOUT}.n={self.responses}",
            f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu={self.micro_batch}",
            f"{ROLLOUT}.ignore_eos=True",
            f"{ROLLOUT}.max_num_seqs={self.prompts * self.responses}",
            f"{ROLLOUT}.max_model_len={2 * MAX_PROMPT + self.length}",  # the teacher's prompt is longer
            "trainer.save_freq=-1",
            f"trainer.total_training_steps={steps}",
            f"trainer.total_epochs={steps}",  # the data hold one batch
        ]
        if self.dynamic:
            tokens = self.micro_batch * (MAX_PROMPT + self.length)
            settings += [
                f"{MODEL}.use_remove_padding=True",
                f"{ACTOR}.use_dynamic_bsz=True",
                f"{ACTOR}.ppo_max_token_len_per_gpu={tokens}",
                f"{ROLLOUT}.log_prob_use_dynamic_bsz=True",
                f"{ROLLOUT}.log_prob_max_token_len_per_gpu={tokens}",
            ]
        if self.lora_rank:
            settings += [
                f"{MODEL}.lora_rank={self.lora_rank}",
                f"{MODEL}.lora_alpha={2 * self.lora_rank}",
                f"{MODEL}.target_modules=all-linear",
                f"{MODEL}.lora.merge=True",
            ]
        return settings

    def __str__(self) -> str:
        rows = f"{self.prompts} prompts x {self.responses} responses x {self.length} tokens"
        batches = f"micro-batches of {self.micro_batch} rows{' by tokens, no padding' if self.dynamic else ''}"
        trained = f"LoRA rank {self.lora_rank}" if self.lora_rank else "all parameters"
        return f"{rows}, {batches}, {trained}, teacher's context {self.context}"


BASE = Workload()
POINTS: dict[str, dict] = {  # each changes the base in one respect
    "base": {},
    "response_short": {"length": 16},
    "response_long": {"length": 256},
    "group_small": {"responses": 2},
    "group_large": {"responses": 16},
    "model_small": {"made_model": (2, 64)},
    "model_large": {"made_model": (8, 512)},
    "micro_small": {"micro_batch": 2},
    "micro_whole": {"micro_batch": BASE.prompts * BASE.responses},
    "micro_dynamic": {"dynamic": True},
    "lora": {"lora_rank": 8},
    "context_same": {"context": "same"},
    "batch_64x8": {"prompts": 64},
}


def workload(name: str) -> Workload:
    """The workload of a point, or of several points joined by +.

    Raises:
        BenchError: an unknown name, or two points that set the same thing.
    """
    changes: dict = {}
    for part in name.split("+"):
        if part not in POINTS:
            raise BenchError(f"{part!r} is no point; the points are {', '.join(POINTS)}.")
        if both := changes.keys() & POINTS[part].keys():
            raise BenchError(f"{name!r}: {part} sets {', '.join(both)} a second time; name it once.")
        changes |= POINTS[part]
    return replace(BASE, **changes)


# ----------------------------------------------------------------------------------------------------------- measuring


def write_data(path: Path, prompts: int) -> None:
    """Write one batch of prompts as chat messages."""
    import pandas as pd

    rows = [
        {
            "data_source": "bench",
            "prompt": [{"role": "user", "content": f"What is {number % 10} + {number // 10}?"}],
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": number},
        }
        for number in range(prompts)
    ]
    pd.DataFrame(rows).to_parquet(path)


def write_model(path: Path, layers: int, width: int) -> None:
    """Write a Qwen3 with the tokenizer of tests/support/tiny.py and heads of width 32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = {
        **{key: getattr(tiny.model().config, key) for key in ("vocab_size", "eos_token_id", "pad_token_id")},
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**settings, bos_token_id=None)).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)


def run_point(
    name: str, directory: Path, arms: tuple[str, ...], rounds: int, model: Path | None, overrides: Sequence[str]
) -> list[dict]:
    """Run verl in `directory` and read its steps (`read_steps`).

    Raises:
        BenchError: the run failed, or an arm did not do what its name says.
    """
    work, steps = workload(name), rounds * len(arms)
    tiny.write(directory)
    if work.made_model is not None:
        model = directory / "made_model"
        write_model(model, *work.made_model)
    write_data(directory / "batch.parquet", work.prompts)
    settings = work.overrides(directory / "batch.parquet", model or directory / "model", steps)
    environment = {"VERL_USE_EXTERNAL_MODULES": "bench_trainer", "BENCH_ARMS": ",".join(arms)}
    # Otherwise Ray gives every actor one thread. The quick start sets this too.
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if torch.cuda.is_available():
        settings.append("trainer.device=cuda")
        environment["VERL_PLATFORM"] = "cuda"
    command, environment = command_and_environment(
        directory / "run", directory, *settings, *overrides, tools=False, env=environment
    )
    print(f"{name}: {work}; {steps} steps, starting", flush=True)
    ended = threading.Event()
    watcher = threading.Thread(target=_show_steps, args=(name, directory / "run", arms, steps, ended))
    watcher.start()
    try:
        run = execute(directory / "run", command, environment, timeout=600 * (steps + 1))
    finally:
        ended.set()
        watcher.join()
    if run.returncode != 0:
        tail = "\n".join(run.output.splitlines()[-30:])
        raise BenchError(f"verl ended with status {run.returncode}; its log is {directory}/run/output.log:\n{tail}")
    recorded = read_steps(run.metrics, arms)
    check(recorded, work.length)
    return recorded


def _show_steps(name: str, directory: Path, arms: tuple[str, ...], steps: int, ended: threading.Event) -> None:
    """Print each step once it is in verl's metrics file."""
    seen, started = 0, time.monotonic()
    while not ended.wait(1):
        path = directory / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        for line in lines[seen:]:
            seen += 1
            seconds = json.loads(line)["data"]["timing_s/step"]
            title = TITLES[arm_of_step(seen, arms)]
            print(f"{name}: step {seen}/{steps}  {title:14s}{seconds:8.2f} s   at {time.monotonic() - started:.0f} s")
            sys.stdout.flush()


def read_steps(metrics: Sequence[Mapping[str, float]], arms: tuple[str, ...]) -> list[dict]:
    """Each step's {"step", "round", "arm", "seconds": by stage, "bytes", "metrics": evidence}, from verl's metrics.

    `seconds` holds verl's stages, and `step`, `training` and `after_step`. `step` is all stages and the time between
    them. `training` is `step` without gen. `after_step` is the time of verl's metrics, which follow its step.
    """
    steps = []
    for number, data in enumerate(metrics, start=1):
        arm = arm_of_step(number, arms)
        if ALL_ARMS[int(data["bench/arm"])] != arm:
            raise BenchError(f"step {number} was the turn of {ALL_ARMS[int(data['bench/arm'])]}, not of {arm}.")
        seconds = {key.removeprefix("timing_s/"): value for key, value in data.items() if key.startswith("timing_s/")}
        seconds["training"] = seconds["step"] - seconds["gen"]
        seconds["after_step"] = data["bench/after_step_s"]
        memory = {key.removeprefix("bench/"): data[key] for key in data if key.startswith(("bench/w", "bench/t"))}
        if "cast/teacher/host_gib" in data:
            memory["teacher"] = round(data["cast/teacher/host_gib"] * GIB)
        evidence = {key: data[key] for key in data if key.startswith(("cast/", "response_length/", "prompt_length/"))}
        record = {"step": number, "round": (number - 1) // len(arms), "arm": arm, "seconds": seconds}
        steps.append({**record, "bytes": memory, "metrics": evidence})
    return steps


def check(steps: Sequence[Mapping], length: int) -> None:
    """Check that every arm did what its name says, and that all steps had the same shape.

    Raises:
        BenchError: names the step.
    """
    for step in steps:
        metrics, arm = step["metrics"], step["arm"]
        where = f"step {step['step']} ({TITLES[arm]})"
        if not metrics["response_length/min"] == metrics["response_length/max"] == length:
            raise BenchError(
                f"{where}: responses of {metrics['response_length/min']:g} to "
                f"{metrics['response_length/max']:g} tokens, not all of {length}."
            )
        of_cast = any(key.startswith("cast/") for key in metrics)
        if of_cast != (arm != GRPO):
            raise BenchError(f"{where}: {'CAST has left metrics' if of_cast else 'no metric of CAST'}.")
        if arm != GRPO and metrics.get("cast/one_pass", 0.0) != float(arm == ONE_PASS):
            raise BenchError(
                f"{where}: cast/one_pass is {metrics.get('cast/one_pass')}, CAST took its other path. The run's line "
                "`[verl_cast] old log-probs` says why; where one pass cannot be, leave it out of --arms."
            )
        if (arm == MEASURED) != ("cast/trust/teacher_share" in metrics):
            raise BenchError(f"{where}: the teacher was {'not ' if arm == MEASURED else ''}measured.")
        if arm not in (GRPO, MEASURED) and step["round"] > 0 and metrics["cast/teacher/forward"] != 1:
            raise BenchError(f"{where}: the teacher's forward was left out; it was asked to run in every step.")


# --------------------------------------------------------------------------------------------------------- summarizing


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def summarize(steps: Sequence[Mapping], warmup: int) -> dict:
    """Medians and spreads of the rounds after the first `warmup`.

    Returns:
        {"rounds": counted, "seconds": {arm: {stage: spread}}, "bytes": {arm: {name: largest}}, "one_pass": {arm: CAST's
        own metric}, "ratios": {arm: {"step", "training": spread}}}. `ratios` compares every other arm with the GRPO
        step of the same round.

    Raises:
        BenchError: no whole round is left.
    """
    counted = [step for step in steps if step["round"] >= warmup]
    if not counted:
        raise BenchError(f"no round is left after {warmup} of warm-up.")
    by_arm: dict[str, list] = {}
    for step in counted:
        by_arm.setdefault(step["arm"], []).append(step)
    if len({len(turns) for turns in by_arm.values()}) > 1:
        raise BenchError("the last round is not whole.")
    seconds, memory, paths, ratios = {}, {}, {}, {}
    for arm, turns in by_arm.items():
        stages = {stage: None for turn in turns for stage in turn["seconds"]}
        seconds[arm] = {stage: spread([turn["seconds"].get(stage, 0.0) for turn in turns]) for stage in stages}
        names = {name: None for turn in turns for name in turn["bytes"]}
        memory[arm] = {name: max(turn["bytes"].get(name, 0) for turn in turns) for name in names}
        paths[arm] = turns[0]["metrics"].get("cast/one_pass")  # `check` ensures that all turns agree
        if arm != GRPO and GRPO in by_arm:
            pairs = list(zip(turns, by_arm[GRPO], strict=True))  # both in the order of the rounds
            ratios[arm] = {
                part: spread([mine["seconds"][part] / grpo["seconds"][part] for mine, grpo in pairs])
                for part in ("step", "training")
            }
    rounds = len(next(iter(by_arm.values())))
    return {"rounds": rounds, "seconds": seconds, "bytes": memory, "one_pass": paths, "ratios": ratios}


def table(summary: Mapping) -> str:
    """The summary as text, with a column for each arm. Seconds are medians (smallest to largest)."""
    arms = [arm for arm in ALL_ARMS if arm in summary["seconds"]]
    lines = [f"{summary['rounds']} rounds".ljust(26) + "".join(TITLES[arm].rjust(28) for arm in arms)]

    def row(title: str, cells: Sequence[str]) -> None:
        lines.append(f"  {title:24s}" + "".join(cell.rjust(28) for cell in cells))

    def times(value: Mapping | None, unit: str) -> str:
        return "-" if value is None else f"{value['median']:.3f}{unit} ({value['min']:.3f} to {value['max']:.3f})"

    named = {stage: None for arm in arms for stage in summary["seconds"][arm]}
    sums = ("step", "training", "after_step")
    stages = [stage for stage in (*STAGES, *(s for s in named if s not in STAGES)) if stage in named]
    for stage in [*(stage for stage in stages if stage not in sums), *sums]:
        title = {"step": "whole step", "training": "step without gen", "after_step": "after the step"}.get(stage, stage)
        row(title, [times(summary["seconds"][arm].get(stage), " s") for arm in arms])
    for part, title in (("step", "ratio of whole steps"), ("training", "ratio without gen")):
        row(title, [times(summary["ratios"].get(arm, {}).get(part), " x") for arm in arms])
    row("cast/one_pass", ["-" if summary["one_pass"][arm] is None else f"{summary['one_pass'][arm]:g}" for arm in arms])
    for name, title in (
        ("worker/peak", "accelerator peak"),
        ("worker/peak_rss", "actor worker, peak RSS"),
        ("worker/rss", "actor worker, RSS"),
        ("trainer/peak_rss", "trainer, peak RSS"),
        ("teacher", "teacher's copy on host"),
    ):
        sizes = [summary["bytes"][arm].get(name) for arm in arms]
        row(title, ["-" if size is None else f"{size / MIB:.1f} MiB" for size in sizes])
    if not any(summary["bytes"][arm].get("worker/peak") for arm in arms):
        lines.append("  accelerator peak: 0, there is none; the actor worker's memory is the host's")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- command


def machine() -> dict:
    """The machine and the versions. `load` is the load average of the last minute."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "commit": commit.stdout.strip(),
        "accelerator": device,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "utc": time.strftime("%F %T", time.gmtime()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="POINT or KEY=VALUE", help="default: base")
    parser.add_argument("--list", action="store_true", help="name the points and end")
    parser.add_argument("--model", type=Path, help="directory of a model with a chat template; default: a tiny one")
    parser.add_argument("--arms", default=",".join(ARMS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=8, help="counted rounds, a step of each arm (default: 8)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them, dropped (default: 1)")
    parser.add_argument("--out", type=Path, help="append a JSON line for each run: workload, machine, steps, summary")
    parser.add_argument("--keep", type=Path, help="keep the runs' directories (logs, metrics) below this one")
    arguments = parser.parse_args()
    points = [name for name in arguments.names if "=" not in name] or ["base"]
    overrides = [name for name in arguments.names if "=" in name]
    if arguments.list:
        for name in POINTS:
            print(f"{name:16s}{workload(name)}{_made(workload(name))}")
        return 0
    arms = tuple(arguments.arms.split(","))
    if not set(arms) <= set(ALL_ARMS) or len(set(arms)) < len(arms):
        parser.error(f"--arms {arguments.arms}: name each of {', '.join(ALL_ARMS)} at most once")
    if arguments.warmup < 1 or arguments.rounds < 1:
        parser.error("--warmup and --rounds must be at least 1: an arm's first step pays for start-up")
    try:
        for name in points:
            workload(name)
    except BenchError as error:
        parser.error(str(error))
    failed = [name for name in points if not _measured(name, arms, overrides, arguments)]
    return 1 if failed else 0


def _made(work: Workload) -> str:
    return "" if work.made_model is None else ", model of {} layers, {} wide".format(*work.made_model)


def _measured(name: str, arms: tuple[str, ...], overrides: list[str], arguments: argparse.Namespace) -> bool:
    """Measure one point, print it, and write it to --out. Returns False if it failed."""
    kept = None if arguments.keep is None else (arguments.keep / name).resolve()
    directory = kept or Path(tempfile.mkdtemp(prefix="bench_steps_"))
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = None if arguments.model is None else arguments.model.resolve()
    on = machine()
    print(f"{name}: load average before the run {on['load']:.2f}; the ratios want an idle machine")
    try:
        rounds = arguments.warmup + arguments.rounds
        steps = run_point(name, directory, arms, rounds, model, overrides)
        summary = summarize(steps, arguments.warmup)
    except BenchError as error:
        print(f"{name}: FAILED: {error}", file=sys.stderr)
        return False  # its directory stays for inspection
    if kept is None:
        shutil.rmtree(directory)
    work = workload(name)
    used = "made here" if work.made_model else str(arguments.model or "tiny")
    print(f"\n{name}: {work}{_made(work)}; model {used}{' '.join(['', *overrides])}\n{table(summary)}\n", flush=True)
    if arguments.out is not None:
        described = {"point": name, "model": used, "workload": asdict(work), "overrides": overrides, "arms": arms}
        line = {**described, "machine": on, "warmup": arguments.warmup, "summary": summary, "steps": steps}
        with arguments.out.open("a") as out:
            out.write(json.dumps(line) + "\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
