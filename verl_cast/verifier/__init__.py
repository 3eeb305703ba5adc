r"""A binary reward for verl: 1.0 where the response's final answer equals the reference, else 0.0.

    reward.custom_reward_function.path=pkg://verl_cast.verifier
    +reward.custom_reward_function.reward_kwargs.tokenizer=/path/to/model      (options of `compute_score`, if any)

It pays nothing that it has not read whole. No response can make the call raise or hang. README.md has the rules and the
departures from the evaluated run.

    answers.py       finds the answer of a response
    reading.py       reads it: a value, list, set, tuple, relation, choice or text (words.py, dialect.py: what it knows)
    equivalence.py   compares two answers that were read, by their structure
    mathematics.py   compares two values with math-verify, in processes that can be killed (processes.py)

Check `tail_fraction` if responses are short: the last 5 % of 40 tokens are two, too few for "Answer: 42".
"""

import contextlib
import functools
import itertools
import json
import logging
from collections.abc import Sequence
from typing import Any

from verl_cast.verifier import answers, equivalence, processes

logger = logging.getLogger(__name__)
_stopped_comparisons = itertools.count(1)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Sequence[str],
    extra_info: dict | None = None,
    *,
    tail_fraction: float = 0.05,
    tokenizer: str | None = None,
    extraction: str = "final",
    timeout: float = 10.0,
) -> dict[str, Any]:
    r"""verl's reward function.

    Args:
        data_source, extra_info: verl's; not used.
        solution_str: the response.
        ground_truth: the reference, or a list of accepted ones; its answer is extracted by the same rules, without
            `tail_fraction`.
        tail_fraction: the answer must start within this last part of the response's tokens; 0 = anywhere (evaluation).
        tokenizer: path or hub name of the tokenizer for `tail_fraction`; None counts words.
        extraction: `final` (training: tags, answer lines, boxes, last line) or `last_box` (the evaluated run's
            evaluation: the last \boxed{} or nothing).
        timeout: seconds for one comparison.

    Returns:
        The same keys in every row: `score` and `acc` (0.0 or 1.0), `unjudged` (1.0 where the comparison had to be
        stopped; the answer then counts as wrong) and `pred` (the answer, at most 1000 characters).

    Raises:
        ValueError: `tail_fraction` or `extraction` has a value that is not allowed.
    """
    if not 0 <= tail_fraction <= 1:
        raise ValueError(f"tail_fraction={tail_fraction}: must lie between 0 (no limit) and 1.")
    if extraction not in ("final", "last_box"):
        raise ValueError(f"extraction={extraction}: must be final or last_box.")
    response = _encodable(solution_str)
    if extraction == "last_box":
        answer = answers.last_box(response)
    else:
        answer = answers.final_answer(response, tail_fraction, tokenizer)
    equal = _equals_any(answer, ground_truth, timeout)
    if equal is None:
        _report(answer)
    score = float(bool(equal))
    return {
        "score": score,
        "acc": score,
        "unjudged": float(equal is None),
        "pred": answer[: equivalence.MAX_ANSWER_CHARACTERS],
    }


def _equals_any(answer: str, ground_truth: Any, timeout: float) -> bool | None:
    """Whether the answer equals an accepted one; None if it equals none and a comparison had to be stopped."""
    judge = functools.partial(processes.judge, timeout=timeout)
    verdicts: list[bool | None] = []
    for reference in _accepted(ground_truth):
        verdicts.append(equivalence.is_equal(answer, answers.final_answer(_encodable(reference)), judge))
        if verdicts[-1]:
            return True
    return None if None in verdicts else False


def _accepted(ground_truth: Any) -> Sequence[Any]:
    """The accepted answers: a sequence or array of them, a JSON list of texts (some data sets write it so), or one."""
    # Arrays are known by `ndim`, so that numpy is not imported; numpy's scalars have ndim 0.
    if isinstance(ground_truth, list | tuple) or getattr(ground_truth, "ndim", 0) > 0:
        return ground_truth
    if isinstance(ground_truth, str) and ground_truth.lstrip().startswith('["'):
        with contextlib.suppress(ValueError):
            return json.loads(ground_truth)
    return [ground_truth]


def _encodable(text: Any) -> str:
    """The text with lone surrogates as question marks: tokenizers and pipes cannot take them."""
    return str(text).encode(errors="replace").decode()


def _report(answer: str) -> None:
    """Log the 1st, 2nd, 4th, 8th, ... comparison of this process that had to be stopped."""
    count = next(_stopped_comparisons)
    if count & (count - 1) == 0:
        logger.warning(
            "verifier: %d comparison(s) stopped so far (time, memory or crash) and counted as wrong; last answer: %r",
            count,
            answer[:200],
        )
