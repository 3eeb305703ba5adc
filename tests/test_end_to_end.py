"""Real runs: verl's own command, Ray, FSDP2 and vLLM on the CPU, the tiny model. Each takes about a minute.

The runs are comparable bit for bit: run_tools.py seeds every response and orders every batch by its content.
"""

import pytest
import tiny
import torch
from torch.distributed.tensor import DTensor
from verl_run import run_verl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CAST = "algorithm.adv_estimator=cast"
GRPO = "algorithm.adv_estimator=grpo"
REDUCED_TO_GRPO = (
    CAST,
    "+algorithm.cast.gap_weight=0",
    "+algorithm.cast.flip=none",
    "+algorithm.cast.base_correct=0",
    "+algorithm.cast.base_wrong=0",
    "+algorithm.cast.advantage_clip=null",
)
CAST_FOUR_STEPS = (
    CAST,
    "+algorithm.cast.teacher.refresh_interval=3",
    "trainer.total_training_steps=4",
    "trainer.save_freq=2",
)


@pytest.fixture(scope="module")
def tiny_directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny.write(path)
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_directory):
    def start_(name, *overrides, **kwargs):
        run = run_verl(tmp_path_factory.mktemp(name), tiny_directory, *overrides, **kwargs)
        assert run.returncode == 0, run.output[-5000:]
        return run

    return start_


@pytest.fixture(scope="module")
def grpo(start):
    return start("grpo", GRPO)


@pytest.fixture(scope="module")
def cast(start):
    return start("cast", *CAST_FOUR_STEPS)


def assert_same_batches(run, other, step, other_step=None, fields=None):
    rows, other_rows = run.batch(step)["rows"], other.batch(other_step or step)["rows"]
    assert len(rows) == len(other_rows) == 16
    for row, other_row in zip(rows, other_rows, strict=True):
        for name in fields or row:
            assert torch.equal(row[name], other_row[name]), f"step {step}: {name} differs"


def assert_same_parameters(run, other, step):
    parameters, others = run.parameters(step), other.parameters(step)
    assert parameters.keys() == others.keys()
    for name, tensor in parameters.items():
        tensors = [t.to_local() if isinstance(t, DTensor) else t for t in (tensor, others[name])]
        assert torch.equal(*tensors), f"{name} differs after step {step}"


def test_with_the_plugin_installed_grpo_is_untouched(start, grpo):
    """The same class, the same batches and the same weights as in a run that never loads the plugin."""
    without = start("grpo_without_plugin", GRPO, plugin=False)
    assert "verl_cast 0" not in grpo.output
    for step in (1, 2, 3):
        assert grpo.batch(step)["trainer"] == without.batch(step)["trainer"] == "PPOTrainerSync"
        assert_same_batches(grpo, without, step)
    assert_same_parameters(grpo, without, 3)
    assert [set(m) for m in grpo.metrics] == [set(m) for m in without.metrics]


def test_reduced_cast_is_verls_grpo_bit_for_bit(start, grpo):
    """λ = 0, no flip, b = 0, no clip: three real steps through verl's own path give GRPO's advantages and weights."""
    reduced = start("reduced", *REDUCED_TO_GRPO)
    for step in (1, 2, 3):
        assert reduced.batch(step)["trainer"] == "CastPPOTrainerSync"
        assert_same_batches(grpo, reduced, step)
    assert_same_parameters(grpo, reduced, 3)
    assert any(m["cast/group/mixed_share"] > 0 for m in reduced.metrics)


def test_cast_and_grpo_differ_in_the_advantages_alone(grpo, cast):
    """One seed, the first step: identical responses, rewards and old log-probs; other advantages."""
    assert_same_batches(grpo, cast, 1, fields=("prompts", "responses", "response_mask", "rm_scores", "old_log_probs"))
    differ = [
        not torch.equal(a["advantages"], b["advantages"])
        for a, b in zip(grpo.batch(1)["rows"], cast.batch(1)["rows"], strict=True)
    ]
    assert any(differ)


def test_what_trained_is_the_method(cast):
    """The advantages that the update of every step got, recomputed token by token from the reference of the tests."""
    import reference

    for step in (1, 2, 3, 4):
        rows = cast.batch(step)["rows"]
        groups = {}
        for row in rows:
            groups.setdefault(tuple(row["prompts"].tolist()), []).append(row)
        assert len(groups) == 4 and {len(group) for group in groups.values()} == {4}
        for group in groups.values():
            bases = reference.base([float(row["rm_scores"].sum()) for row in group])
            for row, base in zip(group, bases, strict=True):
                gap = (row["teacher_log_probs"] - row["old_log_probs"]).tolist()
                expected = torch.tensor([reference.token(base, g) for g in gap])
                torch.testing.assert_close(row["advantages"], expected * row["response_mask"], rtol=1e-5, atol=1e-5)
        assert any((row["teacher_log_probs"] != row["old_log_probs"]).any() for row in rows)


def test_metrics_say_what_happened(cast):
    for step, m in enumerate(cast.metrics, start=1):
        shares = [m[f"cast/group/{kind}_share"] for kind in ("mixed", "all_correct", "all_wrong")]
        assert sum(shares) == pytest.approx(1)
        assert m["cast/correct_share"] == pytest.approx(m["critic/score/mean"])
        assert m["cast/teacher/forward"] == 1.0
        assert m["cast/teacher/age"] == (step - 1) % 3  # refresh_interval=3: snapshots before steps 1 and 4
        assert 0 < m["cast/flip/share"] < 1
        assert m["timing_s/cast_teacher"] > 0 and m["timing_s/adv"] >= 0
    assert "actor/pg_clipfrac" in cast.metrics[0]
    # The rollout engine follows the policy, not the teacher: its log-probs stay the policy's after every sync.
    assert all(m["training/rollout_probs_diff_max"] < 1e-3 for m in cast.metrics)


def test_a_resumed_run_goes_on_with_the_same_teacher(start, cast, tiny_directory):
    """Resumed after step 2, in the middle of a snapshot's life: bit-equal teacher log-probs, advantages and weights."""
    resumed = start(
        "resumed",
        *CAST_FOUR_STEPS,
        "trainer.resume_mode=resume_path",
        f"+trainer.resume_from_path={cast.directory / 'checkpoints' / 'global_step_2'}",
    )
    for step in (3, 4):
        assert_same_batches(cast, resumed, step)
    assert_same_parameters(cast, resumed, 4)


def test_context_same_needs_no_forward_right_after_a_snapshot(start):
    """And with `same`, the gap of that step is 0 on every token: the advantage is B, clipped."""
    run = start("same", CAST, "+algorithm.cast.teacher.context=same", "+algorithm.cast.teacher.refresh_interval=2")
    assert [m["cast/teacher/forward"] for m in run.metrics] == [0.0, 1.0, 0.0]
    assert [m["cast/gap/zero_share"] == 1.0 for m in run.metrics] == [True, False, True]
    assert run.metrics[0]["cast/flip/share"] == 0.0 and run.metrics[1]["cast/flip/share"] > 0


def test_a_failing_teacher_ends_the_run_with_its_reason(tmp_path, tiny_directory):
    template = tmp_path / "sometimes_empty.jinja"
    template.write_text("{% if '1' in problem %}{{ problem }}{% endif %}")
    run = run_verl(
        tmp_path, tiny_directory, CAST, f"+algorithm.cast.teacher.context={template}", "trainer.save_freq=-1"
    )
    assert run.returncode != 0
    assert "gave an empty prompt" in run.output
