"""A long real run of the tiny model that looks for leaks of memory, files, sockets and threads.

    python tests/benchmarks/soak.py DIR                300 steps of CAST through Ray, FSDP2 and vLLM on the CPU
    python tests/benchmarks/soak.py DIR2 --adv grpo    its GRPO twin: growth that both share is verl's own

Verl settings may follow (++algorithm.cast.teacher.refresh_interval=5). DIR gets samples.jsonl, verl's metrics.jsonl and
output.log. Prints, for every kind of process, the value after a third of the steps and at the end, and the growth per
100 steps between. Exit status: 0 nothing grew beyond BOUNDS, 1 something did, 2 the run failed.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import tiny  # noqa: E402
from verl_run import command_and_environment  # noqa: E402

MIB = 2**20
# Growth per 100 steps of one kind of process that is no leak. Batches that nothing frees add 20 MiB in 100 steps.
BOUNDS = {"memory_mib": 8.0, "fds": 1.0, "sockets": 1.0, "threads": 1.0, "processes": 0.5}
MIN_STEPS = 60  # with fewer, a slope shows only the warm-up


def kind_of(process: psutil.Process) -> str:
    """`WorkerDict` of a Ray actor, else the program or module that runs."""
    words = process.cmdline()
    title = " ".join(words)
    if actor := re.match(r"ray::(\w+)", title):
        return actor[1]
    if "-m" in words[1:-1]:
        return words[words.index("-m") + 1]
    return title.split()[0].rpartition("/")[2] if title else "?"


def sample(driver: psutil.Process) -> dict[str, dict[str, float]]:
    """The run's processes by kind; `memory_mib` is the memory that no other process shares (USS)."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(BOUNDS, 0.0))
    for process in [driver, *driver.children(recursive=True)]:
        try:
            with process.oneshot():
                row = {
                    "memory_mib": process.memory_full_info().uss / MIB,
                    "fds": process.num_fds(),
                    "sockets": len(process.net_connections("all")),
                    "threads": process.num_threads(),
                    "processes": 1,
                }
                kind = kind_of(process)
        except psutil.Error:  # it has ended meanwhile
            continue
        for name, value in row.items():
            found[kind][name] += value
    return dict(found)


def steps_done(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def run(args: argparse.Namespace) -> int:
    """Start the run and sample it to its end; returns its exit status."""
    directory = args.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    tiny.write(directory / "tiny")
    command, environment = command_and_environment(
        directory,
        directory / "tiny",
        f"algorithm.adv_estimator={args.adv}",
        f"trainer.total_training_steps={args.steps}",
        f"trainer.total_epochs={args.steps}",
        "trainer.save_freq=-1",
        *args.overrides,
        tools=False,
    )
    with (directory / "output.log").open("w") as log, (directory / "samples.jsonl").open("w") as samples:
        driver = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT)
        shown = 0
        while driver.poll() is None:
            row = {"step": steps_done(directory), "processes": sample(psutil.Process(driver.pid))}
            print(json.dumps(row), file=samples, flush=True)
            if row["step"] >= shown + 10:
                shown = row["step"]
                total = sum(values["memory_mib"] for values in row["processes"].values())
                print(f"step {shown}/{args.steps}: {total:.0f} MiB", flush=True)
            time.sleep(args.interval)
    return driver.returncode


def growth(directory: Path, steps: int) -> list[str]:
    """Prints the table; returns what grew beyond BOUNDS."""
    rows = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    rows = [row for row in rows if steps / 3 <= row["step"] < steps]  # after the warm-up, before the shutdown
    grown = []
    for kind in sorted({kind for row in rows for kind in row["processes"]}):
        for name, bound in BOUNDS.items():
            points = [(row["step"], row["processes"].get(kind, {}).get(name, 0.0)) for row in rows]
            x, y = np.array(points).T
            slope, fifth = np.polyfit(x, y, 1)[0], max(1, len(y) // 5)
            grows = 100 * slope > bound and np.median(y[-fifth:]) > y[:fifth].max()  # beyond the scatter
            print(f"{kind:32s}{name:12s}{y[0]:10.1f} → {y[-1]:10.1f}   {100 * slope:+8.2f}{'  GROWS' if grows else ''}")
            grown += [f"{kind}: {name}"] if grows else []
    return grown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("overrides", nargs="*", help="verl settings")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--adv", choices=["cast", "grpo"], default="cast")
    parser.add_argument("--interval", type=float, default=5, help="seconds between samples")
    args = parser.parse_intermixed_args()
    status = run(args)
    if status != 0:
        print(f"the run ended with status {status}; see {args.directory / 'output.log'}")
        return 2
    if args.steps < MIN_STEPS:
        print(f"{args.steps} steps are all warm-up; growth shows from {MIN_STEPS} on")
        return 0
    grown = growth(args.directory, args.steps)
    print(f"grows beyond the bounds: {', '.join(grown)}" if grown else "nothing grows beyond the bounds")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
