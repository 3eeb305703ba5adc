"""OPSD, GRPO+OPSD, RLSD and RLRT (section 10), the methods that CAST is compared with.

A is GRPO's advantage of the response (0 in groups without variance), g = log π_T − log π_old the gap to the privileged
teacher, λ the gap weight.

    OPSD        g                                                              (sampled-token form)
    GRPO+OPSD   A + λ·g
    RLSD        A·[(1 − λ) + λ·clip(exp(sign(A)·g), 1 ± ε)],  λ falls linearly to 0
    RLRT        A·[(1 − λ) + λ·clip(exp(−sign(A)·g), 1 ± ε)]  on correct responses, A on wrong ones

Section 10 leaves two points open. How GRPO+OPSD weighs its parts: here λ weighs OPSD's. What RLRT does with wrong
responses: here they keep A, as in the author's public development code of CAST, which holds RLRT too.
"""

import torch

from verl_cast.advantage.base import EXCLUDED, BaseAdvantage, TrajectoryAdvantage
from verl_cast.advantage.rule import MAX_EXPONENT, Rule, ShapedAdvantage


class _BaselineRule(Rule):
    """A formula of A and g."""

    def needs_gap(self, base: TrajectoryAdvantage) -> torch.Tensor:
        return (base.kind != EXCLUDED) & (base.value != 0) & (self.gap_weight > 0)

    def _shaped(self, A: torch.Tensor, advantages: torch.Tensor, weight_clipped: torch.Tensor) -> ShapedAdvantage:
        flipped = torch.sign(advantages) * torch.sign(A) < 0
        return ShapedAdvantage(advantages, flipped, weight_clipped, torch.zeros_like(flipped))

    def _reweighted(self, A: torch.Tensor, gap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A·[(1 − λ) + λ·clip(exp(sign(A)·gap), 1 ± ε)], and where the weight lay outside its bounds."""
        raw_weight = torch.exp((torch.sign(A) * gap).clamp(-MAX_EXPONENT, MAX_EXPONENT))
        w = raw_weight.clamp(1 - self.config.weight_clip, 1 + self.config.weight_clip)
        return A * ((1 - self.gap_weight) + self.gap_weight * w), w != raw_weight


class GrpoOpsdRule(_BaselineRule):
    def needs_gap(self, base: TrajectoryAdvantage) -> torch.Tensor:
        return (base.kind != EXCLUDED) & (self.gap_weight > 0)

    def shape(self, base: BaseAdvantage, gap: torch.Tensor) -> ShapedAdvantage:
        A = base.value.unsqueeze(-1)
        return self._shaped(A, A + self.gap_weight * gap, torch.zeros_like(gap, dtype=torch.bool))


class OpsdRule(_BaselineRule):
    def _gap_weight(self, completed_steps: int) -> float:
        return 1.0

    def needs_gap(self, base: TrajectoryAdvantage) -> torch.Tensor:
        return base.kind != EXCLUDED

    def shape(self, base: BaseAdvantage, gap: torch.Tensor) -> ShapedAdvantage:
        return self._shaped(base.value.unsqueeze(-1), gap, torch.zeros_like(gap, dtype=torch.bool))


class RlsdRule(_BaselineRule):
    def _gap_weight(self, completed_steps: int) -> float:
        steps = self.config.gap_weight_decay_steps
        return self.config.gap_weight * (max(0.0, 1 - completed_steps / steps) if steps > 0 else 1.0)

    def shape(self, base: BaseAdvantage, gap: torch.Tensor) -> ShapedAdvantage:
        A = base.value.unsqueeze(-1)
        return self._shaped(A, *self._reweighted(A, gap))


class RlrtRule(_BaselineRule):
    def needs_gap(self, base: TrajectoryAdvantage) -> torch.Tensor:
        return super().needs_gap(base) & base.correct

    def shape(self, base: BaseAdvantage, gap: torch.Tensor) -> ShapedAdvantage:
        A, correct = base.value.unsqueeze(-1), base.correct.unsqueeze(-1)
        advantages, weight_clipped = self._reweighted(A, -gap)
        return self._shaped(A, torch.where(correct, advantages, A), weight_clipped & correct)
