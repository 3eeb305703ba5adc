"""Laws of trust=measured in whole runs: sync with the training batch's own problems, and all modes with drawn ones.

reward_by_prompt.py makes the teacher better, and lets the policy catch up in step 4.
"""

import math
import re
import signal
from collections import Counter

import pytest
import tiny
from cast_runs import assert_same_batches, assert_same_parameters, column

from verl_cast import trajectories

# The first run on a GPU (examples/run_gsm8k.sh) with rewards that do not know the teacher from the policy: it is never
# trusted. Its first metrics are those of the validation before training.


@pytest.mark.runs("grpo", "never_trusted")
def test_a_run_whose_teacher_is_never_trusted_is_its_grpo_twin_bit_for_bit(ended):
    """Responses, advantages and weights; and every metric that GRPO has, except seconds and memory."""
    grpo, never = ended("grpo"), ended("never_trusted")
    assert column(never, "trust/trusted") == column(never, "teacher/forward") == [0.0, 0.0, 0.0]
    for step in (1, 2, 3):
        assert never.batch(step)["trainer"] == "CastPPOTrainerSync" and never.batch(step)["privileged"] == []
        assert_same_batches(grpo, never, step)
    assert_same_parameters(grpo, never, 3)
    for of_grpo, of_never in zip(grpo.metrics, never.metrics, strict=True):
        for name, value in of_grpo.items():
            if not name.startswith("timing") and "perf/" not in name:
                assert of_never[name] == value, name


@pytest.mark.runs("never_trusted")
def test_every_snapshot_is_measured_with_problems_of_its_own(ended):
    """A batch of four problems is too small: both contexts answer 64 drawn ones."""
    never = ended("never_trusted")
    for name in ("trust/teacher_share", "trust/policy_share", "trust/standard_errors"):
        assert [value is not None for value in column(never, name)] == [True, False, True]
    assert never.output.count("not trusted: GRPO until the next snapshot (at most 2 steps). Of its 64 responses") == 2
    assert all(-3 < value < 3 for value in column(never, "trust/standard_errors") if value is not None)
    assert all(0 < m["timing_s/cast_trust"] for m in never.metrics if "cast/trust/policy_share" in m)


@pytest.mark.runs("trusted")
def test_trust_is_given_to_a_better_teacher_and_taken_back_when_the_policy_has_caught_up(ended):
    """The policy's responses are those of the training batch; the numbers follow from the batch that was dumped."""
    run = ended("trusted", expected=-signal.SIGKILL)
    assert column(run, "trust/trusted")[:4] == column(run, "teacher/forward")[:4] == [1.0, 1.0, 1.0, 0.0]
    shares = [sum(float(row["rm_scores"].sum()) for row in run.batch(step)["rows"]) / 128 for step in (1, 3)]
    for name, (first, third) in (("trust/teacher_share", (1.0, 1.0)), ("trust/policy_share", shares)):
        assert column(run, name)[:4] == [pytest.approx(first), None, pytest.approx(third), None]
    assert column(run, "trust/standard_errors")[0] > 3
    assert re.search(r"step 1: the teacher is trusted. Of its 64 responses to 32 problems 1.00 are correct", run.output)
    assert re.search(r"step 4: the teacher is no longer trusted: GRPO .* 1.00 of the policy's last 128", run.output)
    assert all(row["advantages"].count_nonzero() == 0 for row in run.batch(4)["rows"]), "GRPO of all-correct groups"


@pytest.mark.runs("never_trusted", "trusted", "separate_async")
def test_rows_of_a_measurement_stay_out_of_everything_else(ended):
    """Of batches, TransferQueue after the step, the metrics of training, verl's dump and ours."""
    trusted = ended("trusted", expected=-signal.SIGKILL)
    for run, size in ((ended("never_trusted"), 16), (trusted, 128), (ended("separate_async"), 16)):
        for step in (1, 2, 3):
            rows = run.batch(step)["rows"]
            assert len(rows) == size and run.batch(step)["stored"] == ["train"]
            assert not any("[Student response]" in tiny.tokenizer().decode(row["prompts"]) for row in rows)
    for step, metrics in enumerate(trusted.metrics[:4], start=1):
        score = math.fsum(float(row["rm_scores"].sum()) for row in trusted.batch(step)["rows"]) / 128
        assert metrics["critic/score/mean"] == pytest.approx(score)
        lines = (trusted.directory / "rollouts" / f"{step}.jsonl").read_text().splitlines()
        assert len(lines) == 128 and not any("[Student response]" in line for line in lines)
    for path in trajectories.files(trusted.directory / "checkpoints" / trajectories.DIRECTORY).values():
        records, _ = trajectories.read(path)
        assert set(Counter(record["group"] for record in records).values()) == {4}


@pytest.mark.runs("colocate_async")
def test_a_measurement_that_fails_ends_the_run_with_the_reason(ended):
    """In colocate_async on two ranks, at the second snapshot. It never counts as trust."""
    run = ended("colocate_async", expected=1)
    assert column(run, "trust/trusted") == [1.0, 1.0]
    assert "the verifier is broken" in run.output, "verl's log of the agent loop"
    assert "64 of the 128 responses that measure the teacher are missing" in run.output


@pytest.mark.runs("separate_async")
def test_separate_async_measures_the_weights_of_the_snapshot(ended):
    """Its batches hold responses of earlier policies; those of a measurement are all of the snapshot's weights."""
    run = ended("separate_async")
    assert column(run, "trust/trusted") == [1.0, 1.0, 1.0]
    assert column(run, "trust/teacher_share")[0] == 1.0 and column(run, "trust/policy_share")[0] < 0.6


@pytest.mark.runs("never_trusted")
def test_the_first_run_on_a_gpu_validates_and_dumps(ended):
    run = ended("never_trusted")
    assert len(run.metrics) == 4
    assert all(any(name.startswith("val-core/") for name in run.metrics[i]) for i in (0, 3))
    assert (run.directory / "checkpoints" / "global_step_3").is_dir()
    rows, _ = trajectories.read(trajectories.files(run.directory / "checkpoints" / trajectories.DIRECTORY)[1])
    assert len({row["group"] for row in rows}) == 2


@pytest.mark.runs("never_trusted")
def test_tensorboard_shows_what_verls_file_logger_wrote(ended):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = ended("never_trusted")
    events = EventAccumulator(str(run.directory / "tensorboard_log")).Reload()
    metrics = run.metrics[-1]
    names = [name for name in metrics if name.startswith("cast/")]
    assert "cast/trust/trusted" in names
    assert {name: events.Scalars(name)[-1].value for name in names} == pytest.approx({n: metrics[n] for n in names})
