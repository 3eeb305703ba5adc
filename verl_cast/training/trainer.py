"""The trainer with a self-teacher: one mixin over verl's V1 trainers (sync, colocate_async, separate_async).

It changes three stages of verl's step: old log-probs, advantages, update. README.md, beside this file, follows a step
through them. With two passes the teacher's pass runs with verl's pass for old log-probs, and the estimator gets both.
With one pass (passes.py) the update forms the gap, and verl's own bookkeeping of old log-probs and advantages follows
it. Noise floor and trajectory dump are measured here too, where they were asked for.

The method is CAST or one of the baselines. Trainers of runs with another estimator are verl's own.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

import verl_cast
from verl_cast import wire
from verl_cast.advantage.compute import TokenAdvantage, rule_of
from verl_cast.advantage.metrics import Noise, advantage_metrics, measured_noise, noise_metrics
from verl_cast.checks.run import check_run, summary
from verl_cast.config import CastConfig
from verl_cast.config.methods import method_config
from verl_cast.seams import SEAMS, check_seams
from verl_cast.teacher.context import TeacherContext, chat_template_kwargs, load_template
from verl_cast.teacher.node import copies_that_verl_pins
from verl_cast.training.dump import FIELDS, TrajectoryDump
from verl_cast.training.estimator import EstimatorInputs, estimator_inputs
from verl_cast.training.measurement import TrustMixin
from verl_cast.training.passes import own_stage, why_two_passes
from verl_cast.training.step_plan import REWARD_FIELDS, Step, plan_step


class SelfTeacherTrainerMixin(TrustMixin):
    """Goes before a subclass of verl's PPOTrainer."""

    def __init__(self, config: DictConfig):
        check_seams(*SEAMS)  # all of them, as everything is imported here
        check_run(config)  # again: not every entry point passes through verl's main
        self.method = method_config(config)
        self._dump = TrajectoryDump(config, self.method)
        super().__init__(config)
        print(summary(config), flush=True)

    def _setup(self):
        super()._setup()
        if not hasattr(self.actor_rollout_wg, "init_self_teacher"):
            raise RuntimeError(
                "CAST: the actor workers do not run verl_cast's worker class, so there is no self-teacher. Stopping: "
                "without it the run would be GRPO."
            )
        ranks = self._init_teacher()
        self._start_trust(ranks[0]["taken_at"])
        self._two_passes_because = self._why_two_passes(ranks)
        origin = (
            "of the update's own forward (one pass)"
            if self._two_passes_because is None
            else f"of a pass of their own ({self._two_passes_because})"
        )
        print(f"[verl_cast] old log-probs: {origin}")

    def _init_teacher(self) -> list[dict[str, Any]]:
        """Build the teacher on every rank; returns what each says of it."""
        teacher, kwargs, template = self.method.teacher, chat_template_kwargs(self.config), None
        if isinstance(self.method, CastConfig):
            template = load_template(teacher.context)
            self._teacher_context = TeacherContext(teacher.context, template, self.tokenizer, kwargs)  # for the dump
        ranks = self.actor_rollout_wg.init_self_teacher(
            config=self.method, template=template, chat_template_kwargs=kwargs, completed_steps=self.global_steps
        )
        _check_one_teacher(ranks)
        print(f"[verl_cast] {host_memory_in_words(self.config, ranks)}")
        return ranks

    def _why_two_passes(self, ranks: list[dict[str, Any]]) -> str | None:
        """Why no step of this run can be one pass; None where steps can."""
        because = why_two_passes(self.config, self.method)
        noise = sorted({setting for rank in ranks for setting in rank["noise"]})
        if because is None and noise:
            because = f"{', '.join(noise)}: the update's forward is another one"
        own = own_stage(self)
        if because is None and own is not None:
            because = f"{own} has a _compute_old_log_prob of its own"
        return because

    # ------------------------------------------------------------------------------------------------ stages of a step

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Plan the step. Then verl's pass with the teacher's; in a one-pass step the teacher's alone."""
        self._step = step = self._plan_step(batch)
        self._log(metrics, step.metrics() | self._trust_metrics)
        batch = self._lay_out(batch, step)
        if step.one_pass:
            if step.teacher_runs:
                batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
                output = self.actor_rollout_wg.compute_teacher_log_probs(batch)
                if len(output) != len(batch):
                    raise RuntimeError(f"CAST: teacher log-probs for {len(output)} of {len(batch)} responses.")
        elif step.teacher_runs:
            with _asking(batch, wire.WITH_TEACHER):
                batch = super()._compute_old_log_prob(batch, metrics)
        else:
            batch = super()._compute_old_log_prob(batch, metrics)
        self._log(metrics, self._teacher_cost())
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's stage around the estimator; in a one-pass step it comes after the update."""
        if not self._step.one_pass:
            return self._compute_token_advantage(batch, metrics, inside="adv")
        batch.fields = None  # the update takes all that is stored: the teacher's and the reference's log-probs too
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's update; after a one-pass update verl's stages before it, with the log-probs that it computed."""
        if not self._step.one_pass:
            return super()._update_actor(batch, metrics)
        batch.extra_info[wire.COMPLETED_STEPS] = self.global_steps - 1
        batch.extra_info[wire.GAP_IS_ZERO] = self._step.gap_is_zero
        with _asking(batch, wire.ONE_PASS):
            batch = super()._update_actor(batch, metrics)
        with self._stage("cast_after_update", inside="update_actor"):
            # The workers need the rows' lengths and nothing else, and run no forward.
            rows = KVBatchMeta(
                keys=batch.keys, tags=batch.tags, partition_id=batch.partition_id, fields=["response_mask"]
            )
            with _asking(rows, wire.OF_UPDATE):
                batch = super()._compute_old_log_prob(rows, metrics)
            return self._compute_token_advantage(batch, metrics, inside="cast_after_update")

    # --------------------------------------------------------------------------------------------- parts of the stages

    def _plan_step(self, batch: KVBatchMeta) -> Step:
        """Bring the teacher up to date, and decide what the step needs."""
        status = self.actor_rollout_wg.prepare_self_teacher(completed_steps=self.global_steps - 1)
        if any(rank != status[0] for rank in status):
            raise RuntimeError(f"CAST: the ranks' self-teachers are not at the same step: {status}.")
        data = self._read(batch, REWARD_FIELDS)
        return plan_step(
            self.config,
            self.method,
            batch.keys,
            data,
            self.global_steps,
            status[0],
            # After the first of several updates in a step the live weights are no longer those of π_old.
            live_is_old=self.local_trigger_step == 0,
            may_be_one_pass=self._two_passes_because is None,
            trusted=self._teacher_is_trusted(batch, data, status[0]["age"]),
        )

    def _lay_out(self, batch: KVBatchMeta, step: Step) -> KVBatchMeta:
        """Write what the workers need of the step into TransferQueue."""
        if not (step.teacher_runs or step.one_pass):
            return batch
        fields = {wire.SCORED: step.scored}
        if step.one_pass:
            fields |= {wire.BASE: step.base.value, wire.CORRECT: step.base.correct, wire.KIND: step.base.kind}
        fields = TensorDict(fields, batch_size=len(batch))
        if step.teacher_runs and self.method.teacher.PRIVILEGED:
            from verl_cast.teacher.privileged.shown import shown_to_teacher

            fields.update(shown_to_teacher(batch, self.method, self.tokenizer))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _compute_token_advantage(self, batch: KVBatchMeta, metrics: dict, inside: str) -> KVBatchMeta:
        """verl's advantage stage with the estimator's inputs laid out; then metrics and dump.

        Args:
            inside: the stage of verl's timing in which this runs.
        """
        step, noise = self._step, None
        if step.measures_noise:
            with self._stage("cast_noise", inside):
                noise = self._measure_noise(batch)
        rule = step.rule if noise is None else rule_of(self.method, self.global_steps - 1, noise.floor)
        if not step.teacher_runs:
            # The estimator takes the field in every step. In this one no row needs a gap, or every gap is 0.
            own = self._read(batch, ["old_log_probs"]).rename_key_("old_log_probs", wire.TEACHER_LOG_PROBS)
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=own)
        inputs = EstimatorInputs(
            rule=rule,
            scored=step.scored,
            final_row=step.final_row,
            rewards=step.rewards,
            base=step.base if step.base_is_final else None,
        )
        with estimator_inputs(inputs) as results:
            batch = super()._compute_advantage(batch, metrics)
        if len(results) != 1:
            raise RuntimeError(
                f"CAST: verl's advantage stage called the estimator `{self.method.NAME}` {len(results)} times. "
                "Stopping: the run would be another method's."
            )
        result = results[0]
        self._log(metrics, advantage_metrics(result, self._read(batch, ["entropy"]).to_padded_tensor()["entropy"]))
        if isinstance(self.method, CastConfig):
            self._log(metrics, {"gap/deadzone": rule.gap_deadzone})
        else:
            self._log(metrics, {"gap_weight": rule.gap_weight})
        if noise is not None:
            in_doubt = noise_metrics(noise, result)
            self._log(metrics, in_doubt)
            print(f"[verl_cast] step {self.global_steps}: {noise_in_words(in_doubt)}", flush=True)
        if self._dump.due(self.global_steps):
            with self._stage("cast_dump", inside), self._dump.errors_logged(self.global_steps):
                self._dump_trajectories(batch, result)
        return batch

    def _measure_noise(self, batch: KVBatchMeta) -> Noise | None:
        """Another pass of the policy over the same tokens; None where no token counts. The workers keep the floor."""
        batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
        self.actor_rollout_wg.compute_log_probs_again(batch)
        fields = ("response_mask", "old_log_probs", wire.LOG_PROBS_AGAIN)
        data = self._read(batch, fields).to_padded_tensor()
        noise = measured_noise(*(data[name] for name in fields))
        if noise is not None:
            self.actor_rollout_wg.keep_noise_floor(noise.floor)
        return noise

    def _dump_trajectories(self, batch: KVBatchMeta, result: TokenAdvantage) -> None:
        rows = self._dump.choose(batch.keys, result)
        if not rows:
            raise ValueError("no response of the batch counts")
        data = tq.kv_batch_get(
            keys=[batch.keys[row] for row in rows], partition_id=batch.partition_id, select_fields=list(FIELDS)
        )
        self._dump.write(
            self.global_steps,
            batch.keys,
            rows,
            {name: list(tu.get(data, name)) for name in FIELDS if name in data},
            result,
            self.tokenizer,
            self._teacher_context,
            self._step.teacher_age,
        )

    def _read(self, batch: KVBatchMeta, fields: Any) -> TensorDict:
        return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields))

    # ------------------------------------------------------------------------------------------------ metrics and time

    def _log(self, metrics: dict, own: dict[str, float]) -> None:
        """Our metrics, under the method's name: no baseline's number says CAST."""
        metrics.update({f"{self.method.NAME}/{name}": value for name, value in own.items()})

    def _teacher_cost(self) -> dict[str, float]:
        """The teacher's cost in this step, on the rank that paid most. Its pass ran in verl's old_log_prob stage."""
        ranks = self.actor_rollout_wg.self_teacher_cost()
        cost = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
        metrics = {f"teacher/{name}_gib": cost[f"{name}_bytes"] / 2**30 for name in ("host", "refresh", "swap")}
        metrics |= {f"teacher/{name}_seconds": cost[f"{name}_seconds"] for name in ("refresh", "swap")}
        if self._step.teacher_runs:
            self._move_seconds("old_log_prob", "cast_teacher", cost["seconds"])
            metrics["teacher/peak_memory_gib"] = cost["peak_bytes"] / 2**30
        return metrics

    @contextlib.contextmanager
    def _stage(self, name: str, inside: str) -> Iterator[None]:
        """A stage of its own in verl's timing, taken out of the one that it runs in."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._move_seconds(inside, name, time.perf_counter() - started)

    def _move_seconds(self, source: str, target: str, seconds: float) -> None:
        self.timing_raw[source] = self.timing_raw.get(source, 0.0) - seconds
        self.timing_raw[target] = self.timing_raw.get(target, 0.0) + seconds


@contextlib.contextmanager
def _asking(batch: KVBatchMeta, stage: str) -> Iterator[None]:
    """verl's stage inside asks the workers for more than verl's own: a stage of wire.py."""
    batch.extra_info[wire.STAGE] = stage
    try:
        yield
    finally:
        batch.extra_info.pop(wire.STAGE, None)


def noise_in_words(metrics: dict[str, float]) -> str:
    """The noise floor, and what it could have decided; `metrics` of `noise_metrics`."""
    share = metrics.get("noise/flip_share")
    flips = "no token flips" if share is None else f"{share:.0%} of the flips lie within it"
    advice = " (algorithm.cast.gap_deadzone=noise keeps such tokens from flipping)" if share else ""
    return f"the engine's noise floor is {metrics['noise/p99']:.2g} nats; {flips}{advice}"


def host_memory_in_words(config: DictConfig, ranks: list[dict[str, Any]]) -> str:
    """The start line about the teacher's host memory, beside what verl page-locks itself.

    Args:
        ranks: what `init_self_teacher` returned on every rank.
    """
    nodes = Counter()
    for rank in ranks:
        nodes[rank["node"]] += rank["host_bytes"]
    most, node_mib = max(rank["host_bytes"] for rank in ranks) / 2**20, max(nodes.values()) / 2**20
    pinned = "page-locked" if all(rank["is_pinned"] for rank in ranks) else "not page-locked"
    verls = copies_that_verl_pins(config)
    beside = "".join(f"; verl page-locks {count} such copies for {key}" for key, count in verls.items())
    return (
        f"self-teacher ready on {len(ranks)} rank(s), {most:.1f} MiB of host memory each, {node_mib:.1f} MiB a node, "
        f"{pinned}{beside}"
    )


def _check_one_teacher(ranks: list[dict[str, Any]]) -> None:
    """What `init_self_teacher` returned on every rank makes one teacher.

    Raises:
        RuntimeError: another version of this package on a rank, or a saved teacher on some ranks only.
    """
    versions = {rank["version"] for rank in ranks}
    if versions != {verl_cast.__version__}:
        raise RuntimeError(
            f"CAST: verl_cast {verl_cast.__version__} in the trainer, {', '.join(sorted(versions))} in the actor "
            "workers; install one version on every node."
        )
    if len({(rank["restored"], rank["taken_at"]) for rank in ranks}) > 1:
        new = [number for number, rank in enumerate(ranks) if not rank["restored"]]
        raise RuntimeError(
            f"CAST: some ranks restored the checkpoint's self-teacher, others (ranks {new}) have none of it or another "
            "one. Bring the missing cast_self_teacher_* files back, or move all of them away to start the teacher anew."
        )
