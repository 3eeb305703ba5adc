"""What a method is: up to three formulas. cast.py holds CAST's, baselines.py those of the methods it is compared with.

Shapes: `B` rows (responses), `T` response tokens, padded to one length.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch

from verl_cast.advantage.base import BaseAdvantage, TrajectoryAdvantage, grpo_advantage
from verl_cast.config import MethodConfig
from verl_cast.config.cast import NOISE

# The clamp of the exponent in section 4: exp() cannot overflow, and exp(±20) lies far outside every sensible bound.
MAX_EXPONENT = 20.0


class ShapedAdvantage(NamedTuple):
    """What a rule makes of the gaps, all (B, T), before the mask.

    Attributes:
        advantages: Â.
        flipped: bool, tokens whose advantage has the opposite sign of B.
        weight_clipped: bool, tokens whose weight lay outside its bounds.
        clipped: bool, tokens whose advantage the final clip changed.
    """

    advantages: torch.Tensor
    flipped: torch.Tensor
    weight_clipped: torch.Tensor
    clipped: torch.Tensor


class Rule(ABC):
    """A method in one training step.

    Args:
        config: the method's settings.
        completed_steps: training steps before this one.
        noise_floor: of the engine, nats, for gap_deadzone=noise; None: not measured yet.

    Attributes:
        config: the settings.
        gap_weight: λ of this step.
    """

    def __init__(self, config: MethodConfig, completed_steps: int = 0, noise_floor: float | None = None):
        self.config = config
        self.gap_weight = self._gap_weight(completed_steps)
        self._noise_floor = noise_floor

    @property
    def gap_deadzone(self) -> float:
        """The dead zone of this step, nats.

        Raises:
            ValueError: it follows the noise floor, and that has not been measured.
        """
        if self.config.gap_deadzone != NOISE:
            return self.config.gap_deadzone
        if self._noise_floor is None:
            raise ValueError(
                f"CAST: {self.config.key()}.gap_deadzone={NOISE}, and the noise floor has not been measured. A run "
                "measures it; elsewhere pass noise_floor, or set the key to a number of nats."
            )
        return self._noise_floor

    def _gap_weight(self, completed_steps: int) -> float:
        return self.config.gap_weight

    def base(
        self, scores: torch.Tensor, index: np.ndarray, counts: torch.Tensor, norm_adv_by_std_in_grpo: bool = True
    ) -> TrajectoryAdvantage:
        """The base advantage B of every response: GRPO's. Arguments and errors as in `grpo_advantage`."""
        return grpo_advantage(scores, index, counts, self.config.correct_threshold, norm_adv_by_std_in_grpo)

    @abstractmethod
    def needs_gap(self, base: TrajectoryAdvantage) -> torch.Tensor:
        """(B,) bool, rows whose advantage depends on the gap."""

    @abstractmethod
    def shape(self, base: BaseAdvantage, gap: torch.Tensor) -> ShapedAdvantage:
        """The tokens' advantages from B and the gaps (B, T)."""
