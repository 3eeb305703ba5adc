"""The base advantage B of every response, from verifier rewards (section 2).

Shapes: `B` rows (responses).
"""

from dataclasses import dataclass

import numpy as np
import torch

# verl's own ε of GRPO (`compute_grpo_outcome_advantage`). A contract test compares the two.
GRPO_EPSILON = 1e-6

EXCLUDED, MIXED, ALL_CORRECT, ALL_WRONG = -1, 0, 1, 2


@dataclass(frozen=True)
class BaseAdvantage:
    """What a rule needs of every response.

    Attributes:
        value: (B,) the base advantage B; 0 for rows that do not count.
        correct: (B,) bool, reward > threshold; False for rows that do not count.
        kind: (B,) int64, the type of the row's group: MIXED, ALL_CORRECT or ALL_WRONG; EXCLUDED for rows that do not
            count.
    """

    value: torch.Tensor
    correct: torch.Tensor
    kind: torch.Tensor


@dataclass(frozen=True)
class TrajectoryAdvantage(BaseAdvantage):
    """The base advantage of a whole batch, with its groups.

    Attributes:
        group: (B,) int64, the row's group as 0, 1, 2, ...; -1 for rows that do not count.
        reward: (B,) that B was formed from.
    """

    group: torch.Tensor
    reward: torch.Tensor

    def take(self, rows: torch.Tensor) -> "TrajectoryAdvantage":
        """The same for other rows: `rows` (B,) names the row to read for each."""
        return TrajectoryAdvantage(**{name: values[rows] for name, values in vars(self).items()})


def rows_that_count(response_mask: torch.Tensor, final_row: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) bool, the rows that are part of their group, and (B,) the row of the final output of each row's session.

    Only the final output of a session is graded. A row without a token that counts (padding, rejected, empty) is not
    part of its group.
    """
    rows = torch.arange(response_mask.shape[0], device=response_mask.device)
    final_row = rows if final_row is None else final_row
    return (final_row == rows) & (response_mask.sum(dim=-1) > 0), final_row


@torch.no_grad()
def grpo_advantage(
    scores: torch.Tensor,
    index: np.ndarray,
    counts: torch.Tensor,
    correct_threshold: float,
    norm_adv_by_std_in_grpo: bool = True,
) -> TrajectoryAdvantage:
    """verl's GRPO advantage of every row, bit for bit, and the type of its group (section 2).

    Correctness (score > correct_threshold) decides the type of a group, never the standard deviation. A group in which
    only one row counts has nothing to compare, and GRPO's advantage is 0 there.

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
        return TrajectoryAdvantage(value, correct, kind, group, scores)

    _, inverse = np.unique(np.asarray(index)[rows.cpu().numpy()], return_inverse=True)
    group[rows] = torch.from_numpy(inverse.astype(np.int64)).to(scores.device)
    size = torch.bincount(group[rows])
    num_correct = torch.bincount(group[rows], weights=correct[rows].double())
    group_kind = torch.full_like(size, MIXED)
    group_kind[num_correct == size] = ALL_CORRECT
    group_kind[num_correct == 0] = ALL_WRONG
    kind[rows] = group_kind[group[rows]]

    # Group by group, as verl does. Over a matrix of groups torch runs another kernel, which differs in the last bits.
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
    return TrajectoryAdvantage(value, correct, kind, group, scores)
