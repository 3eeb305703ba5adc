"""Laws of the step benchmark: its arithmetic, the order of its arms, and its workloads.

No test here measures anything. tests/benchmarks/bench_steps.py does, in a real run.
"""

import sys

import bench_steps
import pytest
from bench_steps import BASE, POINTS, BenchError, check, read_steps, summarize, table, workload
from bench_trainer import ARMS, GRPO, ONE_PASS, TWO_PASS, arm_of_step, let_grpo_through, memory_since_last_call
from verl_run import command_and_environment

from verl_cast.checks.run import apply_method_defaults, check_run

LENGTH = 64


def metrics_of(number, step, gen, **more):
    """The metrics that verl's file logger writes for one step."""
    arm = arm_of_step(number, ARMS)
    data = {
        "timing_s/step": step,
        "timing_s/gen": gen,
        "timing_s/update_actor": (step - gen) / 2,
        "bench/after_step_s": 0.5,
        "bench/arm": ARMS.index(arm),
        "bench/worker/rss": 1000 + number,
        "response_length/min": LENGTH,
        "response_length/max": LENGTH,
        "actor/lr": 1e-6,
    }
    if arm != GRPO:
        data |= {"cast/one_pass": float(arm == ONE_PASS), "cast/teacher/forward": 1.0, "cast/teacher/host_gib": 0.25}
    return data | more


# G is GRPO, 1 is CAST one-pass, 2 is CAST two-pass. The rounds are G 1 2, 2 1 G, G 1 2; the first is warm-up.
# Without gen, a one-pass step takes as long as a GRPO step, and a two-pass step twice as long.
SECONDS = [(90, 9), (80, 8), (70, 7), (9, 1), (5, 1), (5, 1), (12, 2), (12, 2), (22, 2)]


def steps():
    return read_steps([metrics_of(i, step, gen) for i, (step, gen) in enumerate(SECONDS, start=1)], ARMS)


def test_every_round_has_every_arm_once_and_no_arm_always_comes_first():
    turns = [arm_of_step(step, ARMS) for step in range(1, 13)]
    rounds = [turns[start : start + 3] for start in range(0, 12, 3)]
    assert all(set(turn) == set(ARMS) for turn in rounds)
    assert rounds[0] == rounds[2] == rounds[1][::-1] == rounds[3][::-1]


def test_ratios_are_taken_within_rounds_and_the_warm_up_is_left_out():
    summary = summarize(steps(), warmup=1)
    assert summary["rounds"] == 2
    assert summary["seconds"][GRPO]["step"] == {"median": 8.5, "min": 5, "max": 12}
    assert summary["ratios"][ONE_PASS]["training"] == {"median": 1, "min": 1, "max": 1}
    assert summary["ratios"][TWO_PASS]["training"] == {"median": 2, "min": 2, "max": 2}
    assert summary["ratios"][TWO_PASS]["step"] == {"median": (9 / 5 + 22 / 12) / 2, "min": 9 / 5, "max": 22 / 12}
    assert GRPO not in summary["ratios"]
    assert summary["one_pass"] == {GRPO: None, ONE_PASS: 1.0, TWO_PASS: 0.0}
    assert summary["bytes"][ONE_PASS] == {"worker/rss": 1008, "teacher": 2**28}, "the largest of the counted steps"


def test_the_table_has_every_stage_and_both_ratios():
    text = table(summarize(steps(), warmup=1))
    for stage in ("gen", "update_actor", "whole step", "step without gen", "after the step", "ratio of whole steps"):
        assert f"  {stage} " in text, stage
    ratio = next(line for line in text.splitlines() if "ratio without gen" in line)
    assert ratio.split()[3:5] == ["-", "1.000"] and "2.000 x (2.000 to 2.000)" in ratio


def test_a_round_that_is_not_whole_or_not_there_is_refused():
    with pytest.raises(BenchError, match="not whole"):
        summarize(steps()[:-1], warmup=1)
    with pytest.raises(BenchError, match="no round is left after 3"):
        summarize(steps(), warmup=3)


@pytest.mark.parametrize(
    ("number", "changed", "message"),
    [
        (5, {"response_length/min": 3}, r"step 5 .* 3 to 64 tokens, not all of 64"),
        (6, {"cast/correct_share": 0.5}, r"step 6 \(GRPO\): CAST has left metrics"),
        (5, {"cast/one_pass": 0.0}, r"step 5 \(CAST one-pass\): cast/one_pass is 0.0"),
        (4, {"cast/one_pass": 1.0}, r"step 4 \(CAST two-pass\): cast/one_pass is 1.0"),
        (4, {"cast/teacher/forward": 0.0}, r"step 4 .* the teacher's forward was left out"),
        (4, {"cast/trust/teacher_share": 0.5}, r"step 4 .* the teacher was measured"),
        (4, {"bench/arm": 0}, "step 4 was the turn of grpo, not of two_pass"),
    ],
)
def test_a_step_that_did_something_else_than_its_arm_says_is_refused(number, changed, message):
    check(steps(), LENGTH)
    metrics = [metrics_of(i, *seconds) for i, seconds in enumerate(SECONDS, start=1)]
    metrics[number - 1] |= changed
    with pytest.raises(BenchError, match=message):
        check(read_steps(metrics, ARMS), LENGTH)


def test_a_turn_of_grpo_passes_by_all_that_the_mixin_overrides():
    class Stock:
        def stage(self):
            return ["stock"]

    class Mixin:
        def stage(self):
            return ["mixin", self.added(), *super().stage()]

        def added(self):
            return "added"

    class Trainer(Mixin, Stock):
        grpo = False

    let_grpo_through(Mixin, lambda trainer: trainer.grpo)
    trainer = Trainer()
    assert trainer.stage() == ["mixin", "added", "stock"]
    trainer.grpo = True
    assert trainer.stage() == ["stock"]
    assert trainer.added() == "added"


def test_the_peak_is_of_the_time_since_the_last_call():
    memory_since_last_call()
    block = bytearray(300 * 2**20)
    with_block = memory_since_last_call()
    del block
    memory_since_last_call()  # the peak of this interval still includes the block
    without = memory_since_last_call()
    assert with_block["rss"] - without["rss"] > 250 * 2**20
    if "peak_rss" in without:  # only where the kernel can reset the peak
        assert with_block["peak_rss"] - without["peak_rss"] > 250 * 2**20


# Together these points set every key that any point sets.
@pytest.mark.parametrize("name", ["base", "micro_dynamic+batch_64x8", "lora+context_same+response_long"])
def test_a_point_is_a_run_that_cast_accepts(compose, tmp_path, monkeypatch, name):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    work = workload(name)
    overrides = work.overrides(tmp_path / "data", tmp_path / "model", steps=9)
    command = command_and_environment(tmp_path / "run", tmp_path, *overrides, tools=False)[0][3:]
    config = compose(*command)
    apply_method_defaults(config, command)
    check_run(config)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert actor.policy_loss.loss_mode == "cast"
    assert actor.ppo_mini_batch_size == config.data.train_batch_size == work.prompts, "one update a step"
    assert rollout.ignore_eos and rollout.n == work.responses and config.data.max_response_length == work.length
    assert actor.ppo_micro_batch_size_per_gpu == rollout.log_prob_micro_batch_size_per_gpu == work.micro_batch
    assert actor.use_dynamic_bsz == rollout.log_prob_use_dynamic_bsz == work.dynamic


def test_a_point_changes_the_base_and_joined_points_change_it_together():
    assert all(workload(name) != BASE for name in POINTS if name != "base")
    assert all(work.prompts * work.responses % work.micro_batch == 0 for work in map(workload, POINTS))
    joined = workload("lora+context_same")
    assert (joined.lora_rank, joined.context, joined.length) == (8, "same", BASE.length)
    with pytest.raises(BenchError, match="'lara' is no point; the points are base, "):
        workload("lara")
    with pytest.raises(BenchError, match="response_long sets length a second time"):
        workload("response_short+response_long")


def test_the_list_names_every_point(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_steps.py", "--list"])
    assert bench_steps.main() == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(POINTS)
