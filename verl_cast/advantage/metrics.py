"""The numbers of one batch. README.md, beside this file, explains each of them and says what is healthy.

Names here lack the method's own prefix: the trainer logs `gap/mean` of a CAST run as `cast/gap/mean`. verl combines the
numbers of several updates by their names (one with `max`, `min`, `sum` or `total` in it is not averaged). None of these
names holds such a word, so all are averaged, weighted by rows. A number without meaning in a batch is left out, never
0: the mean length of correct responses where there are none, for instance.
"""

import math
from dataclasses import dataclass

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
    counted = result.base.kind != EXCLUDED
    tokens = result.mask & counted.unsqueeze(-1)
    metrics = {
        **_group_metrics(result.base, counted),
        "teacher/scored_share": _share(result.scored[counted].cpu().numpy()),
        **_token_metrics(result, tokens),
        **_gap_metrics(result, tokens & result.scored.unsqueeze(-1)),
        **_trajectory_metrics(result, tokens, entropy),
    }
    return {name: value for name, value in metrics.items() if value is not None}


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


def _group_metrics(base: TrajectoryAdvantage, counted: torch.Tensor) -> dict[str, float | None]:
    # Groups are counted once each, whatever their size.
    num_groups = int(base.group.max()) + 1 if base.group.numel() else 0
    group_kind = torch.full((num_groups,), EXCLUDED, dtype=base.kind.dtype, device=base.kind.device)
    group_kind[base.group[counted]] = base.kind[counted]
    metrics = {}
    for name, kind in (("mixed", MIXED), ("all_correct", ALL_CORRECT), ("all_wrong", ALL_WRONG)):
        metrics[f"group/{name}_share"] = _share((group_kind == kind).cpu().numpy())
    metrics["group/mixed_count"] = float((group_kind == MIXED).sum()) if num_groups else None
    metrics["correct_share"] = _share(base.correct[counted].cpu().numpy())
    metrics["base/abs_mean"] = _mean(base.value[counted].abs().cpu().numpy())
    return metrics


def _token_metrics(result: TokenAdvantage, tokens: torch.Tensor) -> dict[str, float | None]:
    selected = tokens.cpu().numpy()
    advantages, flipped, clipped = _selected(selected, result.advantages, result.flipped, result.clipped)
    per_row = selected.sum(axis=-1)
    base, kind = (np.repeat(values.cpu().numpy(), per_row) for values in (result.base.value, result.base.kind))
    size = np.abs(advantages)
    return {
        "flip/share": _share(flipped),
        "flip/correct_share": _share(flipped[base > 0]),
        "flip/wrong_share": _share(flipped[base < 0]),
        "flip/mixed_share": _share(flipped[kind == MIXED]),
        "flip/zero_variance_share": _share(flipped[kind != MIXED]),
        "advantage/mean": _mean(advantages),
        "advantage/abs_mean": _mean(size),
        "advantage/clipped_share": _share(clipped),
        "advantage/zero_variance_mass": _sum(size[kind != MIXED]) / _sum(size) if _sum(size) > 0 else None,
    }


def _gap_metrics(result: TokenAdvantage, tokens: torch.Tensor) -> dict[str, float]:
    gap, used_gap, weight_clipped = _selected(tokens.cpu().numpy(), result.raw_gap, result.gap, result.weight_clipped)
    if not gap.size:
        return {}
    metrics = {
        "gap/mean": _mean(gap),
        "gap/abs_mean": _mean(np.abs(gap)),
        "gap/positive_share": _share(gap > 0),
        "gap/zero_share": _share(gap == 0),
        "gap/deadzone_share": _share(used_gap != gap),
        "weight/clipped_share": _share(weight_clipped),
    }
    # numpy's: torch.quantile refuses more than 16 million values
    for quantile, value in zip(GAP_QUANTILES, np.quantile(gap, GAP_QUANTILES), strict=True):
        metrics[f"gap/p{round(100 * quantile):02d}"] = float(value)
    return metrics


def _selected(tokens: np.ndarray, *tensors: torch.Tensor) -> list[np.ndarray]:
    """Selected by numpy, which does it several times as fast as torch on a CPU."""
    return [tensor.cpu().numpy()[tokens] for tensor in tensors]


def _trajectory_metrics(result: TokenAdvantage, tokens: torch.Tensor, entropy: torch.Tensor | None) -> dict[str, float]:
    """What differs between correct and wrong trajectories: gap, length, entropy."""
    rows = tokens.any(dim=-1)
    correct, group, tokens = result.base.correct[rows], result.base.group[rows], tokens[rows]
    length = tokens.sum(dim=-1).double()
    values = {"gap": _row_means(result.raw_gap[rows], tokens, length), "length": length.cpu().numpy()}
    if entropy is not None:
        values["entropy"] = _row_means(entropy[rows], tokens, length)
    correct, group, metrics = correct.cpu().numpy(), group.cpu().numpy(), {}
    scored = result.scored[rows].cpu().numpy()
    for side, members in (("correct", correct), ("wrong", ~correct)):
        for name, value in values.items():
            which = members & scored if name == "gap" else members
            if which.any():
                metrics[f"{name}/{side}_mean"] = float(value[which].mean())
    # Section 11's question, kept in view during training: does the teacher prefer what is right?
    mean_gap, is_correct = values["gap"][scored], correct[scored].astype(np.float64)
    group = group[scored]
    pairs = {
        "correctness_corr": (mean_gap, is_correct),
        "correctness_corr_in_group": (centred(mean_gap, group), centred(is_correct, group)),
    }
    for name, (x, y) in pairs.items():
        value = correlation(x, y)
        if value is not None:
            metrics[f"gap/{name}"] = value
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


def _row_means(values: torch.Tensor, tokens: torch.Tensor, length: torch.Tensor) -> np.ndarray:
    means = torch.where(tokens, values, torch.zeros_like(values)).sum(dim=-1).double() / length
    return means.cpu().numpy()
