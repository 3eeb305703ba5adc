"""A long real run of the tiny model that looks for leaks of memory, files, sockets and threads.

    cd tests/benchmarks
    python soak.py DIR                                 300 steps of CAST through Ray, FSDP2 and vLLM on the CPU
    python soak.py DIR2 --adv grpo                     its twin: growth that it shares is verl's own
    python soak.py DIR --resume-plot --twin DIR2       verdict and picture from existing samples and the twin's

Further arguments are verl settings that come last (+algorithm.cast.teacher.refresh_interval=5). Other work on the
machine changes the pace, not the memory, so run it alone where you can. DIR gets samples.jsonl, metrics.jsonl (verl's
own), output.log and soak.png.

Exit status:
* 0: nothing grew beyond the bounds below.
* 1: something did, or processes were left behind.
* 2: the run failed or stalled.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import psutil
import tiny
from verl_run import command_and_environment

MIB = 2**20
# Growth per 100 steps up to these bounds is no leak. They are for each kind of process and for the whole tree.
# A step of this run makes about 0.2 MiB of tensors (16 responses). Unfreed batches add 20 MiB in 100 steps.
# Python's and torch's own housekeeping stays well below the bounds. Growth must also exceed the noise: see `grows`.
BOUNDS = {"uss": 8 * MIB, "fds": 1.0, "sockets": 1.0, "threads": 1.0, "processes": 0.5}
TREE_BOUNDS = {"uss": 24 * MIB, "fds": 3.0, "sockets": 3.0, "threads": 3.0, "processes": 1.0}
# Shared memory that the tree maps (Ray's object store, torch); Ray's session directory is mostly logs.
MACHINE_BOUNDS = {"shm_held": 8 * MIB, "shm_files": 1.0, "session_dir": 16 * MIB, "output_log": 16 * MIB}
IN_MIB = {"uss", "rss", "shm_held", "shm_all", "session_dir", "output_log"}
# With fewer steps, a slope shows only the warm-up.
MIN_STEPS = 60
NAMES = {  # process names of Ray and vLLM, and the names in our tables
    "WorkerDict": "actor worker",
    "TaskRunner": "TaskRunner (trainer)",
    "TaskRunnerV1": "TaskRunner (trainer)",
    "vLLMHttpServer": "vLLM server",
    "AgentLoopWorker": "agent loop",
    "AgentLoopWorkerTQ": "agent loop",
    "RewardLoopWorker": "reward",
    "SimpleStorageUnit": "TransferQueue storage",
    "TransferQueueController": "TransferQueue controller",
    "verl.trainer.main_ppo": "driver",
}


class Tree:
    """The processes of one run: the driver's children, and all others with the run's mark in their environment.

    The others are daemons whose parent has ended.
    """

    MARK = "CAST_SOAK_RUN"

    def __init__(self, driver: psutil.Process, mark: str):
        self.driver, self.mark = driver, mark
        self.ours: dict[psutil.Process, str] = {driver: "driver"}
        self.others: set[psutil.Process] = set()
        self.shm_names: set[str] = set()

    def processes(self) -> dict[psutil.Process, str]:
        """The live processes, with the kind of each."""
        children = set()
        for parent in list(self.ours):
            try:
                children.update(parent.children(recursive=parent == self.driver))
            except psutil.Error:
                pass
        for process in psutil.process_iter():
            if process in self.ours or process in self.others:
                continue
            try:
                ours = process in children or process.environ().get(self.MARK) == self.mark
            except psutil.Error:
                ours = False
            if ours:
                self.ours[process] = "?"
            else:
                self.others.add(process)
        for process in list(self.ours):
            try:
                if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                    del self.ours[process]
                    continue
                kind = kind_of(process.cmdline())
            except psutil.Error:
                self.ours.pop(process, None)
                continue
            if kind and not (kind == "ray worker, idle" and self.ours[process] != "?"):
                self.ours[process] = kind
        return dict(self.ours)


def kind_of(cmdline: list[str]) -> str:
    title = " ".join(cmdline).strip()
    if actor := re.match(r"ray::(\w+)", title):
        return "ray worker, idle" if actor[1].startswith("IDLE") else NAMES.get(actor[1], actor[1])
    if title.startswith("VLLM::"):
        return "vLLM engine"
    if not cmdline:
        return ""
    if "-m" in cmdline[1:-1]:
        module = cmdline[cmdline.index("-m") + 1]
        return NAMES.get(module, module)
    program = Path(cmdline[0].split()[0]).name
    if program.startswith("python"):
        scripts = [argument for argument in cmdline[1:] if argument.endswith(".py")]
        code = re.search(r"from (multiprocessing\.\w+)", title)
        program = f"ray {'/'.join(Path(scripts[0]).parts[-2:])}" if scripts else code[1] if code else program
        if program.endswith("default_worker.py"):  # has not named itself yet
            return "ray worker, idle"
    return program


def measure(process: psutil.Process) -> dict:
    with process.oneshot():
        memory = process.memory_full_info()
        fds = _links(f"/proc/{process.pid}/fd")
        return {
            "rss": memory.rss,
            "uss": memory.uss,
            "fds": len(fds),
            "sockets": sum(target.startswith("socket:") for target in fds),
            "threads": process.num_threads(),
        }


def _links(directory: str) -> list[str]:
    links = []
    for name in os.listdir(directory):
        try:
            links.append(os.readlink(f"{directory}/{name}"))
        except FileNotFoundError:
            pass
    return links


def shm_maps(pid: int) -> dict[tuple[str, str], int]:
    """Resident bytes of the /dev/shm files that a process maps, by path and inode. Deleted files count too."""
    held, current = {}, None
    with open(f"/proc/{pid}/maps") as maps:
        if "/dev/shm/" not in maps.read():
            return held
    with open(f"/proc/{pid}/smaps") as maps:
        for line in maps:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                fields = line.split(maxsplit=5)
                current = None
                if len(fields) > 5 and fields[5].startswith("/dev/shm/"):
                    current = (fields[5].strip(), fields[4])
            elif current and line.startswith("Rss:"):
                held[current] = held.get(current, 0) + int(line.split()[1]) * 1024
    return held


def directory_bytes(path: Path | None) -> int:
    return sum(f.lstat().st_size for f in path.rglob("*") if f.is_file()) if path and path.is_dir() else 0


def session_directory(processes: list[psutil.Process]) -> Path | None:
    for process in processes:
        try:
            found = re.search(r"--session[-_]dir=(\S+)", " ".join(process.cmdline()))
        except psutil.Error:
            continue
        if found:
            return Path(found[1])
    return None


def sample(tree: Tree, directory: Path) -> dict:
    processes, held, rows = tree.processes(), {}, []
    for process, kind in processes.items():
        try:
            rows.append({"pid": process.pid, "kind": kind, **measure(process)})
            for key, size in shm_maps(process.pid).items():
                held[key] = max(held.get(key, 0), size)
                tree.shm_names.add(key[0])
        except (psutil.Error, OSError):  # the process has ended meanwhile
            continue
    shm = os.statvfs("/dev/shm")
    return {
        "time": time.time(),
        "step": last_step(directory),
        "processes": rows,
        "machine": {
            "shm_held": sum(held.values()),
            "shm_files": len(held),
            "shm_all": (shm.f_blocks - shm.f_bfree) * shm.f_frsize,  # the whole machine, other runs included
            "session_dir": directory_bytes(session_directory(list(processes))),
            "output_log": (directory / "output.log").stat().st_size,
        },
    }


def last_step(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except json.JSONDecodeError:  # half written
            continue
    return 0


def run(args: argparse.Namespace) -> int:
    """Start the run and sample it to its end. Returns the driver's exit status."""
    directory = args.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("samples.jsonl", "metrics.jsonl", "end.json"):
        (directory / name).unlink(missing_ok=True)
    tiny.write(directory / "tiny")
    mark = uuid.uuid4().hex
    command, environment = command_and_environment(
        directory,
        directory / "tiny",
        f"algorithm.adv_estimator={args.adv}",
        "data.max_response_length=16",
        f"trainer.total_training_steps={args.steps}",
        f"trainer.total_epochs={args.steps // 16 + 2}",  # 64 prompts, 4 a step
        "trainer.save_freq=-1",
        *args.overrides,
        tools=False,
        env={Tree.MARK: mark},
    )
    began = moved = said = time.time()
    step = 0
    with open(directory / "output.log", "w") as log, open(directory / "samples.jsonl", "w") as samples:
        # The driver has its own session: Ctrl-C ends only this script, which then ends the run in order.
        driver = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        tree = Tree(psutil.Process(driver.pid), mark)
        try:
            while driver.poll() is None:
                taken = time.time()
                row = sample(tree, directory)
                print(json.dumps(row), file=samples, flush=True)
                if row["step"] > step:
                    step, moved = row["step"], taken
                if taken - said >= args.progress:
                    said = taken
                    total = sum(p["uss"] for p in row["processes"]) / MIB
                    fds = sum(p["fds"] for p in row["processes"])
                    print(
                        f"{taken - began:6.0f} s  step {step:4d}/{args.steps}  {len(row['processes'])} processes  "
                        f"{total:7.0f} MiB  {fds} fds",
                        flush=True,
                    )
                if taken - moved > args.stall:
                    print(f"no step for {args.stall} s: ending the run", flush=True)
                    break
                time.sleep(max(0.2, args.interval - (time.time() - taken)))
        finally:
            left = end(driver, tree)
    files = {name: os.stat(name).st_blocks * 512 for name in sorted(tree.shm_names) if os.path.exists(name)}
    (directory / "end.json").write_text(
        json.dumps({"returncode": driver.returncode, "steps": args.steps, "left": left, "shm": files})
    )
    return driver.returncode


def end(driver: subprocess.Popen, tree: Tree, patience: float = 60) -> list[str]:
    """End the driver if it still runs, wait for its tree, and kill the rest. Returns the kinds of the rest."""
    if driver.poll() is None:
        tree.processes()
        driver.send_signal(signal.SIGINT)
        try:
            driver.wait(timeout=60)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
    deadline = time.time() + patience
    while (left := tree.processes()) and time.time() < deadline:
        time.sleep(1)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    return sorted(left.values())


def theil_sen(x: np.ndarray, y: np.ndarray) -> float:
    """Median of the slopes between all pairs. It is robust to outliers in up to 29 per cent of the points."""
    if len(x) > 600:
        pick = np.linspace(0, len(x) - 1, 600).astype(int)
        x, y = x[pick], y[pick]
    i, j = np.triu_indices(len(x), 1)
    differ = x[j] != x[i]
    return float(np.median((y[j] - y[i])[differ] / (x[j] - x[i])[differ])) if differ.any() else 0.0


class Series:
    """One number over the steps of the last two thirds of a run."""

    def __init__(self, x: list[float], y: list[float], first: float):
        x, y = np.array(x, dtype=float), np.array(y, dtype=float)
        self.x, self.y = x[x >= first], y[x >= first]
        few = max(1, min(5, len(self.y) // 4))
        self.start = float(np.median(self.y[:few])) if len(self.y) else 0.0
        self.end = float(np.median(self.y[-few:])) if len(self.y) else 0.0
        slope = theil_sen(self.x, self.y)
        self.per_100 = 100 * slope
        residual = self.y - slope * self.x
        self.noise = 1.4826 * float(np.median(np.abs(residual - np.median(residual)))) if len(self.y) else 0.0

    def grows(self, bound: float) -> bool:
        """Whether the number grows faster than the bound, and by more than the noise.

        Both the rise of the line and the difference of the ends must exceed three times the scatter.
        """
        rise = self.per_100 / 100 * float(np.ptp(self.x)) if len(self.x) else 0.0
        return self.per_100 > bound and min(rise, self.end - self.start) > 3 * self.noise


def read(directory: Path) -> tuple[dict[str, dict[str, Series]], dict[str, tuple[list, list]], int]:
    """The series by process kind (with "all" and "machine") and number, the curves for the picture, the last step."""
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    last = last_step(directory)
    # The run is shutting down once its last step is logged.
    samples = [s for s in samples if 1 <= s["step"] < last]
    points: dict = defaultdict(lambda: defaultdict(lambda: ([], [])))
    kinds = sorted({p["kind"] for s in samples for p in s["processes"]})
    # Samples of one step are spread evenly over it, in order of time.
    at_step = Counter(s["step"] for s in samples)
    seen: Counter = Counter()
    for s in samples:
        x = s["step"] + seen[s["step"]] / at_step[s["step"]]
        seen[s["step"]] += 1
        for kind in (*kinds, "all"):
            rows = [p for p in s["processes"] if kind in (p["kind"], "all")]
            values = {name: sum(p[name] for p in rows) for name in ("uss", "rss", "fds", "sockets", "threads")}
            for name, value in (values | {"processes": len(rows)}).items():
                points[kind][name][0].append(x)
                points[kind][name][1].append(value)
        for name, value in s["machine"].items():
            points["machine"][name][0].append(x)
            points["machine"][name][1].append(value)
    series = {k: {n: Series(*xy, first=last / 3) for n, xy in numbers.items()} for k, numbers in points.items()}
    return series, {kind: dict(numbers) for kind, numbers in points.items()}, last


def verdict(directory: Path, twin: Path | None) -> int:
    series, points, last = read(directory)
    state = json.loads((directory / "end.json").read_text()) if (directory / "end.json").exists() else {}
    if not series:
        print("no samples between two steps; nothing to judge")
        return 2
    other = read(twin)[0] if twin else {}

    def cell(kind: str, name: str) -> str:
        s = series[kind][name]
        unit = MIB if name in IN_MIB else 1
        text = f"{s.start / unit:.0f} → {s.end / unit:.0f} ({s.per_100 / unit:+.1f})"
        if name in other.get(kind, {}):
            text += f" twin {other[kind][name].per_100 / unit:+.1f}"
        return text

    def grows(kind: str, name: str, bound: float) -> bool:
        """Whether growth exceeds the bound and the twin's growth, which comes from Ray, vLLM or verl."""
        expected = other[kind][name].per_100 if name in other.get(kind, {}) else 0.0
        return series[kind][name].grows(bound) and series[kind][name].per_100 > expected + bound

    names = ["uss", "rss", "fds", "sockets", "threads", "processes"]
    kinds = sorted((k for k in series if k not in ("all", "machine")), key=lambda k: -series[k]["uss"].end)
    table = [["kind", "USS, MiB", "RSS, MiB", *names[2:], ""]]
    grown = []
    for kind in (*kinds, "all"):
        bounds = TREE_BOUNDS if kind == "all" else BOUNDS
        over = [name for name, bound in bounds.items() if grows(kind, name, bound)]
        grown += [f"{kind}: {name} {cell(kind, name)}" for name in over]
        table.append([kind, *(cell(kind, name) for name in names), f"GROWS: {', '.join(over)}" if over else "flat"])
    print(
        f"\n{directory}: {last} steps; at 1/3 of them → at the end (per 100 steps, Theil-Sen over the last two thirds)"
    )
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for name in series["machine"]:
        over = name in MACHINE_BOUNDS and grows("machine", name, MACHINE_BOUNDS[name])
        unit = " MiB" if name in IN_MIB else ""
        print(f"{name}: {cell('machine', name)}{unit}{'  GROWS' if over else ''}")
        grown += [f"{name}: {cell('machine', name)}{unit}"] if over else []
    print(pace(directory, last))
    if state.get("shm"):
        # A run of any length leaves one set: for example vLLM's message queues, when Ray kills the engine.
        files = ", ".join(f"{name} ({size / MIB:.1f} MiB)" for name, size in state["shm"].items())
        print(f"left in /dev/shm by this run: {files}")
    if state.get("left"):
        grown.append(f"left behind a minute after the end: {', '.join(state['left'])}")
    picture(directory, points)

    if state.get("returncode") != 0:
        print(f"VERDICT: the run failed or did not end, exit status {state.get('returncode')}; see output.log")
        return 2
    if last < MIN_STEPS:
        print(f"VERDICT: none about growth, {last} steps are all warm-up; take {MIN_STEPS} or more")
        return 1 if state.get("left") else 0
    nothing = "nothing grows more than in the twin" if twin else "nothing grows"
    print("VERDICT: " + ("grows beyond the bounds:\n  " + "\n  ".join(grown) if grown else nothing))
    return 1 if grown else 0


def pace(directory: Path, last: int) -> str:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found = [(r["step"], r["data"]["timing_s/step"]) for r in rows if "timing_s/step" in r["data"]]
    s = Series(*zip(*found, strict=True), first=last / 3)
    return f"seconds a step: {s.start:.2f} → {s.end:.2f} ({s.per_100:+.2f})"


def picture(directory: Path, points: dict) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no matplotlib here, so no picture")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(13, 8))
    kinds = sorted((k for k in points if k not in ("all", "machine")), key=lambda k: -points[k]["uss"][1][-1])
    colors = [plt.get_cmap("tab20")(i % 20) for i in range(len(kinds))]
    for axis, name, title in (
        (axes[0, 0], "uss", "memory of its own (USS) against the run's first third, MiB"),
        (axes[0, 1], "fds", "open files"),
        (axes[1, 0], "sockets", "sockets"),
    ):
        for kind, color in zip(kinds, colors, strict=True):
            x, y = points[kind][name]
            y = np.array(y, dtype=float)
            if name == "uss":
                y = (y - np.median(y[: max(1, len(y) // 3)])) / MIB
            axis.plot(x, y, label=kind, color=color, linewidth=1)
        axis.set(xlabel="step", title=title)
    for name in ("shm_held", "session_dir", "output_log"):
        x, y = points["machine"][name]
        axes[1, 1].plot(x, np.array(y) / MIB, label=name, linewidth=1)
    axes[1, 1].set(xlabel="step", title="shared memory and disk, MiB")
    axes[1, 1].legend(fontsize="small")
    axes[0, 0].legend(fontsize="xx-small", ncols=2)
    figure.suptitle(directory.name)
    figure.tight_layout()
    figure.savefig(directory / "soak.png", dpi=110)
    print(f"picture: {directory / 'soak.png'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("overrides", nargs="*", help="verl settings")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--adv", choices=["cast", "grpo"], default="cast")
    parser.add_argument("--interval", type=float, default=5, help="seconds between samples")
    parser.add_argument("--progress", type=float, default=30, help="seconds between lines on the screen")
    parser.add_argument("--stall", type=float, default=900, help="seconds without a step after which the run is ended")
    parser.add_argument("--resume-plot", action="store_true", help="no run: judge and draw the samples in DIR again")
    parser.add_argument("--twin", type=Path, help="directory of another soak, whose growth does not count")
    args = parser.parse_intermixed_args()
    if not args.resume_plot:
        run(args)
    return verdict(args.directory.resolve(), args.twin)


if __name__ == "__main__":
    sys.exit(main())
