"""Gaps of the answer-free and of the privileged teacher, side by side on the same rollouts.

This comparison is the motivation of CAST: do teachers with and without the answer prefer the same tokens?
Results are split into correct and wrong responses, and by position and class of token.
"""

from typing import Any

import numpy as np

from verl_cast.tools import stats
from verl_cast.tools.diagnose import direction, tokens
from verl_cast.tools.diagnose.rollouts import Rollouts

FREE, PRIVILEGED = "answer_free", "privileged"
ABOVE = (0.1, 0.5)  # thresholds on |g|, nats; 0 and the measured noise are added
HISTOGRAM_BINS = 60


def analyse(rollouts: Rollouts, seed: int) -> dict[str, Any]:
    """All results about both teachers; needs `rollouts.privileged`."""
    context = rollouts.method.teacher.context
    teachers = {FREE: rollouts.teachers[context], PRIVILEGED: rollouts.privileged}
    gaps = {name: rollouts.gaps(teacher) for name, teacher in teachers.items()}
    right = rollouts.right[rollouts.owner()]
    sides = {"all": np.ones_like(right), "right": right, "wrong": ~right}
    places = {
        **{name: rollouts.fifths() == i for i, name in enumerate(tokens.POSITIONS[:-1])},
        tokens.POSITIONS[-1]: rollouts.final(),
    }
    classes = rollouts.classes()
    kinds = {name: classes == name for name in tokens.CLASSES if (classes == name).any()}
    thresholds = sorted({0.0, *ABOVE, *([] if rollouts.noise is None else [_rounded(rollouts.noise)])})
    return {
        "context": context,
        "gap": {
            name: {side: stats.distribution(gap[among]) for side, among in sides.items()} for name, gap in gaps.items()
        },
        "relation": {name: direction.relation(rollouts, teacher, seed) for name, teacher in teachers.items()},
        "agreement": {
            side: [stats.sign_agreement(gaps[FREE][among], gaps[PRIVILEGED][among], above) for above in thresholds]
            for side, among in sides.items()
        },
        "positions": _by(places, gaps, sides),
        "classes": _by(kinds, gaps, sides),
        "histogram": _histogram(gaps, sides),
    }


def is_noise(above: float, noise: float) -> bool:
    """Whether a threshold of the agreement table is the measured noise."""
    return above > 0 and above == _rounded(noise)


def _rounded(noise: float) -> float:
    return float(f"{noise:.3g}")


def _by(
    parts: dict[str, np.ndarray], gaps: dict[str, np.ndarray], sides: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """One row per part of the tokens: its count and its sign agreement.

    Each row also holds the mean gap and the share of positive gaps, per teacher and side.
    """
    rows = []
    for part, among in parts.items():
        row: dict[str, Any] = {"part": part, "tokens": int(among.sum())}
        for name, gap in gaps.items():
            for side in ("right", "wrong"):
                chosen = gap[among & sides[side]]
                row[f"{name}_{side}"] = {
                    "tokens": len(chosen),
                    "mean": float(chosen.mean()) if len(chosen) else None,
                    "positive": float((chosen > 0).mean()) if len(chosen) else None,
                }
        both = stats.sign_agreement(gaps[FREE][among], gaps[PRIVILEGED][among])
        row["agreement"], row["agreement_by_chance"] = both["share"], both["by_chance"]
        rows.append(row)
    return rows


def _histogram(gaps: dict[str, np.ndarray], sides: dict[str, np.ndarray]) -> dict[str, Any]:
    """Counts over common bins from the 0.5th to the 99.5th percentile of all gaps; outliers go into the end bins."""
    everything = np.concatenate(list(gaps.values()))
    low, high = np.quantile(everything, (0.005, 0.995))
    edges = np.linspace(low, high if high > low else low + 1, HISTOGRAM_BINS + 1)
    counts = {
        name: {
            side: np.histogram(np.clip(gap[sides[side]], edges[0], edges[-1]), edges)[0].tolist()
            for side in ("right", "wrong")
        }
        for name, gap in gaps.items()
    }
    return {"edges": edges.tolist(), "counts": counts}
