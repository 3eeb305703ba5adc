"""Samples and grades what trust.py compares, through the run's own rollout engine, agent loop and reward.

The rows go to verl's partition `val`, as those of a validation, and are cleared before the engine sleeps: training,
replay, checkpoints, metrics and dumps never see them. The engine has the snapshot's weights from the weight sync of one
step to that of the next. So a step with a snapshot sends them at its start, together with its training batch, and waits
for them where it has its training rows. Every response carries the version of the weights that made it, which is
checked.

Random numbers: problems have a generator that training does not use, and verl's shuffling goes on as without. An engine
that samples all requests from one generator gives other random numbers to training rows than without a measurement.
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from verl_cast import wire
from verl_cast.advantage.base import rows_that_count
from verl_cast.config.cast import MEASURED, MIN_PROBLEMS
from verl_cast.files import whole_file
from verl_cast.teacher.context import load_template
from verl_cast.training.trust import (
    Trust,
    by_problem,
    compare,
    draw_problems,
    responses_per_problem,
)

STATE_FILE = "cast_trust.json"  # in a checkpoint, beside verl's data.pt
_PARTITION = "val"


@dataclass
class _Sent:
    """A measurement on its way.

    Attributes:
        teacher: verl's uid of every problem's rows in the teacher's context.
        policy: the same, in the policy's own context; uids of the training batch where that has them.
        expected: prompts and responses that were sent to the engine for it.
        graded: (uid, correct) of every response; None while they are generated.
    """

    teacher: list[str]
    policy: list[str]
    expected: tuple[int, int]
    graded: list[tuple[str, bool]] | None = None


class TrustMixin:
    """The trainer's part of trust=measured. Goes before a subclass of verl's PPOTrainer; does nothing with `always`."""

    _trust: Trust | None = None
    _sent: _Sent | None = None
    _trust_metrics: dict[str, float]

    def _start_trust(self, taken_at: int) -> None:
        """After the teacher is built or restored; `taken_at`: completed steps when its weights were the policy's."""
        self._trust_metrics = {}
        if self.method.trust != MEASURED:
            return
        method = self.method
        self._trust = Trust(method.trust_responses, method.trust_standard_errors, method.teacher.refresh_interval)
        self._template = load_template(method.teacher.context)
        if self.global_steps > 0:
            self._say(self._trust.restore(_saved_state(self.config, self.global_steps), taken_at, self.global_steps))

    # --------------------------------------------------------------------------------------------------- verl's hooks

    def on_step_begin(self):
        super().on_step_begin()
        if self._measures_now() and not answered_by_the_batch(self.config):
            self._send_drawn_problems()

    def _submit_batch_to_rollout(self, batch: TensorDict) -> int:
        submitted = super()._submit_batch_to_rollout(batch)
        if self._measures_now() and answered_by_the_batch(self.config) and self._sent is None:
            count = min(len(batch), self.method.trust_responses)
            responses = responses_per_problem(self.method.trust_responses, count)
            rows = tu.index_select_tensor_dict(batch, list(range(count)))
            policy = [str(uid) for uid in tu.get(rows, "uid")]
            teacher = self._send(rows, self.method.teacher.context, responses)
            self._sent = _Sent(teacher, policy, (count, count * responses))
        return submitted

    def on_sample_end(self):
        if self._sent is not None and self._sent.graded is None:
            with self._stage("cast_trust", inside="gen"):
                self._sent.graded = self._graded(self._sent)
        super().on_sample_end()

    def _save_checkpoint(self):
        if self._trust is not None:
            path = Path(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}", STATE_FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as scratch:
                Path(scratch).write_text(json.dumps(self._trust.state_dict()), encoding="utf-8")
        super()._save_checkpoint()

    # ------------------------------------------------------------------------------------------------------- sampling

    def _measures_now(self) -> bool:
        return self._trust is not None and self._trust.due(self.global_steps - 1)

    def _send_drawn_problems(self) -> None:
        """Problems of their own, in both contexts."""
        wanted, size = self.method.trust_responses, len(self.train_dataset)
        count = min(wanted, size)
        responses = responses_per_problem(wanted, count)
        drawn = draw_problems(self.config.data.get("seed"), self.global_steps - 1, size, count)
        uids = []
        for context in (self.method.teacher.context, "same"):
            rows = collate_fn([self.train_dataset[problem] for problem in drawn])
            rows = tu.get_tensordict(rows, {"global_steps": self.global_steps})
            uids.append(self._send(rows, context, responses))
        self._sent = _Sent(*uids, (2 * count, 2 * count * responses))

    def _send(self, rows: TensorDict, context: str, responses: int) -> list[str]:
        """Start generating, in a context; returns the rows' uids. `rows` are as from the training dataloader."""
        uids = [str(uuid.uuid4()) for _ in range(len(rows))]
        usual = self.config.actor_rollout_ref.rollout.agent.default_agent_loop
        loops = tu.get(rows, "agent_name", [usual] * len(rows))
        tu.assign_non_tensor_stack(rows, wire.AGENT_LOOP, [str(loop) for loop in loops])
        tu.assign_non_tensor_stack(rows, "uid", uids)
        for field, value in (
            ("agent_name", wire.IN_CONTEXT),
            (wire.CONTEXT, context),
            (wire.TEMPLATE, None if context == "same" else self._template),
            ("__rollout_n__", responses),
            ("validate", True),
        ):
            tu.assign_non_tensor_data(rows, field, value)
        tags = [{"is_prompt": True, "status": "pending", "global_steps": self.global_steps} for _ in uids]
        tq.kv_batch_put(keys=uids, partition_id=_PARTITION, tags=tags)
        self.agent_loop_manager.generate_sequences(rows)
        return uids

    def _graded(self, sent: _Sent) -> list[tuple[str, bool]]:
        """Wait for the responses; (uid, correct) of each. They are cleared, whatever they are."""
        prompts, responses = sent.expected
        batch, _ = self.replay_buffer.sample(
            global_steps=self.global_steps, partition_id=_PARTITION, batch_size=prompts
        )
        try:
            return _checked(batch, responses, self.global_steps - 1, self.method.correct_threshold)
        finally:
            tq.kv_clear(keys=batch.keys, partition_id=_PARTITION)

    # ------------------------------------------------------------------------------------------------------- deciding

    def _teacher_is_trusted(self, batch: KVBatchMeta, data: TensorDict, teacher_age: int | None) -> bool:
        """Decide for this step, and note its metrics.

        Args:
            batch, data: the training rows, with nested uid, rm_scores and response_mask.
            teacher_age: training steps since the teacher's weights were the policy's.
        """
        self._trust_metrics = {}
        trust, completed_steps = self._trust, self.global_steps - 1
        if trust is None:
            return True
        rows = data.select("rm_scores", "response_mask").to_padded_tensor()
        counts, _ = rows_that_count(rows["response_mask"], torch.from_numpy(wire.final_rows(batch.keys)))
        correct = rows["rm_scores"].sum(dim=-1) > self.method.correct_threshold
        if self._sent is not None:
            sent, self._sent = self._sent, None
            own = zip((wire.group_of(key) for key in batch.keys), correct.tolist(), strict=True)
            graded = [*sent.graded, *(row for row, counted in zip(own, counts.tolist(), strict=True) if counted)]
            pairs = zip(by_problem(graded, sent.teacher), by_problem(graded, sent.policy), strict=True)
            # A problem of the training batch has no response where its agent loops failed, which verl lets pass.
            measured = compare(*zip(*(pair for pair in pairs if pair[1]), strict=True))
            self._say(trust.decide(completed_steps, measured))
            self._trust_metrics = {
                "trust/teacher_share": measured.teacher_share,
                "trust/policy_share": measured.policy_share,
                "trust/standard_errors": measured.standard_errors,
            }
        if trust.measured_at != completed_steps - teacher_age:
            raise RuntimeError(
                f"CAST: the teacher's weights are those after {completed_steps - teacher_age} training steps, its "
                f"measurement is of those after {trust.measured_at}."
            )
        self._say(trust.observe(int((correct & counts).sum()), int(counts.sum())))
        self._trust_metrics["trust/trusted"] = float(trust.trusted)
        return trust.trusted

    def _say(self, words: str | None) -> None:
        if words is not None:
            print(f"[verl_cast] step {self.global_steps}: {words}", flush=True)


def answered_by_the_batch(config: DictConfig) -> bool:
    """Whether the training batch of a step with a snapshot has the policy's own responses.

    Its responses are the snapshot's in sync mode only, and it must have enough problems.
    """
    return config.trainer.v1.trainer_mode == "sync" and config.data.train_batch_size >= MIN_PROBLEMS


def _checked(batch: KVBatchMeta, expected: int, version: int, threshold: float) -> list[tuple[str, bool]]:
    """(uid, correct) of every response of a whole measurement.

    Args:
        expected: responses that were asked for.
        version: of the weights that must have made them, in completed training steps.
        threshold: a response is correct if its reward is greater.

    Raises:
        RuntimeError: responses are missing, were made by other weights, or have no finite reward.
    """
    if len(batch.keys) != expected:
        raise RuntimeError(
            f"CAST: {expected - len(batch.keys)} of the {expected} responses that measure the teacher are missing: the "
            "rollout engine, the agent loop or the reward failed, for the reason that stands above in the log ("
            '"Error in _run_prompt"). Stopping: a teacher is trusted after a whole measurement only.'
        )
    made_by = {tag[key] for tag in batch.tags for key in ("min_global_steps", "max_global_steps")}
    if made_by != {version}:
        raise RuntimeError(
            f"CAST: the responses that measure the teacher were made by the weights after {sorted(made_by, key=str)} "
            f"training steps; the teacher's are those after {version}."
        )
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["rm_scores"])
    rewards = torch.stack([scores.sum() for scores in data["rm_scores"].unbind()])
    if not torch.isfinite(rewards).all():
        raise RuntimeError("CAST: the reward of a response that measures the teacher is NaN or infinite.")
    return [(wire.group_of(key), reward > threshold) for key, reward in zip(batch.keys, rewards.tolist(), strict=True)]


def _saved_state(config: DictConfig, completed_steps: int) -> dict[str, Any] | None:
    """The state in the checkpoint that this run goes on from; None where it has none."""
    directory = Path(config.trainer.default_local_dir, f"global_step_{completed_steps}")
    if config.trainer.resume_mode == "resume_path":
        directory = Path(config.trainer.resume_from_path)
    path = directory / STATE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
