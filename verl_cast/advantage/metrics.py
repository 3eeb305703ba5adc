"""The numbers of one batch. README.md explains each of them, and what is healthy.

The trainer puts the method's name before the names here: it logs `gap/mean` of a CAST run as `cast/gap/mean`. verl
combines the numbers of several updates by their names (one with `max`, `min`, `sum` or `total` in it is not averaged).
None of these names holds such a word, so all are averaged, weighted by rows. A number without meaning in a batch is
left out, never 0: the mean length of correct responses if there are none, for instance.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from verl_cast.advantage.base import ALL_CORRECT, ALL_WRONG, EXCLUDED, MIXED, TrajectoryAdvantage
from verl_cast.advantage.compute import TokenAdvantage

GAP_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NOISE_QUANTILE = 0.99


@torch.no_grad()
def advantage_metrics(result: TokenAdvantage, entropy: torch.Tensor | None = None) -> dict[str, float]:
    """Metrics of a batch. Rows that do not count (padding, rejected, empty) and masked tokens enter none of them.

    Rows that the teacher did not score (no advantage depends on their gap) enter no number of the gap.

    Args:
        result: of a whole batch; its base is a `TrajectoryAdvantage`.
        entropy: (B, T) of the policy at every token, nats; None: not known.
    """
    base, tokens = _on_host(result.base), _on_host(result)
    counted = base.kind != EXCLUDED
    mask = tokens.mask & counted[:, None]
    metrics = {
        **_group_metrics(base, counted),
        "teacher/scored_share": _share(tokens.scored[counted]),
        **_token_metrics(tokens, base, mask),
        **_gap_metrics(tokens, mask & tokens.scored[:, None]),
        **_trajectory_metrics(tokens, base, mask, None if entropy is None else entropy.float().cpu().numpy()),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def _on_host(values: TokenAdvantage | TrajectoryAdvantage) -> SimpleNamespace:
    """The tensors as numpy arrays, which select several times as fast as torch on a CPU."""
    tensors = {name: value for name, value in vars(values).items() if isinstance(value, torch.Tensor)}
    return SimpleNamespace(**{name: tensor.cpu().numpy() for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Noise:
    """The engine's own noise: |difference| of log-probs of the same weights and tokens in different micro-batches.

    Attributes:
        abs_mean: over tokens, nats.
        floor: its 99 % quantile, the noise floor, nats.
    """

    abs_mean: float
    floor: float


@torch.no_grad()
def measured_noise(
    response_mask: torch.Tensor, old_log_probs: torch.Tensor, log_probs_again: torch.Tensor
) -> Noise | None:
    """The noise between two passes of the policy; None where no token counts.

    Args:
        response_mask, old_log_probs, log_probs_again: (B, T), log π_old of the first and of the second pass.
    """
    difference = (log_probs_again.float() - old_log_probs.float()).abs()
    difference = difference[response_mask.bool()].cpu().numpy()
    return Noise(_mean(difference), float(np.quantile(difference, NOISE_QUANTILE))) if difference.size else None


@torch.no_grad()
def noise_metrics(noise: Noise, result: TokenAdvantage) -> dict[str, float]:
    """The noise, and how many of the result's gaps and flips it could have made.

    A gap inside the dead zone is in no doubt.
    """
    gap, flipped = result.gap.abs()[result.mask].float().cpu().numpy(), result.flipped[result.mask].cpu().numpy()
    in_doubt = (gap > 0) & (gap <= noise.floor)
    metrics = {
        "noise/abs_mean": noise.abs_mean,
        "noise/p99": noise.floor,
        "noise/gap_share": _share(in_doubt),
        "noise/flip_share": _share(in_doubt[flipped]),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def one_sided_rewards(base: TrajectoryAdvantage) -> tuple[float, float] | None:
    """Lowest and highest reward of the group on one side of the threshold in which they differ most.

    None if rewards differ in no such group.
    """
    host = _on_host(base)
    kind, lowest, highest = _groups(host, host.kind != EXCLUDED)
    spread = np.where(kind == MIXED, 0, highest - lowest)
    if not spread.any():
        return None
    widest = spread.argmax()
    return float(lowest[widest]), float(highest[widest])


def _groups(base: SimpleNamespace, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kind, lowest and highest reward of every group with a row that counts, (groups,) each."""
    _, first, group = np.unique(base.group[counted], return_index=True, return_inverse=True)
    reward = base.reward[counted]
    lowest, highest = np.full(len(first), np.inf), np.full(len(first), -np.inf)
    np.minimum.at(lowest, group, reward)
    np.maximum.at(highest, group, reward)
    return base.kind[counted][first], lowest, highest


def _group_metrics(base: SimpleNamespace, counted: np.ndarray) -> dict[str, float | None]:
    # Groups are counted once each, whatever their size.
    kind, lowest, highest = _groups(base, counted)
    return {
        "group/mixed_share": _share(kind == MIXED),
        "group/all_correct_share": _share(kind == ALL_CORRECT),
        "group/all_wrong_share": _share(kind == ALL_WRONG),
        "group/mixed_count": float(np.count_nonzero(kind == MIXED)) if kind.size else None,
        "reward/varies_on_one_side_share": _share((highest > lowest)[kind != MIXED]),
        "correct_share": _share(base.correct[counted]),
        "base/abs_mean": _mean(np.abs(base.value[counted])),
    }


def _token_metrics(result: SimpleNamespace, base: SimpleNamespace, mask: np.ndarray) -> dict[str, float | None]:
    advantages, flipped, clipped = (values[mask] for values in (result.advantages, result.flipped, result.clipped))
    value, kind = (np.repeat(values, mask.sum(axis=-1)) for values in (base.value, base.kind))
    size = np.abs(advantages)
    return {
        "flip/share": _share(flipped),
        "flip/correct_share": _share(flipped[value > 0]),
        "flip/wrong_share": _share(flipped[value < 0]),
        "flip/mixed_share": _share(flipped[kind == MIXED]),
        "flip/zero_variance_share": _share(flipped[kind != MIXED]),
        "advantage/mean": _mean(advantages),
        "advantage/abs_mean": _mean(size),
        "advantage/clipped_share": _share(clipped),
        "advantage/zero_variance_mass": _sum(size[kind != MIXED]) / _sum(size) if _sum(size) > 0 else None,
    }


def _gap_metrics(result: SimpleNamespace, mask: np.ndarray) -> dict[str, float]:
    gap = result.raw_gap[mask]
    if not gap.size:
        return {}
    metrics = {
        "gap/mean": _mean(gap),
        "gap/abs_mean": _mean(np.abs(gap)),
        "gap/positive_share": _share(gap > 0),
        "gap/zero_share": _share(gap == 0),
        "gap/deadzone_share": _share(result.gap[mask] != gap),
        "weight/clipped_share": _share(result.weight_clipped[mask]),
    }
    # numpy's: torch.quantile refuses more than 16 million values
    for quantile, value in zip(GAP_QUANTILES, np.quantile(gap, GAP_QUANTILES), strict=True):
        metrics[f"gap/p{round(100 * quantile):02d}"] = float(value)
    return metrics


def _trajectory_metrics(
    result: SimpleNamespace, base: SimpleNamespace, mask: np.ndarray, entropy: np.ndarray | None
) -> dict[str, float | None]:
    """What differs between correct and wrong trajectories: gap, length, entropy."""
    rows = mask.any(axis=-1)
    mask, correct, scored, group = mask[rows], base.correct[rows], result.scored[rows], base.group[rows]
    length = mask.sum(axis=-1)

    def row_means(values: np.ndarray) -> np.ndarray:
        return np.where(mask, values[rows], 0).sum(axis=-1, dtype=np.float64) / length

    mean_gap = row_means(result.raw_gap)
    entropies = None if entropy is None else row_means(entropy)
    metrics = {}
    for side, members in (("correct", correct), ("wrong", ~correct)):
        metrics[f"gap/{side}_mean"] = _mean(mean_gap[members & scored])
        metrics[f"length/{side}_mean"] = _mean(length[members])
        metrics[f"entropy/{side}_mean"] = None if entropies is None else _mean(entropies[members])
    # Does the teacher prefer what is correct?
    mean_gap, group, is_correct = mean_gap[scored], group[scored], correct[scored].astype(np.float64)
    metrics["gap/correctness_corr"] = correlation(mean_gap, is_correct)
    metrics["gap/correctness_corr_in_group"] = correlation(centred(mean_gap, group), centred(is_correct, group))
    return metrics


def centred(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The values (N,) less the mean of their group; `group` (N,) as 0, 1, 2, ..."""
    return values - (np.bincount(group, values) / np.maximum(np.bincount(group), 1))[group]


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's, of (N,) and (N,); None where one of them does not vary."""
    if len(x) < 2:
        return None
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 1e-12 else None


def _share(condition: np.ndarray) -> float | None:
    """Share of the elements that are true; None where there are no elements."""
    return np.count_nonzero(condition) / condition.size if condition.size else None


def _sum(values: np.ndarray) -> float:
    return float(values.sum(dtype=np.float64))


def _mean(values: np.ndarray) -> float | None:
    return _sum(values) / values.size if values.size else None
