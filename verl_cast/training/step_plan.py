"""What is known of a step before its first forward: B of every row, which rows need the teacher, which passes run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_cast import wire
from verl_cast.advantage.base import EXCLUDED, TrajectoryAdvantage
from verl_cast.advantage.cast import GrpoRule
from verl_cast.advantage.compute import rule_of, trajectory_advantage
from verl_cast.advantage.rule import Rule
from verl_cast.checks.run import noise_floor_interval
from verl_cast.config import MethodConfig
from verl_cast.config.cast import NOISE
from verl_cast.config.words import command_words
from verl_cast.training.passes import step_allows_one_pass, weighs_by_old_log_probs

# What `plan_step` reads of a batch.
REWARD_FIELDS = ("uid", "rm_scores", "response_mask")


@dataclass(frozen=True)
class Step:
    """One training step.

    Attributes:
        rule: the method in this step.
        base: (B,) of every row, from its reward.
        base_is_final: no row can be rejected any more, so that `base` is what trains.
        rewards: (B,) that `base` was formed from.
        final_row: (B,) int64, the row of the final output of each row's session.
        scored: (B,) bool, rows whose advantage depends on the gap.
        gap_is_zero: teacher and policy are the same weights on the same tokens, so that no forward is needed.
        teacher_age: training steps since the teacher's weights were the policy's; None where they never were.
        one_pass: the update forms the gap, and there is no pass for old log-probs.
        measures_noise: the noise floor is measured.
    """

    rule: Rule
    base: TrajectoryAdvantage
    base_is_final: bool
    rewards: torch.Tensor
    final_row: torch.Tensor
    scored: torch.Tensor
    gap_is_zero: bool
    teacher_age: int | None
    one_pass: bool
    measures_noise: bool

    @property
    def teacher_runs(self) -> bool:
        """Whether the teacher runs a forward."""
        return bool(self.scored.any()) and not self.gap_is_zero

    def metrics(self) -> dict[str, float]:
        metrics = {"teacher/forward": float(self.teacher_runs), "one_pass": float(self.one_pass)}
        if self.teacher_age is not None:
            metrics["teacher/age"] = float(self.teacher_age)
        return metrics


def plan_step(
    config: DictConfig,
    method: MethodConfig,
    keys: list[str],
    data: TensorDict,
    global_step: int,
    teacher: dict[str, Any],
    live_is_old: bool,
    may_be_one_pass: bool,
    holds_images: Callable[[], bool],
    trusted: bool = True,
) -> Step:
    """Grade the trajectories, and decide which rows need the teacher and which passes run.

    Args:
        config: verl's.
        method: its settings.
        keys: of the rows in TransferQueue.
        data: REWARD_FIELDS of the rows, nested.
        global_step: of this step, from 1.
        teacher: what `prepare_self_teacher` returned.
        live_is_old: the live weights are those of π_old.
        may_be_one_pass: nothing about the whole run speaks against it (passes.py).
        holds_images: whether rows carry images; called only if the noise floor would be measured.
        trusted: the teacher is (trust.py); otherwise the step is GRPO's.

    Raises:
        ValueError: rows that this teacher cannot score, a reward that is not finite, or gap_deadzone=noise with images.
    """
    context = method.teacher.context
    if context != "same" and any(wire.output_of(key) != 0 for key in keys):
        raise ValueError(
            "CAST: an agent loop gave several outputs for one session, each with its own prompt; "
            f"{method.teacher.who_can_score} can score them."
        )
    noise_floor = teacher["noise_floor"]
    rule = rule_of(method, completed_steps=global_step - 1, noise_floor=noise_floor) if trusted else GrpoRule(method)
    final_row = torch.from_numpy(wire.final_rows(keys))
    uid = np.array([str(value) for value in tu.get(data, "uid")], dtype=object)
    data = data.select("rm_scores", "response_mask").to_padded_tensor()
    norm = config.algorithm.get("norm_adv_by_std_in_grpo", True)
    base = trajectory_advantage(rule, data["rm_scores"], data["response_mask"], uid, norm, final_row)
    # Rows may yet be rejected, which would change their groups: then any row may come to need its gap.
    base_is_final = not weighs_by_old_log_probs(config)
    scored = rule.needs_gap(base) if base_is_final else base.kind != EXCLUDED

    interval = noise_floor_interval(config, method)
    is_due = interval is not None and (noise_floor is None or (interval > 0 and global_step % interval == 0))
    # Skip the measurement if no row needs a gap. But a dead zone that follows the noise needs a number in every step.
    measures_noise = live_is_old and is_due and trusted and (bool(scored.any()) or method.gap_deadzone == NOISE)
    if measures_noise and holds_images():
        # Micro-batches of one row would hold a text row without images, which verl's models with images do not take.
        if method.gap_deadzone == NOISE:
            raise ValueError(
                f"{method.key()}.gap_deadzone={NOISE}: the noise floor is not measured for rows with images. Set a "
                f"number of nats, such as {command_words({'gap_deadzone': 0.01}, type(method))}"
            )
        measures_noise = False
    one_pass = (
        may_be_one_pass
        and step_allows_one_pass(config, len(keys), global_step)
        and not measures_noise  # of the weights before the update
        and bool(scored.any())  # a step in which no gap matters is verl's GRPO, to the last bit
    )
    return Step(
        rule=rule,
        base=base,
        base_is_final=base_is_final,
        rewards=data["rm_scores"].sum(dim=-1),
        final_row=final_row,
        scored=scored,
        # A forward would only add kernel noise, which the flip turns into signs (section 7).
        gap_is_zero=teacher["is_policy"] and context == "same",
        teacher_age=teacher["age"],
        one_pass=one_pass,
        measures_noise=measures_noise,
    )
