"""Prints a table: which methods and ablations compose, and which run a step on a CPU with the tiny model.

    python tests/support/try_scripts.py DIR [--only cast,no_flip,rlrt,...] [--script run_qwen3_megatron.sh]

Every row is its own run through the script, verl's command, Ray and vLLM. It takes one to two minutes on 2 cores.
Rewards are random. A row is printed when its run ends. Runs are written to DIR.
"""

import argparse
import concurrent.futures
import sys
from pathlib import Path

import scripts
import tiny
from scripts import ABLATIONS, METHODS

from verl_cast.checks.run import check_run
from verl_cast.tools import run_config


def row(toggle: str, script: str, directory: Path) -> str:
    """One row of the table: toggle, composed, one step on a CPU, seconds, gradient norm."""
    run = scripts.run_on_cpu(script, directory / toggle.split("=")[1], directory / "tiny", toggle)
    if run.returncode != 0:
        return f"| {toggle} | yes | no: see {run.directory}/output.log | {run.seconds:.0f} | |"
    return f"| {toggle} | yes | yes | {run.seconds:.0f} | {run.metrics[-1]['actor/grad_norm']:.3g} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", default=",".join([*METHODS, *ABLATIONS]))
    parser.add_argument("--script", default=scripts.FSDP, choices=scripts.ENGINES)
    parser.add_argument("--at-a-time", type=int, default=2)
    args = parser.parse_args()
    tiny.write(args.directory / "tiny")
    toggles = [f"{'METHOD' if name in METHODS else 'ABLATION'}={name}" for name in args.only.split(",")]
    for toggle in toggles:  # hydra composes in one thread only; a wrong setting stops all
        check_run(run_config.compose(scripts.overrides(args.script, toggle), "cast_trainer"))
    print("| toggle | composed | one step on a CPU | seconds | gradient norm |\n|---|---|---|---|---|", flush=True)
    with concurrent.futures.ThreadPoolExecutor(args.at_a_time) as pool:
        rows = [pool.submit(row, toggle, args.script, args.directory) for toggle in toggles]
        for done in concurrent.futures.as_completed(rows):
            print(done.result(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
