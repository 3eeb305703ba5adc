"""Laws of whole runs on FSDP, FSDP2 and Megatron, in all trainer modes (tests/support/cast_runs.py starts them).

Each test names the runs that it reads (tests/support/queue_of_runs.py). test_trust_run.py has the laws of trust.
"""

import math
import signal
from collections import Counter

import pytest
import reference
import tiny
import torch
from cast_runs import assert_same_batches, assert_same_parameters, column

from verl_cast import trajectories


@pytest.fixture
def trusted(ended):
    """Killed with SIGKILL between two saves, right after the update of step 5."""
    return ended("trusted", expected=-signal.SIGKILL)


@pytest.mark.runs("grpo", "grpo_without_plugin")
def test_with_the_plugin_installed_grpo_is_untouched(ended):
    """Trainer class, batches, weights and metric names equal those of a run that never loads the plugin."""
    grpo, without = ended("grpo"), ended("grpo_without_plugin")
    assert "verl_cast 0" not in grpo.output
    for step in (1, 2, 3):
        assert grpo.batch(step)["trainer"] == without.batch(step)["trainer"] == "PPOTrainerSync"
        assert_same_batches(grpo, without, step)
    assert_same_parameters(grpo, without, 3)
    assert [set(m) for m in grpo.metrics] == [set(m) for m in without.metrics]


def assert_rollouts_were_the_policys(run, tolerance=1e-6, model="qwen3"):
    """After every sync the rollout engine has the policy's probabilities, never the teacher's.

    The comparison can tell the two apart: under the first snapshot's weights the tokens of the last step differ far
    more.
    """
    assert all(m["training/rollout_probs_diff_max"] < tolerance for m in run.metrics)
    first = tiny.model(model).eval()
    differences = []
    for row in run.batch(len(run.metrics))["rows"]:
        ids = torch.cat([row["prompts"], row["responses"]])[None]
        with torch.no_grad():
            logits = first(ids).logits[0, len(row["prompts"]) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(-1, row["responses"][:, None]).squeeze(-1)
        differences.append((log_probs.exp() - row["old_log_probs"].exp()).abs()[row["response_mask"].bool()].max())
    assert max(differences) > 10 * tolerance


def assert_trained_with_the_method(run, steps, problems=4):
    """The advantages that the updates used equal tests/support/reference.py token by token.

    A dead zone is the one that the run says it used.
    """
    for step in steps:
        rows, deadzone = run.batch(step)["rows"], run.metrics[min(step, len(run.metrics)) - 1]["cast/gap/deadzone"]
        groups = {}
        for row in rows:
            groups.setdefault(tuple(row["prompts"].tolist()), []).append(row)
        assert len(groups) == problems and {len(group) for group in groups.values()} == {4}
        for group in groups.values():
            bases = reference.base([float(row["rm_scores"].sum()) for row in group])
            for row, base in zip(group, bases, strict=True):
                gap = (row.get("teacher_log_probs", row["old_log_probs"]) - row["old_log_probs"]).tolist()
                expected = torch.tensor([reference.token(base, g, deadzone=deadzone) for g in gap])
                torch.testing.assert_close(row["advantages"], expected * row["response_mask"], rtol=1e-5, atol=1e-5)


@pytest.mark.runs("trusted")
def test_what_trained_is_the_method(trusted):
    """In the steps whose teacher was trusted."""
    assert_trained_with_the_method(trusted, (1, 2, 3), problems=32)
    for step in (1, 2, 3):
        rows = trusted.batch(step)["rows"]
        assert any((row["teacher_log_probs"] != row["old_log_probs"]).any() for row in rows)


@pytest.mark.runs("trusted")
def test_metrics_say_what_happened(trusted):
    for step, m in enumerate(trusted.metrics[:3], start=1):
        shares = [m[f"cast/group/{kind}_share"] for kind in ("mixed", "all_correct", "all_wrong")]
        assert sum(shares) == pytest.approx(1)
        assert m["cast/correct_share"] == pytest.approx(m["critic/score/mean"])
        assert m["cast/teacher/forward"] == 1.0
        assert m["cast/teacher/age"] == (step - 1) % 2  # refresh_interval=2: snapshots before steps 1 and 3
        assert 0 < m["cast/flip/share"] < 1
        assert m["timing_s/cast_teacher"] > 0 and m["timing_s/adv"] >= 0
        measured = step in (1, 3)  # the first step, and noise_floor_interval=3
        assert ("cast/noise/p99" in m) == ("timing_s/cast_noise" in m) == measured
        # Steps are one-pass, except where the noise floor needs the weights before the update.
        assert m["cast/one_pass"] == ("timing_s/cast_after_update" in m) == (not measured)
        assert m["actor/entropy"] > 0 and m["cast/entropy/wrong_mean"] > 0 and m["actor/ppo_kl"] == 0
        if measured:
            assert f"step {step}: the engine's noise floor is" in trusted.output
            assert 0 <= m["cast/noise/p99"] < 1e-4 < m["cast/gap/abs_mean"]
        assert m["cast/gap/deadzone"] == trusted.metrics[0 if step < 3 else 2]["cast/noise/p99"], "held between"
    assert "actor/pg_clipfrac" in trusted.metrics[0]
    assert_rollouts_were_the_policys(trusted)


@pytest.mark.runs("trusted", "colocate_async")
def test_the_trajectory_dump_holds_what_trained(ended, trusted):
    """Both dumps hold whole groups: one rank, killed in step 5; and two ranks, which ended in step 3."""
    for run, steps, num_groups in ((trusted, [1, 2, 3, 4, 5], 2), (ended("colocate_async", expected=1), [2], 4)):
        files = trajectories.files(run.directory / "checkpoints" / trajectories.DIRECTORY)
        assert list(files) == steps
        for step, path in files.items():
            trained = {
                str([row[name].tolist() for name in ("prompts", "responses")]): row for row in run.batch(step)["rows"]
            }
            records, _ = trajectories.read(path)
            assert Counter(Counter(record["group"] for record in records).values()) == {4: num_groups}
            for record in records:
                row = trained[str([record["prompt_ids"], record["response_ids"]])]
                assert record["reward"] == float(row["rm_scores"].sum())
                for name in ("old_log_probs", "advantages"):
                    assert record[name] == row[name].tolist(), name
                if step <= 3:
                    assert record["teacher_log_probs"] == row["teacher_log_probs"].tolist()
                else:  # no longer trusted
                    assert all(map(math.isnan, record["teacher_log_probs"]))
                assert "What is" in record["messages"] and record["reference"].isdigit()


@pytest.mark.runs("trusted", "trusted_resumed")
def test_a_killed_run_goes_on_with_the_same_teacher(ended, trusted):
    """Resumed after step 1, the run repeats the next steps bit for bit: responses, teacher, advantages, decisions.

    The resumed run computes old log-probs in a separate pass; step 2 of the killed run was one-pass. Both updates gave
    the same weights, so the log-probs of step 3 are equal.
    """
    resumed = ended("trusted_resumed")
    assert column(trusted, "one_pass")[1] == 1.0 and column(resumed, "one_pass") == [0.0, 0.0, 0.0]
    for step in (2, 3, 4):
        assert_same_batches(trusted, resumed, step, size=128)
    assert "teacher_log_probs" in resumed.batch(2)["rows"][0]
    assert column(resumed, "teacher/age")[:2] == [1, 0]
    assert "cast/noise/p99" not in resumed.metrics[0], "the noise floor is the saved one"
    assert resumed.metrics[0]["cast/gap/deadzone"] == trusted.metrics[1]["cast/gap/deadzone"]
    for name in ("trust/trusted", "trust/teacher_share"):
        assert column(resumed, name) == column(trusted, name)[1:4]


@pytest.mark.runs("megatron")
def test_megatron_trains_with_the_method(ended):
    """test_engine.py holds the laws of its checkpoints."""
    run = ended("megatron")
    assert_trained_with_the_method(run, (1, 2, 3))
    assert column(run, "teacher/age") == [0, 1, 0]
    assert column(run, "one_pass") == [0, 1, 1], "the first step measures the noise floor"
    assert_rollouts_were_the_policys(run)


@pytest.mark.runs("colocate_async")
def test_two_ranks_of_experts_in_colocate_async(ended):
    """Two ranks share one teacher. The model is a mixture of experts. test_trust_run.py has the end of the run."""
    run = ended("colocate_async", expected=1)
    assert "self-teacher ready on 2 rank(s)" in run.output
    assert run.batch(1)["trainer"] == "CastPPOTrainerColocateAsync"
    assert column(run, "one_pass") == [0, 1], "the first step measures the noise floor"
    assert_trained_with_the_method(run, (1, 2))
    assert_rollouts_were_the_policys(run, model="moe")
    saved = run.directory / "checkpoints" / "global_step_2" / "actor"
    names = [path.name for path in saved.glob("cast_self_teacher_*")]
    assert names == ["cast_self_teacher_renewed.pt"], "a run resumed here renews its snapshot"


@pytest.mark.runs("separate_async")
def test_separate_async_with_sequence_parallelism(ended):
    """A separate vLLM generates the rollouts with a policy that is one version old.

    The training engine splits every sequence over two ranks.
    """
    run = ended("separate_async")
    assert run.batch(1)["trainer"] == "CastPPOTrainerSeparateAsync"
    assert column(run, "teacher/age") == [0, 1, 2]
    assert column(run, "one_pass") == [0, 1, 1], "the first step measures the noise floor"
    assert_trained_with_the_method(run, (1, 2, 3))


@pytest.mark.runs("lora")
def test_lora_with_kl_several_updates_a_batch_validation_and_tool_tokens(ended):
    """One run combines the modes that share the worker with the teacher's pass. Each leaves the worker unchanged.

    Under LoRA the reference policy is the actor without its adapter. The teacher's pass needs the adapter back.
    """
    run = ended("lora")
    assert_trained_with_the_method(run, (1, 2, 3))
    assert all(0 in row["response_mask"] for row in run.batch(1)["rows"]), "the tool's tokens"
    # Right after the first copy was taken, the context `same` needs no forward.
    assert column(run, "teacher/forward") == [0.0, 1.0, 1.0]
    assert run.metrics[0]["cast/gap/zero_share"] == 1.0 and run.metrics[0]["cast/flip/share"] == 0.0
    assert column(run, "one_pass") == [0, 0, 0], "two updates a batch"
    assert all("actor/kl_loss" in m and any(key.startswith("val-") for key in m) for m in run.metrics)
    assert_rollouts_were_the_policys(run, tolerance=2e-5)  # merged weights are sent in bfloat16
    # The teacher of step 2 is the mean of the base model (the policy of step 1) and the policy of step 2.
    # The update is small, so the teacher's log-probs lie about half way between theirs.
    data = {name: [] for name in ("old_log_probs", "ref_log_prob", "teacher_log_probs")}
    for row in run.batch(2)["rows"]:
        for name, values in data.items():
            values.append(row[name][row["response_mask"].bool()])
    policy, base, teacher = (torch.cat(values) for values in data.values())
    assert (policy - base).abs().mean() > 1e-3, "the policy has moved"
    way = ((teacher - base) * (policy - base)).sum() / (policy - base).square().sum()
    assert 0.05 < way < 0.95
