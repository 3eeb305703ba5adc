"""The base advantage B of every response, from verifier rewards alone (method section 2).

No verl, no Ray, no state. Shapes: `B` rows (responses), `T` response tokens, padded to one length.
"""

from dataclasses import dataclass

import numpy as np
import torch

from verl_cast.config import CastConfig

# verl's own ε of GRPO (`compute_grpo_outcome_advantage`); a contract test holds the two together.
GRPO_EPSILON = 1e-6

EXCLUDED, MIXED, ALL_CORRECT, ALL_WRONG = -1, 0, 1, 2


@dataclass(frozen=True)
class BaseAdvantage:
    """Trajectory-level advantage B (section 2).

    Attributes:
        value: (B,) B of every row; 0 for rows that do not count.
        kind: (B,) int64, the type of the row's group: MIXED, ALL_CORRECT, ALL_WRONG; EXCLUDED for rows not counted.
        group: (B,) int64, the row's group as 0, 1, 2, ...; -1 for rows not counted.
        correct: (B,) bool, reward > threshold; False for rows not counted.
    """

    value: torch.Tensor
    kind: torch.Tensor
    group: torch.Tensor
    correct: torch.Tensor

    def take(self, rows: torch.Tensor | slice) -> "BaseAdvantage":
        """The base of other rows of the batch: `rows` (B,) says for every row which row to read; or of a slice."""
        return BaseAdvantage(self.value[rows], self.kind[rows], self.group[rows], self.correct[rows])


def rows_that_count(response_mask: torch.Tensor, final_row: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) bool, the rows that are part of their group, and (B,) the row of the final output of each row's session.

    Only the final output of a session is graded; a row without a token that counts (padding, rejected, empty) is not
    part of its group.
    """
    rows = torch.arange(response_mask.shape[0], device=response_mask.device)
    final_row = rows if final_row is None else final_row
    return (final_row == rows) & (response_mask.sum(dim=-1) > 0), final_row  # the sum: faster than any()


@torch.no_grad()
def grpo_advantage(
    scores: torch.Tensor,
    index: np.ndarray,
    counts: torch.Tensor,
    correct_threshold: float,
    norm_adv_by_std_in_grpo: bool = True,
) -> BaseAdvantage:
    """verl's GRPO advantage of every row, bit for bit, and the type of its group (section 2).

    The type is decided by correctness (score > correct_threshold), never by the standard deviation. A group of which
    one row alone counts has nothing to compare, and gets 0.

    Args:
        scores: (B,) reward of every response.
        index: (B,) group of every row, any values that sort (verl's `uid`).
        counts: (B,) bool, rows that count. The others (padding, rejected, empty) enter no statistic.
        norm_adv_by_std_in_grpo: verl's switch; False leaves out the division by the standard deviation.

    Raises:
        ValueError: a row that counts has a score that is not finite.
    """
    if not torch.isfinite(scores[counts]).all():
        raise ValueError("CAST: a reward is NaN or infinite; the verifier must return a finite number per response.")
    rows = counts.nonzero().squeeze(-1)
    value = torch.zeros_like(scores)
    kind = torch.full(scores.shape, EXCLUDED, dtype=torch.int64, device=scores.device)
    group = torch.full_like(kind, -1)
    correct = counts & (scores > correct_threshold)
    if rows.numel() == 0:
        return BaseAdvantage(value, kind, group, correct)

    _, inverse = np.unique(np.asarray(index)[rows.cpu().numpy()], return_inverse=True)
    group[rows] = torch.from_numpy(inverse.astype(np.int64)).to(scores.device)
    size = torch.bincount(group[rows])
    num_correct = torch.bincount(group[rows], weights=correct[rows].double())
    group_kind = torch.full_like(size, MIXED)
    group_kind[num_correct == size] = ALL_CORRECT
    group_kind[num_correct == 0] = ALL_WRONG
    kind[rows] = group_kind[group[rows]]

    # Group by group, as verl does: over (groups, size) rows torch runs another kernel, which differs in the last bits.
    by_group = rows[torch.argsort(group[rows], stable=True)]
    advantages = []
    for group_scores in torch.split(scores[by_group], size.tolist()):
        if len(group_scores) == 1:
            advantages.append(torch.zeros_like(group_scores))
            continue
        advantage = group_scores - torch.mean(group_scores)
        if norm_adv_by_std_in_grpo:
            advantage = advantage / (torch.std(group_scores) + GRPO_EPSILON)
        advantages.append(advantage)
    value[by_group] = torch.cat(advantages)
    return BaseAdvantage(value, kind, group, correct)


@torch.no_grad()
def base_advantage(
    scores: torch.Tensor,
    index: np.ndarray,
    counts: torch.Tensor,
    config: CastConfig,
    norm_adv_by_std_in_grpo: bool = True,
) -> BaseAdvantage:
    """Base advantage B of every row (section 2): `grpo_advantage`, but in one-sided groups bounded and of their sign.

    All-correct groups get +base_correct, all-wrong ones -base_wrong. For arguments and errors see `grpo_advantage`.
    """
    base = grpo_advantage(scores, index, counts, config.correct_threshold, norm_adv_by_std_in_grpo)
    base.value[base.kind == ALL_CORRECT] = config.base_correct
    base.value[base.kind == ALL_WRONG] = 0.0 - config.base_wrong  # not -b: b = 0 must give the 0.0 of GRPO, not -0.0
    return base
