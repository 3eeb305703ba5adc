"""Gaps of the answer-free teachers and of the privileged one, on the same tokens of the same responses.

This comparison is the motivation of CAST: do teachers with and without the answer prefer the same tokens? Results are
split into correct and wrong responses, and by position and class of token.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas

from verl_cast.advantage.metrics import centred, correlation
from verl_cast.tools import stats
from verl_cast.tools.diagnose.contexts import STUDENT

PRIVILEGED = "privileged"
ABOVE = (0.0, 0.1, 0.5)  # thresholds on |g| for the agreement in sign, nats
BINS = 60
SHOWN, SHOWN_TOKENS = 4, 400  # responses of the token view, as many correct as wrong; tokens of each
FIFTHS = ("first fifth", "second fifth", "third fifth", "fourth fifth", "last fifth")


def token_table(
    log_probs: dict[str, list[np.ndarray]],
    ids: Sequence[Sequence[int]],
    texts: Sequence[Sequence[str]],
    correct: np.ndarray,
    problems: np.ndarray,
    special_ids: frozenset[int],
) -> pandas.DataFrame:
    """The tokens of N responses to student's prompts, one a row.

    Args:
        log_probs: N arrays (T,) by STUDENT and by teacher: contexts, PRIVILEGED.
        ids, texts: N lists of the T tokens.
        correct: (N,) bool.
        problems: (N,) number of the response's problem.
        special_ids: the tokenizer's special tokens.

    Returns:
        columns response and problem (numbers), responses (correct, wrong), text, position, last, class, and under every
        teacher's name the gap in nats (method section 3).
    """
    lengths = [len(one) for one in ids]
    tokens = zip(chain(*ids), chain(*texts), strict=True)
    columns = {
        "response": np.repeat(np.arange(len(ids)), lengths),
        "problem": np.repeat(problems, lengths),
        "responses": np.repeat(np.where(correct, "correct", "wrong"), lengths),
        "text": list(chain(*texts)),
        "position": np.concatenate([np.array(FIFTHS)[np.arange(n) * 5 // n] for n in lengths]),
        "last": np.concatenate([np.arange(n) == n - 1 for n in lengths]),
        "class": ["special" if token in special_ids else token_class(text) for token, text in tokens],
    }
    old = np.concatenate(log_probs[STUDENT]).astype(np.float64)
    gaps = {name: np.concatenate(scored) - old for name, scored in log_probs.items() if name != STUDENT}
    return pandas.DataFrame({**columns, **gaps})


def analyse(
    table: pandas.DataFrame, teachers: Sequence[str], context: str, questions: Sequence[str], seed: int
) -> dict[str, Any]:
    """All results about the teachers' gaps.

    Args:
        table: from `token_table`.
        teachers: columns of it.
        context: the run's own teacher.
        questions: of every problem.
    """
    by_side = {"all": table, **dict(iter(table.groupby("responses")))}
    result = {
        "teachers": [
            {
                "teacher": name,
                "gap": {side: stats.distribution(tokens[name].to_numpy()) for side, tokens in by_side.items()},
                **relation(table, name, seed),
            }
            for name in teachers
        ],
        "tokens": _shown(table, teachers, questions, seed),
        "compared": None,
    }
    if PRIVILEGED in teachers and context != "same":  # whose gap is 0 here
        pair = (context, PRIVILEGED)
        last = table[table["last"]].assign(position="last token")
        result["compared"] = {
            "agreement": [
                {"responses": side, **stats.sign_agreement(*(tokens[name].to_numpy() for name in pair), above)}
                for side, tokens in by_side.items()
                for above in ABOVE
            ],
            "position": _parts(pandas.concat([table, last]), "position", pair),
            "class": _parts(table, "class", pair),
            "histogram": _histogram(table, pair),
        }
    return result


def relation(table: pandas.DataFrame, teacher: str, seed: int) -> dict[str, Any]:
    """A response's mean gap against its correctness: correlation and AUC, each {"value", "interval"}.

    Positive (AUC above 0.5): the teacher finds correct responses more likely, relative to the policy, than wrong ones.
    """
    responses = table.groupby("response")
    mean_gap, groups = responses[teacher].mean().to_numpy(), responses["problem"].first().to_numpy()
    correct = (responses["responses"].first() == "correct").to_numpy()
    # Centred before resampling: a group keeps its own mean, however often it is drawn.
    in_group, truth = centred(mean_gap, groups), centred(correct.astype(float), groups)
    statistics = {
        "correlation": lambda rows: correlation(mean_gap[rows], correct[rows].astype(float)),
        "correlation_in_group": lambda rows: correlation(in_group[rows], truth[rows]),
        "auc": lambda rows: stats.auc(mean_gap[rows], correct[rows]),
    }
    return {
        name: {"value": statistic(np.arange(len(correct))), "interval": stats.group_interval(groups, statistic, seed)}
        for name, statistic in statistics.items()
    }


def token_class(text: str) -> str:
    """word (has a letter), number (digits, no letter), latex, whitespace, punctuation (the rest), or partial.

    A partial token holds a piece of a character; the token that completes the character has its text.
    """
    stripped = text.strip()
    if not stripped:
        return "whitespace" if text else "partial"
    if stripped == "\\" or re.search(r"\\[A-Za-z([]", stripped):
        return "latex"
    if any(character.isalpha() for character in stripped):
        return "word"
    if any(character.isdigit() for character in stripped):
        return "number"
    return "partial" if "\N{REPLACEMENT CHARACTER}" in stripped else "punctuation"


def _parts(table: pandas.DataFrame, by: str, pair: tuple[str, str]) -> list[dict[str, Any]]:
    """Rows by part, responses and teacher: number of tokens, mean gap, and the part's agreement in sign."""
    rows = []
    for part, tokens in table.groupby(by, sort=False):
        agreement = stats.sign_agreement(*(tokens[name].to_numpy() for name in pair))["share"]
        for responses, among in tokens.groupby("responses"):
            for name in pair:
                one = {"part": part, "responses": responses, "teacher": name, "tokens": len(among)}
                rows.append({**one, "mean": float(among[name].mean()), "agreement": agreement})
    return rows


def _histogram(table: pandas.DataFrame, pair: tuple[str, str]) -> list[dict[str, Any]]:
    """Shares over common bins from the 0.5th to the 99.5th percentile of all gaps; outliers are in the end bins."""
    low, high = np.quantile(table[list(pair)].to_numpy(), (0.005, 0.995))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    rows = []
    for responses, tokens in table.groupby("responses"):
        for name in pair:
            counts = np.histogram(tokens[name].clip(edges[0], edges[-1]), edges)[0]
            for left, right, count in zip(edges, edges[1:], counts, strict=False):
                one = {"responses": responses, "teacher": name, "gap": (left + right) / 2}
                rows.append({**one, "share": count / len(tokens)})
    return rows


def _shown(
    table: pandas.DataFrame, teachers: Sequence[str], questions: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """The token view: responses drawn at random, with the text and the gaps of every token."""
    order = table.drop_duplicates("response").sample(frac=1, random_state=seed)
    chosen = order.groupby("responses").head(SHOWN // 2).sort_values("responses", kind="stable")
    shown = []
    for number, problem, side in chosen[["response", "problem", "responses"]].itertuples(index=False):
        tokens = table[table["response"] == number]
        shown.append(
            {
                "question": questions[problem],
                "responses": side,
                "tokens": tokens["text"][:SHOWN_TOKENS].to_list(),
                "left_out": max(0, len(tokens) - SHOWN_TOKENS),
                "gaps": {name: tokens[name][:SHOWN_TOKENS].to_list() for name in teachers},
            }
        )
    return shown
