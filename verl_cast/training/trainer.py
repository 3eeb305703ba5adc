"""The trainer with a self-teacher: one mixin over verl's V1 trainers (sync, colocate_async, separate_async).

It changes three stages of verl's step: old log-probs, advantages, update. README.md follows a step through them. With
two passes the teacher's pass runs with verl's pass for old log-probs, and the estimator gets both. With one pass
(passes.py) the update forms the gap, and verl's stages of old log-probs and advantages follow it. Noise floor and
trajectory dump are measured here too.

The method is CAST or one of the baselines. Trainers of runs with another estimator are verl's own.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import RLHFDataset

import verl_cast
from verl_cast import wire
from verl_cast.advantage.base import TrajectoryAdvantage
from verl_cast.advantage.compute import TokenAdvantage, rule_of
from verl_cast.advantage.metrics import Noise, advantage_metrics, measured_noise, noise_metrics, one_sided_rewards
from verl_cast.checks.data import check_rows
from verl_cast.checks.run import check_run, summary
from verl_cast.config import CastConfig, CastConfigError
from verl_cast.config.cast import NOISE
from verl_cast.config.methods import method_config
from verl_cast.config.words import command_words
from verl_cast.seams import SEAMS, check_seams
from verl_cast.teacher.context import TeacherContext, chat_template_kwargs, load_template
from verl_cast.teacher.limits import Messages, longest_prompt
from verl_cast.teacher.node import copies_that_verl_pins
from verl_cast.training.dump import FIELDS, TrajectoryDump
from verl_cast.training.estimator import EstimatorCall, estimator_call
from verl_cast.training.measurement import TrustMixin
from verl_cast.training.passes import own_stage, why_two_passes
from verl_cast.training.step_plan import REWARD_FIELDS, Step, plan_step


class SelfTeacherTrainerMixin(TrustMixin):
    """Goes before a subclass of verl's PPOTrainer."""

    _seen_images = False  # in a batch of this run
    _warned_of_one_side = False  # that rewards differ on one side of the threshold

    def __init__(self, config: DictConfig):
        check_seams(*SEAMS)  # all of them, as everything is imported here
        check_run(config)  # again: not every entry point passes through verl's main
        self.method = method_config(config)
        self._dump = TrajectoryDump(config, self.method)
        super().__init__(config)
        print(summary(config), flush=True)

    def _init_dataloader(self):
        super()._init_dataloader()
        check_rows(self.config, self.train_dataset)

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
            else f"of a separate pass ({self._two_passes_because})"
        )
        print(f"[verl_cast] old log-probs: {origin}")

    def _init_teacher(self) -> list[dict[str, Any]]:
        """Build the teacher on every rank; returns what each reports."""
        teacher, kwargs, template = self.method.teacher, chat_template_kwargs(self.config), None
        if isinstance(self.method, CastConfig):
            template = load_template(teacher.context)
            self._teacher_context = TeacherContext(teacher.context, template, self.tokenizer, kwargs)  # for the dump
        ranks = self.actor_rollout_wg.init_self_teacher(
            config=self.method, template=template, chat_template_kwargs=kwargs, completed_steps=self.global_steps
        )
        _check_one_teacher(ranks)
        print(f"[verl_cast] {host_memory_in_words(self.config, ranks)}")
        if isinstance(self.method, CastConfig) and isinstance(self.train_dataset, RLHFDataset):
            try:
                longest = longest_teacher_prompt(self.train_dataset, self._teacher_context, self.tokenizer, kwargs)
            except ValueError as error:  # the run may never come to this row
                print(f"[verl_cast] a row of the training data has no teacher's prompt and would end the run. {error}")
            else:
                check_length(self.config, longest, ranks[0]["max_positions"])
        return ranks

    def _why_two_passes(self, ranks: list[dict[str, Any]]) -> str | None:
        """Why no step of this run can be one pass; None where steps can."""
        because = why_two_passes(self.config, self.method)
        training_only = sorted({setting for rank in ranks for setting in rank["training_only"]})
        if because is None and training_only:
            because = f"{', '.join(training_only)}: the update's forward differs"
        own = own_stage(self)
        if because is None and own is not None:
            because = f"{own} changes the trainer's _compute_old_log_prob"
        return because

    # ------------------------------------------------------------------------------------------------ stages of a step

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Plan the step. Then verl's pass with the teacher's; in a one-pass step only the teacher's."""
        self._step = step = self._plan_step(batch)
        self._log(metrics, step.metrics() | self._trust_metrics)
        batch = self._store_plan(batch, step)
        if step.one_pass:
            if step.teacher_runs:
                batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
                output = self.actor_rollout_wg.compute_teacher_log_probs(batch)
                if len(output) != len(batch):
                    raise RuntimeError(f"CAST: teacher log-probs for {len(output)} of {len(batch)} responses.")
        elif step.teacher_runs:
            with _variant(batch, wire.WITH_TEACHER):
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
        """verl's update; after a one-pass update verl's stages before it, with the log-probs that it computed.

        The loss has formed a one-pass update's token advantages, one micro-batch at a time. The estimator forms the
        same numbers again from the same log-probs, for the whole batch: for verl's records, the metrics and the dump.
        """
        if not self._step.one_pass:
            return super()._update_actor(batch, metrics)
        batch.extra_info[wire.COMPLETED_STEPS] = self.global_steps - 1
        batch.extra_info[wire.GAP_IS_ZERO] = self._step.gap_is_zero
        with _variant(batch, wire.ONE_PASS):
            batch = super()._update_actor(batch, metrics)
        with self._stage("cast_after_update", inside="update_actor"):
            # The workers need the rows' lengths and nothing else, and run no forward.
            rows = KVBatchMeta(
                keys=batch.keys, tags=batch.tags, partition_id=batch.partition_id, fields=["response_mask"]
            )
            with _variant(rows, wire.OF_UPDATE):
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
            holds_images=lambda: self._holds_images(batch),
            trusted=self._teacher_is_trusted(batch, data, status[0]["age"]),
        )

    def _holds_images(self, batch: KVBatchMeta) -> bool:
        """Whether rows of the run carry images: True in every step after the first such batch, and logged once."""
        if self.processor is not None and not self._seen_images:
            inputs = self._read(batch, ["multi_modal_inputs"])
            self._seen_images = any(tu.get(inputs, "multi_modal_inputs"))  # a text row's are empty
            if self._seen_images:
                print("[verl_cast] rows carry images: the noise floor is not measured (no cast/noise/*)", flush=True)
        return self._seen_images

    def _store_plan(self, batch: KVBatchMeta, step: Step) -> KVBatchMeta:
        """Write what the workers need of the step into TransferQueue."""
        if not (step.teacher_runs or step.one_pass):
            return batch
        fields = {wire.SCORED: step.scored}
        if step.one_pass:
            fields |= {wire.BASE: step.base.value, wire.CORRECT: step.base.correct, wire.KIND: step.base.kind}
        fields = TensorDict(fields, batch_size=len(batch))
        if step.teacher_runs and self.method.teacher.PRIVILEGED:
            from verl_cast.teacher.privileged import shown_to_teacher

            fields.update(shown_to_teacher(batch, self.method, self.tokenizer))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _compute_token_advantage(self, batch: KVBatchMeta, metrics: dict, inside: str) -> KVBatchMeta:
        """verl's advantage stage around our estimator, and the step's records.

        Args:
            inside: the stage of verl's timing in which this runs.
        """
        noise = None
        if self._step.measures_noise:
            with self._stage("cast_noise", inside):
                noise = self._measure_noise(batch)
        if not self._step.teacher_runs:
            # The estimator takes the field in every step. In this one no row needs a gap, or every gap is 0.
            own = self._read(batch, ["old_log_probs"]).rename_key_("old_log_probs", wire.TEACHER_LOG_PROBS)
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=own)
        with estimator_call(EstimatorCall(self._step)) as call:
            batch = super()._compute_advantage(batch, metrics)
        if call.result is None:
            raise RuntimeError(
                f"CAST: verl's advantage stage did not call the estimator `{self.method.NAME}`. Stopping: the run "
                "would be another method's."
            )
        self._record(batch, metrics, call.result, noise)
        if self._dump.due(self.global_steps):
            with self._stage("cast_dump", inside):
                self._dump.write(
                    self.global_steps,
                    batch.keys,
                    lambda keys: self._read(batch, FIELDS, keys),
                    call.result,
                    self.tokenizer,
                    self._teacher_context,
                    self._step.teacher_age,
                )
        return batch

    def _record(self, batch: KVBatchMeta, metrics: dict, result: TokenAdvantage, noise: Noise | None) -> None:
        """Log the step's numbers; print the noise floor."""
        entropy = self._read(batch, ["entropy"]).to_padded_tensor()["entropy"]
        self._log(metrics, advantage_metrics(result, entropy))
        if isinstance(self.method, CastConfig):
            self._log(metrics, {"gap/deadzone": self._step.rule.gap_deadzone})
            self._warn_of_one_side(result.base)
        else:
            self._log(metrics, {"gap_weight": self._step.rule.gap_weight})
        if noise is not None:
            in_doubt = noise_metrics(noise, result)
            self._log(metrics, in_doubt)
            print(f"[verl_cast] step {self.global_steps}: {noise_in_words(in_doubt)}", flush=True)

    def _warn_of_one_side(self, base: TrajectoryAdvantage) -> None:
        """Once in a run: CAST takes rewards for equal that differ on one side of the threshold."""
        rewards, threshold = one_sided_rewards(base), self.method.correct_threshold
        if rewards is None or self._warned_of_one_side:
            return
        self._warned_of_one_side = True
        lowest, highest = rewards
        remedy = command_words({"correct_threshold": (lowest + highest) / 2})
        print(
            f"[verl_cast] warning: step {self.global_steps}: rewards of one group differ (from {lowest:g} to "
            f"{highest:g}), but all are {'wrong' if highest <= threshold else 'correct'} by correct_threshold="
            f"{threshold:g}: CAST gives its responses one base advantage. If the higher ones are correct and the lower "
            f"ones are not: {remedy}",
            flush=True,
        )

    def _measure_noise(self, batch: KVBatchMeta) -> Noise | None:
        """Another pass of the policy over the same tokens; None where no token counts.

        The workers keep the floor, and the step's rule gets it.
        """
        batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
        self.actor_rollout_wg.compute_log_probs_again(batch)
        fields = ("response_mask", "old_log_probs", wire.LOG_PROBS_AGAIN)
        data = self._read(batch, fields).to_padded_tensor()
        noise = measured_noise(*(data[name] for name in fields))
        if noise is not None:
            self.actor_rollout_wg.keep_noise_floor(noise.floor)
            self._step = replace(self._step, rule=rule_of(self.method, self.global_steps - 1, noise.floor))
        return noise

    def _read(self, batch: KVBatchMeta, fields: Iterable[str], keys: list[str] | None = None) -> TensorDict:
        """Stored fields of the batch's rows, or of those with these keys."""
        return tq.kv_batch_get(keys=keys or batch.keys, partition_id=batch.partition_id, select_fields=list(fields))

    # ------------------------------------------------------------------------------------------------ metrics and time

    def _log(self, metrics: dict, own: dict[str, float]) -> None:
        """Our metrics, under the method's name: a baseline's are not CAST's."""
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
        """A separate stage in verl's timing, subtracted from the one that it runs in."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._move_seconds(inside, name, time.perf_counter() - started)

    def _move_seconds(self, source: str, target: str, seconds: float) -> None:
        self.timing_raw[source] = self.timing_raw.get(source, 0.0) - seconds
        self.timing_raw[target] = self.timing_raw.get(target, 0.0) + seconds


@contextlib.contextmanager
def _variant(batch: KVBatchMeta, stage: str) -> Iterator[None]:
    """Let verl's stage inside run this variant on the workers (wire.STAGE)."""
    batch.extra_info[wire.STAGE] = stage
    try:
        yield
    finally:
        batch.extra_info.pop(wire.STAGE, None)


def noise_in_words(metrics: dict[str, float]) -> str:
    """The noise floor, and what it could have decided; `metrics` of `noise_metrics`."""
    share = metrics.get("noise/flip_share")
    flips = "no token flips" if share is None else f"{share:.0%} of the flips lie within it"
    advice = f" ({command_words({'gap_deadzone': NOISE})} keeps such tokens from flipping)" if share else ""
    return f"the engine's noise floor is {metrics['noise/p99']:.2g} nats; {flips}{advice}"


def longest_teacher_prompt(
    dataset: RLHFDataset, context: TeacherContext, tokenizer: Any, chat_template_kwargs: dict[str, Any]
) -> int:
    """Tokens of the longest teacher's prompt among the first 100,000 rows; 0 where the context is the student's."""

    def student_prompt_ids(messages: Messages) -> list[int]:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, **chat_template_kwargs
        )

    prompts = () if context.is_same else islice(dataset.dataframe[dataset.prompt_key], 100_000)
    return longest_prompt(context, prompts, student_prompt_ids)


def check_length(config: DictConfig, longest_prompt: int, max_positions: int | None) -> None:
    """
    Raises:
        CastConfigError: the longest teacher's prompt with a response of full length would end the run.
    """
    response = config.data.max_response_length
    if max_positions is not None and longest_prompt + response > max_positions:
        raise CastConfigError(
            "data.max_response_length",
            response,
            f"the longest teacher's prompt has {longest_prompt} tokens, the model {max_positions} positions: a full "
            f"response would end the run. Set ++data.max_response_length={max_positions - longest_prompt}, or "
            "use a shorter context.",
        )


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
