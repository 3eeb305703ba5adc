"""Laws of trust=measured in real runs: sync with the training batch's own problems, and all modes with drawn ones.

reward_by_prompt.py makes the teacher better, and lets the policy catch up in step 3.
"""

import math
import re
from collections import Counter

import pytest
import queue_of_runs
import tiny
from test_end_to_end import (
    CAST,
    assert_same_batches,
    assert_same_parameters,
    assert_trained_with_the_method,
    ended,  # noqa: F401, a fixture
    resume,
)
from verl_run import SUPPORT, run_verl

from verl_cast import trajectories

MEASURED = (CAST, "+algorithm.cast.trust=measured")
BETTER_TEACHER = (
    "actor_rollout_ref.rollout.agent.default_agent_loop=prompt_shown",
    f"reward.custom_reward_function.path={SUPPORT / 'reward_by_prompt.py'}",
)
# 32 problems a step, of the 64 that there are: the training batch answers them for the policy.
WHOLE_BATCH = (
    *BETTER_TEACHER,
    "data.train_batch_size=32",
    "actor_rollout_ref.actor.ppo_mini_batch_size=32",
    "trainer.total_epochs=2",
    "trainer.save_freq=1",
)
TRUSTED = (*MEASURED, *WHOLE_BATCH, "+algorithm.cast.trust_responses=64", "+algorithm.cast.dump.interval=1")

# name: (overrides, arguments of run_verl). `after`: an earlier run, and a function of it that gives more overrides.
RUNS = {
    # The run `grpo` of test_end_to_end.py, with a teacher that the reward does not know from the policy.
    "never_trusted": (
        (*MEASURED, "+algorithm.cast.trust_responses=64", "+algorithm.cast.teacher.refresh_interval=2"),
        {},
    ),
    "trusted": ((*TRUSTED, "trainer.rollout_data_dir=rollouts"), {}),
    "trusted_resumed": (TRUSTED, {"after": ("trusted", lambda run: resume(run, 1))}),
    "always": ((CAST, *WHOLE_BATCH, "trainer.total_training_steps=2"), {}),
    "trust_colocate_async": (
        (
            *MEASURED,
            *BETTER_TEACHER,
            "+algorithm.cast.trust_responses=64",
            "+algorithm.cast.teacher.refresh_interval=2",
            "trainer.v1.trainer_mode=colocate_async",
        ),
        {"env": {"REWARD_FAILS_FROM": "2"}},
    ),
    "trust_separate_async": (
        (
            *MEASURED,
            *BETTER_TEACHER,
            "+algorithm.cast.trust_responses=64",
            "trainer.v1.trainer_mode=separate_async",
            "trainer.v1.separate_async.parameter_sync_step=1",
            "actor_rollout_ref.hybrid_engine=False",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=1",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=gloo",
            "+ray_kwargs.ray_init.num_gpus=2",
        ),
        {"env": {"VERL_LOGGING_LEVEL": "WARN"}},
    ),
}


def start(name):
    overrides, arguments = RUNS[name]
    arguments = dict(arguments)
    earlier, more = arguments.pop("after", (None, None))

    def run(directory, runs):
        further = () if earlier is None else more(runs(earlier))
        return run_verl(directory, runs("tiny"), *overrides, *further, timeout=900, **arguments)

    return run, ("tiny",) if earlier is None else ("tiny", earlier)


for name_ in RUNS:
    start_, after_ = start(name_)
    queue_of_runs.add(name_, start_, after=after_)


def column(run, name):
    """A metric of every step; None where a step has none."""
    return [metrics.get(f"cast/{name}") for metrics in run.metrics]


@pytest.mark.runs("grpo", "never_trusted")
def test_a_run_whose_teacher_is_never_trusted_is_grpo_bit_for_bit(ended):  # noqa: F811
    """Responses, advantages and weights; and every metric that GRPO has, except seconds and memory."""
    grpo, never = ended("grpo"), ended("never_trusted")
    assert column(never, "trust/trusted") == column(never, "teacher/forward") == [0.0, 0.0, 0.0]
    for step in (1, 2, 3):
        assert_same_batches(grpo, never, step)
    assert_same_parameters(grpo, never, 3)
    for of_grpo, of_never in zip(grpo.metrics, never.metrics, strict=True):
        for name, value in of_grpo.items():
            if not name.startswith("timing") and "perf/" not in name:
                assert of_never[name] == value, name


@pytest.mark.runs("never_trusted")
def test_every_snapshot_is_measured_with_problems_of_its_own(ended):  # noqa: F811
    """A batch of four problems is too small: both contexts answer 64 drawn ones."""
    never = ended("never_trusted")
    for name in ("trust/teacher_share", "trust/policy_share", "trust/standard_errors"):
        assert [value is not None for value in column(never, name)] == [True, False, True]
    assert never.output.count("not trusted: GRPO until the next snapshot (at most 2 steps). Of its 64 responses") == 2
    assert all(-3 < value < 3 for value in column(never, "trust/standard_errors") if value is not None)
    assert all(0 < m["timing_s/cast_trust"] for m in never.metrics if "cast/trust/policy_share" in m)


@pytest.mark.runs("trusted")
def test_trust_is_given_to_a_better_teacher_and_taken_back_when_the_policy_has_caught_up(ended):  # noqa: F811
    """The policy's responses are those of the training batch; the numbers follow from the batch that was dumped."""
    run = ended("trusted")
    assert column(run, "trust/trusted") == column(run, "teacher/forward") == [1.0, 1.0, 0.0]
    assert column(run, "trust/teacher_share") == [1.0, None, None]
    share = sum(float(row["rm_scores"].sum()) for row in run.batch(1)["rows"]) / 128
    assert column(run, "trust/policy_share") == [pytest.approx(share), None, None]
    assert column(run, "trust/standard_errors")[0] > 3
    assert re.search(r"step 1: the teacher is trusted. Of its 64 responses to 32 problems 1.00 are correct", run.output)
    assert re.search(r"step 3: the teacher is no longer trusted: GRPO .* 1.00 of the policy's last 128", run.output)
    assert all(row["advantages"].count_nonzero() == 0 for row in run.batch(3)["rows"]), "GRPO of all-correct groups"


@pytest.mark.runs("trusted", "always")
def test_a_step_with_trust_is_the_step_without_the_setting(ended):  # noqa: F811
    """Two steps, bit for bit: responses, the teacher's log-probs, advantages and weights."""
    trusted, always = ended("trusted"), ended("always")
    for step in (1, 2):
        rows, others = trusted.batch(step)["rows"], always.batch(step)["rows"]
        assert len(rows) == len(others) == 128
        for row, other in zip(rows, others, strict=True):
            assert row.keys() == other.keys() and "teacher_log_probs" in row
            for name, values in row.items():
                assert values.equal(other[name]), f"step {step}: {name} differs"
    assert_same_parameters(trusted, always, 2)


@pytest.mark.runs("trusted", "trusted_resumed")
def test_a_resumed_run_decides_alike(ended):  # noqa: F811
    """Resumed after step 1: trusted without another measurement, and taken back in the same step."""
    run, resumed = ended("trusted"), ended("trusted_resumed")
    assert column(resumed, "trust/trusted") == column(run, "trust/trusted")[1:]
    assert column(resumed, "trust/teacher_share") == [None, None]
    for step in (2, 3):
        for row, other in zip(run.batch(step)["rows"], resumed.batch(step)["rows"], strict=True):
            assert all(row[name].equal(other[name]) for name in row)


@pytest.mark.runs("never_trusted", "trusted", "trust_separate_async")
def test_rows_of_a_measurement_stay_out_of_everything_else(ended):  # noqa: F811
    """Of batches, TransferQueue after the step, the metrics of training, verl's dump and ours."""
    for name, size in (("never_trusted", 16), ("trusted", 128), ("trust_separate_async", 16)):
        run = ended(name)
        for step in (1, 2, 3):
            rows = run.batch(step)["rows"]
            assert len(rows) == size and run.batch(step)["stored"] == ["train"]
            assert not any("[Student response]" in tiny.tokenizer().decode(row["prompts"]) for row in rows)
    run = ended("trusted")
    for step, metrics in enumerate(run.metrics, start=1):
        score = math.fsum(float(row["rm_scores"].sum()) for row in run.batch(step)["rows"]) / 128
        assert metrics["critic/score/mean"] == pytest.approx(score)
        lines = (run.directory / "rollouts" / f"{step}.jsonl").read_text().splitlines()
        assert len(lines) == 128 and not any("[Student response]" in line for line in lines)
    for path in trajectories.files(run.directory / "checkpoints" / trajectories.DIRECTORY).values():
        records, _ = trajectories.read(path)
        assert set(Counter(record["group"] for record in records).values()) == {4}


@pytest.mark.runs("trust_colocate_async")
def test_a_measurement_that_fails_ends_the_run_with_the_reason(ended):  # noqa: F811
    """In colocate_async, at the second snapshot. It never counts as trust."""
    run = ended("trust_colocate_async", expected=1)
    assert column(run, "trust/trusted") == [1.0, 1.0]
    assert "the verifier is broken" in run.output, "verl's log of the agent loop"
    assert "64 of the 128 responses that measure the teacher are missing" in run.output
    assert_trained_with_the_method(run, (1, 2))


@pytest.mark.runs("trust_separate_async")
def test_separate_async_measures_the_weights_of_the_snapshot(ended):  # noqa: F811
    """Its batches hold responses of earlier policies; those of a measurement are all of the snapshot's weights."""
    run = ended("trust_separate_async")
    assert column(run, "trust/trusted")[:2] == [1.0, 1.0]
    assert column(run, "trust/teacher_share")[0] == 1.0 and column(run, "trust/policy_share")[0] < 0.6
    assert_trained_with_the_method(run, (1, 2))
