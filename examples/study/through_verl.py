"""Study (c): two cells of study (b) again through verl itself: Ray, FSDP2, vLLM and verl's trainer.

    python examples/study/through_verl.py --dry-run       the commands
    python examples/study/through_verl.py                 3 seeds of two cells; goes on where it was stopped
    python examples/study/through_verl.py --loop          the same in the loop, on the problems that verl draws

Every run is a quick start with this study's problems and context.
"""

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from arithmetic import CONTEXTS, HERE, MAX_TOKENS, MODEL, PLAN, TEMPERATURE, TOP_K, SmolLM, cells
from course import ARMS, Cell, append, course, pending

ROOT = HERE.parents[1]
RESULTS = HERE / "raw" / "through_verl.jsonl"
LOOP_RESULTS = HERE / "raw" / "through_verl_loop.jsonl"
WORK = ROOT / ".study" / "through_verl"
QUICKSTART = ROOT / "examples" / "quickstart"
STEPS = 14
BATCHES = range(0, STEPS * PLAN.problems, PLAN.problems)
# Where the quick start differs from the loop. A prompt has 48 tokens at most.
AS_IN_THE_LOOP = (
    "data.max_prompt_length=48",
    f"data.max_response_length={MAX_TOKENS}",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
    "actor_rollout_ref.actor.optim.weight_decay=0",
    "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
    f"actor_rollout_ref.rollout.val_kwargs.temperature={TEMPERATURE}",
    f"actor_rollout_ref.rollout.val_kwargs.top_k={TOP_K}",
)


def command(cell: str, arm: str, seed: int) -> tuple[dict[str, str], list[str]]:
    """The environment's additions and the command of a run."""
    teacher = cells()[cell].teacher
    environment = {
        "ADV": "grpo" if arm == "grpo" else "cast",
        "STEPS": str(STEPS),
        "OUT": str(WORK / cell),
        "NAME": f"{arm}_{seed}",
        "TEACHER": str(CONTEXTS.get(teacher, teacher)),
    }
    settings = {} if arm == "grpo" else {"trust": "measured" if ARMS[arm].trust else "always"} | ARMS[arm].settings
    return environment, [
        "bash",
        str(QUICKSTART.with_suffix(".sh")),
        f"data.seed={seed}",
        *AS_IN_THE_LOOP,
        f"trainer.test_freq={STEPS}",
        "trainer.save_freq=-1",
        *(f"++algorithm.cast.{key}={value}" for key, value in settings.items()),
    ]


def prepare(cell: str) -> None:
    """This study's problems where the quick start looks for its own, and its model."""
    import pandas as pd

    found, directory = cells()[cell], WORK / cell / "data"
    directory.mkdir(parents=True, exist_ok=True)
    for name, problems in (("train", found.train), ("val", found.held_out)):
        rows = [
            {
                "data_source": f"study/{cell}",
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
    model = WORK / cell / "model"
    if not model.exists() and MODEL.exists():
        model.symlink_to(MODEL)


def drawn(cell: Cell, seed: int) -> list[list[tuple[str, int]]]:
    """The problems of every step, as verl's sampler draws them."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import create_rl_sampler

    order = list(create_rl_sampler(OmegaConf.create({"shuffle": True, "seed": seed}), cell.train))
    return [[cell.train[row] for row in order[first : first + PLAN.problems]] for first in BATCHES]


def in_the_loop(cell: str, arm: str, seed: int) -> dict:
    """The run of `command` as a course of the plain loop."""
    found, plan = cells()[cell], dataclasses.replace(PLAN, steps=STEPS, evaluate_every=STEPS, block=1)
    return course(SmolLM.load(MODEL), found, ARMS[arm], plan, seed, drawn(found, seed))


def outcome(metrics: Path) -> dict:
    """What verl's own metrics file says of a run, in the form of the other studies."""
    steps = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    rewards = [step["critic/score/mean"] for step in steps if "critic/score/mean" in step]
    (held_out,) = [value for name, value in steps[-1].items() if name.startswith("val-core/") and "acc/mean" in name]
    trusted = [step["cast/trust/trusted"] for step in steps if "cast/trust/trusted" in step]
    shares = [f"cast/trust/{name}" for name in ("teacher_share", "policy_share", "standard_errors")]
    measured = [
        [number, *(round(step[name], 3) for name in shares)] for number, step in enumerate(steps) if shares[0] in step
    ]
    return {
        "course": round(float(np.mean(rewards)), 4),
        "held_out": [[len(rewards), round(held_out, 4)]],
        "reward": [round(100 * reward) for reward in rewards],
        **({"trusted": [round(100 * one) for one in trusted], "measured": measured} if trusted else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--cells", default="sparse_fit,sparse_unfit")
    parser.add_argument("--arms", default="grpo,tenth_deadzone,exact")
    parser.add_argument("--dry-run", action="store_true", help="print the runs that are missing")
    parser.add_argument("--loop", action="store_true", help="run the loop instead of verl")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    results = LOOP_RESULTS if args.loop else RESULTS
    for cell, arm, seed in pending(results, seeds, args.cells.split(","), args.arms.split(","), by_cell=True):
        if args.loop:
            print(f"loop: {cell} {arm} {seed}", flush=True)
            if not args.dry_run:
                append(results, {"cell": cell, "arm": arm, "seed": seed, **in_the_loop(cell, arm, seed)})
            continue
        environment, words = command(cell, arm, seed)
        print(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(words)]))
        if args.dry_run:
            continue
        prepare(cell)
        started = time.monotonic()
        directory = Path(environment["OUT"]) / environment["NAME"]
        if subprocess.run(words, env=os.environ | environment, cwd=ROOT).returncode:
            sys.exit(f"{cell} {arm} {seed} failed; its log is {directory}/train.log")
        found = outcome(directory / "metrics.jsonl")
        run = {"cell": cell, "arm": arm, "seed": seed, **found, "seconds": round(time.monotonic() - started)}
        append(results, run)


if __name__ == "__main__":
    main()
