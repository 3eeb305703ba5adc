"""Gaps of the answer-free teachers and of the privileged one, on the same tokens of the same responses.

This comparison is the motivation of CAST: do teachers with and without the answer prefer the same tokens? Results are
split into correct and wrong responses, and by position and class of token.
"""

import re
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Responses:
    """N responses to student's prompts, as policy and teachers score them.

    Attributes:
        context: of the run's own teacher.
        questions: (N,) last message of the prompt.
        groups: (N,) problem of the response, as 0, 1, 2, ...
        correct: (N,) bool.
        ids, texts: N lists of the T tokens.
        log_probs: N arrays (T,) by STUDENT and by teacher: contexts, PRIVILEGED.
    """

    context: str
    questions: list[str]
    groups: np.ndarray
    correct: np.ndarray
    ids: list[list[int]]
    texts: list[list[str]]
    log_probs: dict[str, list[np.ndarray]]

    @property
    def teachers(self) -> list[str]:
        return [name for name in self.log_probs if name != STUDENT]

    def gaps(self, teacher: str) -> list[np.ndarray]:
        """N arrays (T,), the gap of every token in nats (method section 3)."""
        pairs = zip(self.log_probs[teacher], self.log_probs[STUDENT], strict=True)
        return [scored.astype(np.float64) - old for scored, old in pairs]


def analyse(responses: Responses, special_ids: frozenset[int], seed: int) -> dict[str, Any]:
    """All results about the teachers' gaps.

    Args:
        special_ids: the tokenizer's special tokens.
    """
    table = token_table(responses, special_ids)
    by_side = {"all": table, **dict(iter(table.groupby("responses")))}
    result = {
        "teachers": [
            {
                "teacher": name,
                "gap": {side: stats.distribution(tokens[name].to_numpy()) for side, tokens in by_side.items()},
                **relation(responses, name, seed),
            }
            for name in responses.teachers
        ],
        "tokens": _shown(responses, seed),
        "compared": None,
    }
    if PRIVILEGED in responses.teachers and responses.context != "same":  # whose gap is 0 here
        pair = (responses.context, PRIVILEGED)
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


def token_table(responses: Responses, special_ids: frozenset[int]) -> pandas.DataFrame:
    """One row per token: responses (correct, wrong), position, last, class, and each teacher's gap."""
    lengths = [len(ids) for ids in responses.ids]
    tokens = zip(chain(*responses.ids), chain(*responses.texts), strict=True)
    columns = {
        "responses": np.repeat(np.where(responses.correct, "correct", "wrong"), lengths),
        "position": np.concatenate([np.array(FIFTHS)[np.arange(n) * 5 // n] for n in lengths]),
        "last": np.concatenate([np.arange(n) == n - 1 for n in lengths]),
        "class": ["special" if token in special_ids else token_class(text) for token, text in tokens],
    }
    return pandas.DataFrame({**columns, **{name: np.concatenate(responses.gaps(name)) for name in responses.teachers}})


def relation(responses: Responses, teacher: str, seed: int) -> dict[str, Any]:
    """A response's mean gap against its correctness: correlation and AUC, each {"value", "interval"}.

    Positive (AUC above 0.5): the teacher finds correct responses more likely, relative to the policy, than wrong ones.
    """
    mean_gap = np.array([gap.mean() for gap in responses.gaps(teacher)])
    correct, groups = responses.correct, responses.groups
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


def _shown(responses: Responses, seed: int) -> list[dict[str, Any]]:
    """The token view: responses drawn at random, with the text and the gaps of every token."""
    order = np.random.default_rng(seed).permutation(len(responses.ids))
    chosen = [i for side in (True, False) for i in order[responses.correct[order] == side][: SHOWN // 2]]
    gaps = {name: responses.gaps(name) for name in responses.teachers}
    return [
        {
            "question": responses.questions[i],
            "responses": "correct" if responses.correct[i] else "wrong",
            "tokens": responses.texts[i][:SHOWN_TOKENS],
            "left_out": max(0, len(responses.texts[i]) - SHOWN_TOKENS),
            "gaps": {name: values[i][:SHOWN_TOKENS].tolist() for name, values in gaps.items()},
        }
        for i in chosen
    ]
