"""CAST: sections 2 to 6, formula by formula.

B is the base advantage of a response, g the gap of a token, λ the gap weight, (L, U) the bounds of a weight.
"""

from dataclasses import replace

import torch

from verl_cast.advantage.base import ALL_CORRECT, ALL_WRONG, MIXED, BaseAdvantage, TrajectoryAdvantage
from verl_cast.advantage.rule import MAX_EXPONENT, Rule, ShapedAdvantage


class CastRule(Rule):
    """The method under `algorithm.cast`."""

    def base(self, scores, index, counts, norm_adv_by_std_in_grpo=True) -> TrajectoryAdvantage:
        """Section 2. B is GRPO's in mixed groups, +b_correct in all-correct and −b_wrong in all-wrong ones."""
        c, grpo = self.config, super().base(scores, index, counts, norm_adv_by_std_in_grpo)
        B = grpo.value.masked_fill(grpo.kind == ALL_CORRECT, c.base_correct)
        B = B.masked_fill(grpo.kind == ALL_WRONG, 0.0 - c.base_wrong)  # −b_wrong; GRPO's 0.0, not −0.0, where it is 0
        return replace(grpo, value=B)

    def shape(self, base: BaseAdvantage, gap: torch.Tensor) -> ShapedAdvantage:
        """Sections 4 to 6: weight, flip, clip.

        A flipped token differs in its sign only: sections 4 and 5 are one formula in the sign s that Â gets. Where
        s·g > 0, as in every flip, the weight is at least 1, so that L and max(1, L) bound it alike.
        """
        c, B, g = self.config, base.value.unsqueeze(-1), gap
        # Section 5: which tokens flip.
        flip_correct, flip_wrong = (flips.unsqueeze(-1) for flips in self._rows_that_flip(base))
        flipped = ((g < 0) & flip_correct) | ((g > 0) & flip_wrong)
        # Section 4: w = clip(exp(s·g), L, U), with the bounds of the side that s names.
        s = torch.where(flipped, -torch.sign(B), torch.sign(B))
        raw_weight = torch.exp((s * g).clamp(-MAX_EXPONENT, MAX_EXPONENT))
        w = torch.where(s >= 0, raw_weight.clamp(*c.positive_clip), raw_weight.clamp(*c.negative_clip))
        unclipped = torch.where(flipped, -B, B) * (1 + self.gap_weight * (w - 1)).clamp(min=0)
        # Section 6.
        advantages = unclipped if c.advantage_clip is None else unclipped.clamp(-c.advantage_clip, c.advantage_clip)
        return ShapedAdvantage(advantages, flipped, w != raw_weight, advantages != unclipped)

    def needs_gap(self, base: TrajectoryAdvantage) -> torch.Tensor:
        """Not where B = 0, nor where no token may flip and the weight does nothing (λ = 0, or both bounds 1)."""
        c, B = self.config, base.value
        weighs = [self.gap_weight > 0 and bounds != (1.0, 1.0) for bounds in (c.positive_clip, c.negative_clip)]
        flip_correct, flip_wrong = self._rows_that_flip(base)
        return ((B > 0) & weighs[0]) | ((B < 0) & weighs[1]) | flip_correct | flip_wrong

    def _rows_that_flip(self, base: BaseAdvantage) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) bool twice: rows with B > 0, and rows with B < 0, of which tokens may flip."""
        c, B = self.config, base.value
        may_flip = (base.kind != MIXED) | (c.flip_groups == "all")
        return (B > 0) & may_flip & (c.flip in ("both", "correct")), (B < 0) & may_flip & (c.flip in ("both", "wrong"))


class GrpoRule(Rule):
    """verl's GRPO, under the settings of CAST: the rule of a step whose teacher is not trusted. No gap matters."""

    gap_deadzone = 0.0

    def needs_gap(self, base: TrajectoryAdvantage) -> torch.Tensor:
        return torch.zeros_like(base.correct)

    def shape(self, base: BaseAdvantage, gap: torch.Tensor) -> ShapedAdvantage:
        none = torch.zeros_like(gap, dtype=torch.bool)
        return ShapedAdvantage(base.value.unsqueeze(-1).expand_as(gap), none, none, none)


def token_gap(teacher_log_probs: torch.Tensor, old_log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Section 3: g = log π_φ − log π_old of every response token, 0 where the mask is 0.

    Args:
        teacher_log_probs, old_log_probs: (B, T), at the sampling temperature.
        mask: (B, T) bool, tokens that the policy wrote, that count, and whose gap is needed.

    Raises:
        ValueError: a log-probability under the mask is NaN or infinite.
    """
    # At least float32: a difference in bf16 would be rounded once more.
    dtype = torch.promote_types(torch.promote_types(teacher_log_probs.dtype, old_log_probs.dtype), torch.float32)
    gap = torch.where(mask, teacher_log_probs.to(dtype) - old_log_probs.to(dtype), 0.0)
    if not torch.isfinite(gap).all():
        raise ValueError("CAST: a teacher or old log-probability is NaN or infinite on a token that counts.")
    return gap + 0.0  # −0.0 becomes 0.0
