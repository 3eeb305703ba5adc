"""Study (c): two cells of study (b) again through verl itself: Ray, FSDP2, vLLM and verl's trainer.

    python examples/study/through_verl.py --dry-run       the commands
    python examples/study/through_verl.py                 3 seeds of two cells; goes on where it was stopped

Every run is a quick start with this study's problems and context. A run takes about 12 minutes on two idle cores.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from arithmetic import CONTEXTS, HERE, MODEL, cells
from course import ARMS, append, pending

ROOT = HERE.parents[1]
RESULTS = HERE / "raw" / "through_verl.jsonl"
WORK = ROOT / ".study" / "through_verl"
QUICKSTART = ROOT / "examples" / "quickstart"
STEPS = 20


def command(cell: str, arm: str, seed: int) -> tuple[dict[str, str], list[str]]:
    """The environment's additions and the command of a run."""
    density = cell.rpartition("_")[0]
    method = "grpo" if arm == "grpo" else "cast"
    environment = {
        "ADV": method,
        "STEPS": str(STEPS),
        "OUT": str(WORK / density),
        "TEACHER": str(CONTEXTS[density]),
    }
    settings = {} if arm == "grpo" else ARMS[arm].settings
    return environment, [
        "bash",
        str(QUICKSTART.with_suffix(".sh")),
        "data.max_response_length=16",
        f"data.seed={seed}",
        f"trainer.test_freq={STEPS}",
        *(f"++algorithm.cast.{key}={value}" for key, value in settings.items()),
    ]


def prepare(density: str) -> None:
    """This study's problems where the quick start looks for its own, and its model."""
    import pandas as pd

    found, directory = cells()[f"{density}_fit"], WORK / density / "data"
    directory.mkdir(parents=True, exist_ok=True)
    for name, problems in (("train", found.train), ("val", found.held_out)):
        rows = [
            {
                "data_source": f"study/{density}",
                "prompt": [{"role": "user", "content": question}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(answer)},
                "extra_info": {"index": index},
            }
            for index, (question, answer) in enumerate(problems)
        ]
        pd.DataFrame(rows).to_parquet(directory / f"{name}.parquet")
    # prepare.py makes data anew unless this file says that they are there.
    recipe = (QUICKSTART / "prepare.py").read_text() + (QUICKSTART / "teacher.jinja").read_text()
    (directory / "made_from.json").write_text(json.dumps(recipe))
    model = WORK / density / "model"
    if not model.exists() and MODEL.exists():
        model.symlink_to(MODEL)


def outcome(metrics: Path) -> dict:
    """What verl's own metrics file says of a run, in the form of the other studies."""
    steps = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    rewards = [step["critic/score/mean"] for step in steps if "critic/score/mean" in step]
    (held_out,) = [value for name, value in steps[-1].items() if name.startswith("val-core/") and "reward/mean" in name]
    return {
        "course": round(float(np.mean(rewards)), 4),
        "held_out": [[len(rewards), round(held_out, 4)]],
        "reward": [round(100 * reward) for reward in rewards],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--cells", default="sparse_fit,dense_fit")
    parser.add_argument("--arms", default="grpo,tenth_deadzone,exact")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of the runs that are missing")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for cell, arm, seed in pending(RESULTS, seeds, args.cells.split(","), args.arms.split(","), by_cell=True):
        environment, words = command(cell, arm, seed)
        print(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(words)]))
        if args.dry_run:
            continue
        prepare(cell.rpartition("_")[0])
        started = time.monotonic()
        if subprocess.run(words, env=os.environ | environment, cwd=ROOT).returncode:
            sys.exit(f"{cell} {arm} {seed} failed; its log is in {environment['OUT']}/{environment['ADV']}/train.log")
        found = outcome(Path(environment["OUT"]) / environment["ADV"] / "metrics.jsonl")
        run = {"cell": cell, "arm": arm, "seed": seed, **found, "seconds": round(time.monotonic() - started)}
        append(RESULTS, run)


if __name__ == "__main__":
    main()
