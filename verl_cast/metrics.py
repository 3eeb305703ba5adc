"""The `cast/*` numbers of one batch. README.md explains each, with what is healthy.

verl combines the numbers of several updates by their names (a name with `max`, `min`, `sum` or `total` in it is not
averaged); none of these names holds such a word, so all are averaged, weighted by rows.
"""

import torch

from verl_cast.advantage import ALL_CORRECT, ALL_WRONG, EXCLUDED, MIXED, CastAdvantage
from verl_cast.config import CastConfig


@torch.no_grad()
def cast_metrics(result: CastAdvantage, response_mask: torch.Tensor, config: CastConfig) -> dict[str, float]:
    """Metrics of a batch. Rows that do not count (padding, rejected, empty) and masked tokens enter none of them.

    Args:
        result: of `cast_advantage`.
        response_mask: (B, T).
    """
    base = result.base
    counted = base.kind != EXCLUDED
    tokens = response_mask.bool() & counted.unsqueeze(-1)
    metrics = {}

    # Groups are counted once each, whatever their size.
    num_groups = int(base.group.max()) + 1 if base.group.numel() else 0
    group_kind = torch.full((num_groups,), EXCLUDED, dtype=base.kind.dtype, device=base.kind.device)
    group_kind[base.group[counted]] = base.kind[counted]
    for name, kind in (("mixed", MIXED), ("all_correct", ALL_CORRECT), ("all_wrong", ALL_WRONG)):
        metrics[f"cast/group/{name}_share"] = _share(group_kind == kind, group_kind >= 0)
    metrics["cast/correct_share"] = _share(base.correct, counted)
    metrics["cast/base/abs_mean"] = _mean(base.value.abs(), counted)

    gap = result.gap
    metrics["cast/gap/mean"] = _mean(gap, tokens)
    metrics["cast/gap/abs_mean"] = _mean(gap.abs(), tokens)
    metrics["cast/gap/positive_share"] = _share(gap > 0, tokens)
    metrics["cast/gap/zero_share"] = _share(gap == 0, tokens)

    correct_side = (base.value > 0).unsqueeze(-1) & tokens
    wrong_side = (base.value < 0).unsqueeze(-1) & tokens
    metrics["cast/flip/share"] = _share(result.flipped, tokens)
    metrics["cast/flip/correct_share"] = _share(result.flipped, correct_side)
    metrics["cast/flip/wrong_share"] = _share(result.flipped, wrong_side)

    mass = result.advantages.abs() * tokens
    zero_variance = (base.kind == ALL_CORRECT) | (base.kind == ALL_WRONG)
    metrics["cast/advantage/mean"] = _mean(result.advantages, tokens)
    metrics["cast/advantage/abs_mean"] = _mean(result.advantages.abs(), tokens)
    metrics["cast/advantage/zero_variance_mass"] = float(mass[zero_variance].sum() / mass.sum().clamp_min(1e-12))
    clipped = torch.zeros_like(tokens)
    if config.advantage_clip is not None:
        clipped = result.advantages.abs() >= config.advantage_clip
    metrics["cast/advantage/clipped_share"] = _share(clipped, tokens)
    return metrics


def _share(condition: torch.Tensor, among: torch.Tensor) -> float:
    """Share of `condition` among the elements of `among`; 0 where there are none."""
    return float((condition & among).sum() / among.sum().clamp_min(1))


def _mean(values: torch.Tensor, among: torch.Tensor) -> float:
    return float(torch.where(among, values, torch.zeros_like(values)).sum() / among.sum().clamp_min(1))
