"""What is known of a step before its first forward: B of every row, which rows need the teacher, which passes run."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_cast.advantage import trajectory_advantage
from verl_cast.base import EXCLUDED, BaseAdvantage
from verl_cast.config import MethodConfig
from verl_cast.passes import rows_of_an_update, weighs_by_old_log_probs
from verl_cast.rules import rule_of
from verl_cast.trajectories import final_rows

# What `plan_step` reads of a batch.
REWARD_FIELDS = ("uid", "rm_scores", "response_mask")


@dataclass(frozen=True)
class Step:
    """
    Attributes:
        base: (B,) of every row, from its reward.
        final_row: (B,) int64, see EstimatorInputs.
        scored: (B,) bool, rows whose advantage depends on the gap.
        gap_is_zero: teacher and policy are the same weights on the same tokens, so that no forward is needed.
        one_pass: the update forms the gap, and there is no pass for old log-probs.
        measures_noise: the noise floor is measured.
        metrics: `cast/*` of the step so far.
    """

    base: BaseAdvantage
    final_row: torch.Tensor
    scored: torch.Tensor
    gap_is_zero: bool
    one_pass: bool
    measures_noise: bool
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def teacher_runs(self) -> bool:
        """Whether the teacher runs a forward."""
        return bool(self.scored.any()) and not self.gap_is_zero


def plan_step(
    config: DictConfig,
    method: MethodConfig,
    keys: list[str],
    data: TensorDict,
    global_step: int,
    teacher: dict[str, Any],
    live_is_old: bool,
    may_be_one_pass: bool,
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
        may_be_one_pass: nothing about the whole run speaks against it (`why_two_passes`, dropout).

    Raises:
        ValueError: rows that this teacher cannot score, or a reward that is not finite.
    """
    context = method.teacher.context
    if context != "same" and any(key.rsplit("_", 1)[1] != "0" for key in keys):
        raise ValueError(
            "CAST: an agent loop gave several outputs for one session, each with a prompt of its own; "
            f"{method.teacher.who_can_score} can score them."
        )
    final_row, completed_steps, rule = torch.from_numpy(final_rows(keys)), global_step - 1, rule_of(method)
    uid = np.array([str(value) for value in tu.get(data, "uid")], dtype=object)
    data = data.select("rm_scores", "response_mask").to_padded_tensor()
    norm = config.algorithm.get("norm_adv_by_std_in_grpo", True)
    base = trajectory_advantage(rule, data["rm_scores"], data["response_mask"], uid, method, norm, final_row)
    if weighs_by_old_log_probs(config):
        scored = base.kind != EXCLUDED  # rows may yet be rejected, which would change their groups
    else:
        scored = rule.needs_gap(base, method, completed_steps)

    interval = method.noise_floor_interval
    measures_noise = interval > 0 and global_step % interval == 0 and live_is_old
    one_pass = (
        may_be_one_pass
        and len(keys) == rows_of_an_update(config)
        and config.trainer.critic_warmup <= global_step  # else there is no update
        and not measures_noise  # of the weights before the update
        and bool(scored.any())  # a step in which no gap matters is verl's GRPO, to the last bit
    )
    # The same weights on the same tokens: the gap is 0 by construction, and a forward would only add kernel noise that
    # the flip turns into signs (method section 7).
    gap_is_zero = teacher["is_policy"] and context == "same"
    step = Step(base, final_row, scored, gap_is_zero, one_pass, measures_noise)
    step.metrics.update({"cast/teacher/forward": float(step.teacher_runs), "cast/one_pass": float(one_pass)})
    if teacher["age"] is not None:
        step.metrics["cast/teacher/age"] = float(teacher["age"])
    return step
