"""Real runs: verl's own command, Ray, FSDP2 and vLLM on the CPU, the tiny model. Each takes about a minute.

The runs are comparable bit for bit: run_tools.py seeds every response and orders every batch by its content.
"""

import re
import signal

import pytest
import reference
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
# Saved after step 3, in the middle of the life of the snapshot that is taken before step 1; the next is due before step 5.
CAST_SIX_STEPS = (
    CAST,
    "+algorithm.cast.teacher.refresh_interval=4",
    "trainer.total_training_steps=6",
    "trainer.save_freq=3",
)
TWO_RANKS = ("trainer.n_gpus_per_node=2", "+ray_kwargs.ray_init.num_gpus=2")


@pytest.fixture(scope="module")
def tiny_directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny.write(path)
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_directory):
    def start_(name, *overrides, **kwargs):
        run = run_verl(tmp_path_factory.mktemp(name), tiny_directory, *overrides, **kwargs)
        expected = -signal.SIGKILL if "kill_when" in kwargs else 0
        assert run.returncode == expected, run.output[-5000:]
        return run

    return start_


@pytest.fixture(scope="module")
def grpo(start):
    return start("grpo", GRPO)


@pytest.fixture(scope="module")
def cast(start):
    """Killed with SIGKILL between two saves, in the middle of step 5."""
    return start("cast", *CAST_SIX_STEPS, kill_when="dump/step_5.pt")


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


def assert_trained_with_the_method(run, steps):
    """The advantages that the updates got, recomputed token by token from the reference of the tests."""
    for step in steps:
        rows = run.batch(step)["rows"]
        groups = {}
        for row in rows:
            groups.setdefault(tuple(row["prompts"].tolist()), []).append(row)
        assert len(groups) == 4 and {len(group) for group in groups.values()} == {4}
        for group in groups.values():
            bases = reference.base([float(row["rm_scores"].sum()) for row in group])
            for row, base in zip(group, bases, strict=True):
                gap = (row.get("teacher_log_probs", row["old_log_probs"]) - row["old_log_probs"]).tolist()
                expected = torch.tensor([reference.token(base, g) for g in gap])
                torch.testing.assert_close(row["advantages"], expected * row["response_mask"], rtol=1e-5, atol=1e-5)


def test_what_trained_is_the_method(cast):
    assert_trained_with_the_method(cast, (1, 2, 3, 4, 5))
    for step in (1, 2, 3, 4, 5):
        rows = cast.batch(step)["rows"]
        assert any((row["teacher_log_probs"] != row["old_log_probs"]).any() for row in rows)


def test_metrics_say_what_happened(cast):
    for step, m in enumerate(cast.metrics, start=1):
        shares = [m[f"cast/group/{kind}_share"] for kind in ("mixed", "all_correct", "all_wrong")]
        assert sum(shares) == pytest.approx(1)
        assert m["cast/correct_share"] == pytest.approx(m["critic/score/mean"])
        assert m["cast/teacher/forward"] == 1.0
        assert m["cast/teacher/age"] == (step - 1) % 4  # refresh_interval=4: snapshots before steps 1 and 5
        assert 0 < m["cast/flip/share"] < 1
        assert m["timing_s/cast_teacher"] > 0 and m["timing_s/adv"] >= 0
    assert "actor/pg_clipfrac" in cast.metrics[0]
    # The rollout engine follows the policy, not the teacher: its log-probs stay the policy's after every sync.
    assert all(m["training/rollout_probs_diff_max"] < 1e-3 for m in cast.metrics)


def test_a_killed_run_goes_on_with_the_same_teacher(start, cast):
    """Resumed after step 3, the run computes what the killed one had computed: bit-equal, and refreshed in phase."""
    resumed = start(
        "resumed",
        *CAST_SIX_STEPS,
        "trainer.resume_mode=resume_path",
        f"+trainer.resume_from_path={cast.directory / 'checkpoints' / 'global_step_3'}",
    )
    for step in (4, 5):
        assert_same_batches(cast, resumed, step)
    assert [m["cast/teacher/age"] for m in resumed.metrics] == [3, 0, 1]


def test_two_ranks_and_context_same(start):
    """Two ranks, one teacher; and right after a snapshot `same` needs no forward: the gap is 0 on every token."""
    run = start(
        "two_ranks",
        CAST,
        "+algorithm.cast.teacher.context=same",
        "+algorithm.cast.teacher.refresh_interval=2",
        *TWO_RANKS,
    )
    assert "self-teacher ready on 2 rank(s)" in run.output
    assert [m["cast/teacher/forward"] for m in run.metrics] == [0.0, 1.0, 0.0]
    assert [m["cast/gap/zero_share"] == 1.0 for m in run.metrics] == [True, False, True]
    assert run.metrics[0]["cast/flip/share"] == 0.0 and run.metrics[1]["cast/flip/share"] > 0
    assert_trained_with_the_method(run, (1, 2, 3))


def test_lora_with_kl_several_updates_a_batch_validation_and_tool_tokens(start):
    """Modes that share the worker with the teacher's pass, in one run: each leaves it what it was.

    Under LoRA the reference policy is the actor without its adapter; the teacher's pass must have it back.
    """
    run = start(
        "lora",
        CAST,
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.model.lora_alpha=16",
        "actor_rollout_ref.model.target_modules=all-linear",
        "actor_rollout_ref.model.lora.merge=True",
        "actor_rollout_ref.actor.optim.lr=1e-2",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_epochs=2",
        "actor_rollout_ref.rollout.agent.default_agent_loop=two_turns",
        "trainer.test_freq=1",
        "+algorithm.cast.teacher.weights=ema",
        "+algorithm.cast.teacher.ema_decay=0.5",
        "+algorithm.cast.teacher.context=same",
    )
    assert_trained_with_the_method(run, (1, 2, 3))
    assert all(0 in row["response_mask"] for row in run.batch(1)["rows"])
    assert [m["cast/teacher/forward"] for m in run.metrics] == [0.0, 1.0, 1.0]
    assert all("actor/kl_loss" in m and any(key.startswith("val-") for key in m) for m in run.metrics)
    distances = {"policy": [], "base": []}
    for row in run.batch(3)["rows"]:
        counts = row["response_mask"].bool()
        policy, base, teacher = (row[k][counts] for k in ("old_log_probs", "ref_log_prob", "teacher_log_probs"))
        distances["policy"].append((teacher - policy).abs().mean())
        distances["base"].append((teacher - base).abs().mean())
    # An average of the policies after steps 0, 1 and 2 (1/4, 1/4, 1/2) is neither of its two ends.
    assert all(sum(d) > 0 for d in distances.values()), distances


def test_a_failing_teacher_on_one_of_two_ranks_ends_the_run_with_its_reason(grpo, tmp_path, tiny_directory):
    """No hang: the first rank waits in a collective for the second, which has the prompt that cannot be scored."""
    prompts = [tiny.tokenizer().decode(row["prompts"]) for row in grpo.batch(1)["rows"]]
    problem = re.search(r"What is .*\?", prompts[-1]).group()
    assert not any(problem in prompt for prompt in prompts[:8]), "the first rank's rows"
    template = tmp_path / "empty_for_one.jinja"
    template.write_text("{% if problem != '" + problem + "' %}{{ problem }}{% endif %}")
    run = run_verl(
        tmp_path,
        tiny_directory,
        CAST,
        f"+algorithm.cast.teacher.context={template}",
        "trainer.save_freq=-1",
        *TWO_RANKS,
    )
    assert run.returncode > 0, "it ended by itself"
    assert "gave an empty prompt" in run.output
