"""Follows a quick-start run: a line for each step, then one screen and a picture.

    python watch.py RUN_DIR PID STEPS

Reads what verl's file logger writes (RUN_DIR/metrics.jsonl; earlier_metrics holds the steps before a resumed run's
checkpoint). Exits with 1 and prints the reason if the run failed.
"""

import json
import math
import os
import re
import sys
import time
from pathlib import Path

HEADER = (
    "step  reward  teacher     mixed  all-correct  all-wrong  flipped (correct/wrong)     gap  tokens  s/step  left"
)
TRUSTED, TEACHER_SHARE, POLICY_SHARE = (f"cast/trust/{name}" for name in ("trusted", "teacher_share", "policy_share"))
STAGES = {
    "gen": "generation (vLLM)",
    "cast_trust": "measurement (waiting)",  # most of it goes on beside the generation
    "old_log_prob": "old log-probs",
    "cast_teacher": "self-teacher",
    "adv": "advantages",
    "update_actor": "update (FSDP2)",
    "cast_after_update": "advantages and metrics",
    "update_weights": "weight sync",
    "save_checkpoint": "checkpoint",
}


def read_metrics(run: Path) -> list[dict]:
    """The metrics of a run's finished steps."""
    lines = []
    for path in (run / "earlier_metrics", run / "metrics.jsonl"):
        if path.exists():
            lines += path.read_text().split("\n")[:-1]  # the part after the last line feed is still being written
    return [json.loads(line)["data"] for line in lines]


def is_cast(m: dict) -> bool:
    """Whether these metrics of a step are CAST's, not its GRPO twin's."""
    return "cast/group/mixed_share" in m


def row(step: int, m: dict) -> str:
    reward, tokens, seconds = m["critic/score/mean"], m["response_length/mean"], m["timing_s/step"]
    if not is_cast(m):
        return f"{step:4d}  {reward:6.3f}  {'':65s}  {tokens:15.1f}  {seconds:6.1f}"
    trusted = {None: "–", 0.0: "no: GRPO", 1.0: "trusted"}[m.get(TRUSTED)]
    groups = [100 * m[f"cast/group/{kind}_share"] for kind in ("mixed", "all_correct", "all_wrong")]
    # A step without correct responses has no share of their tokens; one without a teacher's pass has no gap.
    flips = [f"{100 * m[key]:.0f}" if key in m else "–" for key in ("cast/flip/correct_share", "cast/flip/wrong_share")]
    gap = f"{m['cast/gap/mean']:.3f}" if "cast/gap/mean" in m else "–"
    return (
        f"{step:4d}  {reward:6.3f}  {trusted:9s}  {groups[0]:4.0f} %  {groups[1]:9.0f} %  {groups[2]:7.0f} %  "
        f"{flips[0]:>12s} % / {flips[1]:>2s} %  {gap:>8s}  {tokens:6.1f}  {seconds:6.1f}"
    )


def left(metrics: list[dict], steps: int) -> str:
    """About how long the remaining steps take, if they take as long as the last three."""
    last = [m["timing_s/step"] for m in metrics[-3:]]
    seconds = (steps - len(metrics)) * sum(last) / len(last)
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a finished child that the shell has not waited for yet
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def follow(run: Path, pid: int, steps: int) -> list[dict]:
    started, shown, last_note = time.time(), 0, 0.0
    print("      starting Ray, FSDP2 and vLLM: one to three minutes", flush=True)
    while True:
        alive = running(pid)
        metrics = read_metrics(run)
        if metrics and not shown:
            print(f"\n{HEADER}")
        for step, m in enumerate(metrics[shown:], start=shown + 1):
            print(f"{row(step, m)}  {left(metrics[:step], steps)}", flush=True)
        shown = len(metrics)
        if not alive:
            return metrics
        if not shown and time.time() - last_note > 20:
            last_note = time.time()
            print(f"      {last_note - started:3.0f} s", flush=True)
        time.sleep(1)


def failure(run: Path) -> str:
    """The first exception of the driver's traceback that is not one of Ray's wrappers."""
    log = (run / "train.log").read_text(errors="replace")
    driver = log[max(0, log.rfind("Error executing job with overrides")) :]
    errors = re.findall(r"^(?!ray\.exceptions)(\w[\w.]*(?:Error|Exception): .+)$", driver, re.MULTILINE)
    return errors[0] if errors else log[-2000:]


def mean(metrics: list[dict], key: str) -> float:
    values = [m[key] for m in metrics if key in m]
    return sum(values) / len(values) if values else math.nan


def picture(run: Path, metrics: list[dict]) -> Path:
    """reward.png: this run, and the others beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cast = [m for m in metrics if is_cast(m)]
    figure, axes = plt.subplots(1, 2 if cast else 1, squeeze=False, figsize=(10 if cast else 5, 3.6))
    left = axes[0, 0]
    others = [path.parent for path in sorted(run.parent.glob("*/metrics.jsonl")) if path.parent != run]
    for name, series in [(run.name, metrics), *((other.name, read_metrics(other)) for other in others)]:
        left.plot(range(1, len(series) + 1), [m["critic/score/mean"] for m in series], marker=".", label=name)
    left.set(xlabel="step", ylabel="mean reward", ylim=(-0.03, 1.03), title="reward")
    left.legend()
    if cast:
        right = axes[0, 1]
        for key, label in (
            (TRUSTED, "teacher trusted"),
            ("cast/flip/correct_share", "flipped, correct responses"),
            ("cast/flip/wrong_share", "flipped, wrong responses"),
            ("cast/group/mixed_share", "mixed groups"),
        ):
            right.plot(range(1, len(cast) + 1), [m.get(key, math.nan) for m in cast], marker=".", label=label)
        right.set(xlabel="step", ylabel="share", ylim=(-0.03, 1.03), title="what CAST does")
        right.legend(fontsize="small", framealpha=0.6)
    figure.tight_layout()
    figure.savefig(run / "reward.png", dpi=110)
    return run / "reward.png"


def measurements(metrics: list[dict]) -> list[str]:
    """A line for every measurement of the teacher, and how many steps it was trusted."""
    lines = [
        f"    before step {step:<4d} teacher {m[TEACHER_SHARE]:.2f}, policy {m[POLICY_SHARE]:.2f}: "
        f"{m['cast/trust/standard_errors']:.1f} standard errors"
        for step, m in enumerate(metrics, start=1)
        if TEACHER_SHARE in m
    ]
    if not lines:
        return []
    trusted = sum(m[TRUSTED] for m in metrics)
    return [f"  teacher trusted in {trusted:.0f} of {len(metrics)} steps; correct responses when measured:", *lines]


def screen(run: Path, metrics: list[dict]) -> str:
    fifth = max(1, len(metrics) // 5)
    first, last = metrics[:fifth], metrics[-fifth:]
    lines = [
        "",
        "=" * 88,
        f"{'CAST' if is_cast(metrics[0]) else 'GRPO'}: {len(metrics)} steps".ljust(32) + "first fifth   last fifth",
    ]

    def line(label: str, key: str, percent: bool = False) -> None:
        values = [100 * mean(part, key) if percent else mean(part, key) for part in (first, last)]
        unit, digits = (" %", 1) if percent else ("  ", 3)
        lines.append(f"  {label:28s}{values[0]:11.{digits}f}{unit}{values[1]:11.{digits}f}{unit}")

    line("mean reward", "critic/score/mean")
    line("response length, tokens", "response_length/mean")
    if is_cast(metrics[0]):
        for kind in ("mixed", "all_correct", "all_wrong"):
            line(f"{kind.replace('_', '-')} groups", f"cast/group/{kind}_share", percent=True)
        line("flipped, correct responses", "cast/flip/correct_share", percent=True)
        line("flipped, wrong responses", "cast/flip/wrong_share", percent=True)
        line("gap, mean", "cast/gap/mean")
        line("gap, mean of |g|", "cast/gap/abs_mean")
        lines += measurements(metrics)
    lines.append("  seconds per stage, mean of all steps:")
    total = mean(metrics, "timing_s/step")
    for stage, label in STAGES.items():
        seconds = sum(m.get(f"timing_s/{stage}", 0.0) for m in metrics) / len(metrics)
        if seconds > 0.005:
            lines.append(f"    {label:26s}{seconds:11.2f}  {100 * seconds / total:10.0f} %")
    lines.append(f"    {'whole step':26s}{total:11.2f}")
    checkpoints = sorted(run.glob("checkpoints/global_step_*"), key=lambda p: p.stat().st_mtime)
    lines += [
        f"  metrics     {run / 'metrics.jsonl'}",
        f"  checkpoint  {checkpoints[-1] if checkpoints else 'none'}",
        f"  picture     {picture(run, metrics)}",
        f"  log         {run / 'train.log'}",
    ]
    return "\n".join(lines)


def main() -> int:
    run, pid, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    metrics = follow(run, pid, steps)
    if len(metrics) < steps:
        print(f"\nThe run ended after {len(metrics)} of {steps} steps:\n  {failure(run)}\nIts log: {run / 'train.log'}")
        return 1
    print(screen(run, metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
