"""Laws of real runs: verl's own command, Ray, vLLM on the CPU and the tiny model, on FSDP2 and Megatron.

Runs are comparable bit for bit: tests/support/run_tools.py seeds every response and orders every batch by content.
Each test names the runs that it reads (tests/support/queue_of_runs.py).
"""

import re
import signal
from collections import Counter

import pytest
import queue_of_runs
import reference
import tiny
import torch
from cast_runs import CAST, CAST_SIX_STEPS, assert_same_batches, assert_same_parameters
from verl_run import run_verl

from verl_cast import trajectories

GRPO = "algorithm.adv_estimator=grpo"
REDUCED_TO_GRPO = (
    CAST,
    "+algorithm.cast.gap_weight=0",
    "+algorithm.cast.flip=none",
    "+algorithm.cast.base_correct=0",
    "+algorithm.cast.base_wrong=0",
    "+algorithm.cast.advantage_clip=null",
)


def resume(run, step):
    checkpoint = run.directory / "checkpoints" / f"global_step_{step}"
    return ("trainer.resume_mode=resume_path", f"+trainer.resume_from_path={checkpoint}")


def context_that_fails_in_step_four(cast):
    """The student's prompt, and an empty one for the last problem of step 4.

    Rows are ordered by content, so only the second of two ranks has that problem.
    """
    prompts = [tiny.tokenizer().decode(row["prompts"]) for row in cast.batch(4)["rows"]]
    problem = re.search(r"What is .*\?", prompts[-1]).group()
    assert not any(problem in prompt for prompt in prompts[:8]), "the first rank's rows"
    template = cast.directory / "empty_for_one.jinja"
    template.write_text("{% if problem != '" + problem + "' %}{{ student_prompt }}{% endif %}")
    return (f"+algorithm.cast.teacher.context={template}",)


# name: (overrides, arguments of run_verl). `after`: an earlier run, and a function of it that gives more overrides.
RUNS = {
    "megatron": ((CAST, "+algorithm.cast.teacher.refresh_interval=2"), {"engine": "megatron"}),
    "grpo": ((GRPO,), {}),
    "grpo_without_plugin": ((GRPO,), {"plugin": False}),
    "reduced": (REDUCED_TO_GRPO, {}),
    "cast_resumed": (
        (*CAST_SIX_STEPS, "+algorithm.cast.one_pass=False"),
        {"after": ("cast", lambda run: resume(run, 3))},
    ),
    "colocate_async": (
        (
            CAST,
            "trainer.v1.trainer_mode=colocate_async",
            "trainer.v1.colocate_async.num_warmup_batches=0",  # every rollout is of the newest policy
            "trainer.total_training_steps=4",
            "trainer.save_freq=2",
            "+algorithm.cast.teacher.refresh_interval=2",
            "+algorithm.cast.dump.interval=2",
            "actor_rollout_ref.actor.fsdp_config.fsdp_size=2",
            "trainer.n_gpus_per_node=2",
            "+ray_kwargs.ray_init.num_gpus=2",
        ),
        {"model": "tiny_moe", "engine": "fsdp", "after": ("cast", context_that_fails_in_step_four)},
    ),
    "separate_async": (
        (
            CAST,
            "trainer.v1.trainer_mode=separate_async",
            "trainer.v1.separate_async.parameter_sync_step=1",
            "actor_rollout_ref.hybrid_engine=False",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=1",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=gloo",
            "trainer.n_gpus_per_node=2",
            "+ray_kwargs.ray_init.num_gpus=3",
            "actor_rollout_ref.model.use_remove_padding=True",
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
            "+algorithm.cast.teacher.weights=current",
        ),
        # verl's log call for hybrid_engine=False passes an argument that logging rejects
        {"env": {"VERL_LOGGING_LEVEL": "WARN"}},
    ),
    "lora": (
        (
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
        ),
        {},
    ),
}


def start(name):
    """The function that the queue calls for a run of RUNS, and the names of the runs that it needs."""
    overrides, arguments = RUNS[name]
    arguments = dict(arguments)
    earlier, more = arguments.pop("after", (None, None))
    model = arguments.pop("model", "tiny")

    def run(directory, runs):
        further = () if earlier is None else more(runs(earlier))
        return run_verl(directory, runs(model), *overrides, *further, timeout=900, **arguments)

    return run, (model,) if earlier is None else (model, earlier)


for name_ in RUNS:
    start_, after_ = start(name_)
    queue_of_runs.add(name_, start_, after=after_)


@pytest.fixture(scope="session")
def ended(runs):
    """ended(name): a run of RUNS, or `cast`. Its exit status must be `expected`."""

    def ended_(name, expected=0):
        run = runs(name)
        assert run.returncode == expected, run.output[-5000:]
        return run

    return ended_


@pytest.fixture(scope="module")
def grpo(ended):
    return ended("grpo")


@pytest.fixture(scope="module")
def cast(ended):
    """Killed with SIGKILL between two saves, right after the update of step 5."""
    return ended("cast", expected=-signal.SIGKILL)


def assert_rollouts_were_the_policys(run, tolerance=1e-6, model="qwen3"):
    """After every sync the rollout engine has the policy's probabilities, never the teacher's.

    The comparison can tell the two apart. Under the first snapshot's weights the same tokens differ a thousand times as
    much.
    """
    assert all(m["training/rollout_probs_diff_max"] < tolerance for m in run.metrics)
    first = tiny.model(model).eval()
    differences = []
    for row in run.batch(3)["rows"]:
        ids = torch.cat([row["prompts"], row["responses"]])[None]
        with torch.no_grad():
            logits = first(ids).logits[0, len(row["prompts"]) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(-1, row["responses"][:, None]).squeeze(-1)
        differences.append((log_probs.exp() - row["old_log_probs"].exp()).abs()[row["response_mask"].bool()].max())
    assert max(differences) > 10 * tolerance


@pytest.mark.runs("grpo", "grpo_without_plugin")
def test_with_the_plugin_installed_grpo_is_untouched(ended, grpo):
    """Trainer class, batches, weights and metric names equal those of a run that never loads the plugin."""
    without = ended("grpo_without_plugin")
    assert "verl_cast 0" not in grpo.output
    for step in (1, 2, 3):
        assert grpo.batch(step)["trainer"] == without.batch(step)["trainer"] == "PPOTrainerSync"
        assert_same_batches(grpo, without, step)
    assert_same_parameters(grpo, without, 3)
    assert [set(m) for m in grpo.metrics] == [set(m) for m in without.metrics]


@pytest.mark.runs("grpo", "reduced")
def test_reduced_cast_is_verls_grpo_bit_for_bit(ended, grpo):
    """With λ = 0, no flip, b = 0 and no clip, three real steps give GRPO's advantages and weights."""
    reduced = ended("reduced")
    for step in (1, 2, 3):
        assert reduced.batch(step)["trainer"] == "CastPPOTrainerSync" and reduced.batch(step)["privileged"] == []
        assert_same_batches(grpo, reduced, step)
    assert_same_parameters(grpo, reduced, 3)
    assert any(m["cast/group/mixed_share"] > 0 for m in reduced.metrics)


@pytest.mark.runs("grpo", "cast")
def test_cast_and_grpo_differ_in_the_advantages_alone(grpo, cast):
    """In the first step of one seed, responses, rewards and old log-probs are identical. Advantages differ."""
    assert_same_batches(grpo, cast, 1, fields=("prompts", "responses", "response_mask", "rm_scores", "old_log_probs"))
    differ = [
        not torch.equal(a["advantages"], b["advantages"])
        for a, b in zip(grpo.batch(1)["rows"], cast.batch(1)["rows"], strict=True)
    ]
    assert any(differ)


def assert_trained_with_the_method(run, steps):
    """The advantages that the updates used equal tests/support/reference.py token by token.

    A dead zone is the one that the run says it used.
    """
    for step in steps:
        rows, deadzone = run.batch(step)["rows"], run.metrics[min(step, len(run.metrics)) - 1]["cast/gap/deadzone"]
        groups = {}
        for row in rows:
            groups.setdefault(tuple(row["prompts"].tolist()), []).append(row)
        assert len(groups) == 4 and {len(group) for group in groups.values()} == {4}
        for group in groups.values():
            bases = reference.base([float(row["rm_scores"].sum()) for row in group])
            for row, base in zip(group, bases, strict=True):
                gap = (row.get("teacher_log_probs", row["old_log_probs"]) - row["old_log_probs"]).tolist()
                expected = torch.tensor([reference.token(base, g, deadzone=deadzone) for g in gap])
                torch.testing.assert_close(row["advantages"], expected * row["response_mask"], rtol=1e-5, atol=1e-5)


@pytest.mark.runs("cast")
def test_what_trained_is_the_method(cast):
    assert_trained_with_the_method(cast, (1, 2, 3, 4, 5))
    for step in (1, 2, 3, 4, 5):
        rows = cast.batch(step)["rows"]
        assert any((row["teacher_log_probs"] != row["old_log_probs"]).any() for row in rows)


@pytest.mark.runs("cast")
def test_metrics_say_what_happened(cast):
    for step, m in enumerate(cast.metrics, start=1):
        shares = [m[f"cast/group/{kind}_share"] for kind in ("mixed", "all_correct", "all_wrong")]
        assert sum(shares) == pytest.approx(1)
        assert m["cast/correct_share"] == pytest.approx(m["critic/score/mean"])
        assert m["cast/teacher/forward"] == 1.0
        assert m["cast/teacher/age"] == (step - 1) % 4  # refresh_interval=4: snapshots before steps 1 and 5
        assert 0 < m["cast/flip/share"] < 1
        assert m["timing_s/cast_teacher"] > 0 and m["timing_s/adv"] >= 0
        measured = step in (1, 3)  # the first step, and noise_floor_interval=3
        assert ("cast/noise/p99" in m) == ("timing_s/cast_noise" in m) == measured
        # Steps are one-pass, except where the noise floor needs the weights before the update.
        assert m["cast/one_pass"] == ("timing_s/cast_after_update" in m) == (not measured)
        assert m["actor/entropy"] > 0 and m["cast/entropy/wrong_mean"] > 0 and m["actor/ppo_kl"] == 0
        if measured:
            assert f"step {step}: the engine's noise floor is" in cast.output
            assert 0 <= m["cast/noise/p99"] < 1e-4 < m["cast/gap/abs_mean"]
        assert m["cast/gap/deadzone"] == cast.metrics[0 if step < 3 else 2]["cast/noise/p99"], "held between"
    assert "actor/pg_clipfrac" in cast.metrics[0]
    assert_rollouts_were_the_policys(cast)


@pytest.mark.runs("cast", "colocate_async")
def test_the_trajectory_dump_holds_what_trained(ended, cast):
    """Both dumps hold whole groups: one rank, killed in step 5; and two ranks, of which one failed in step 4."""
    for run, steps, num_groups in ((cast, [1, 2, 3, 4, 5], 2), (ended("colocate_async", expected=1), [2], 4)):
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
                teacher = row.get("teacher_log_probs", row["old_log_probs"])
                for name, values in {**row, "teacher_log_probs": teacher}.items():
                    if name in ("old_log_probs", "teacher_log_probs", "advantages"):
                        assert record[name] == values.tolist(), name
                assert "What is" in record["messages"] and record["reference"].isdigit()


@pytest.mark.runs("cast", "cast_resumed")
def test_a_killed_run_goes_on_with_the_same_teacher(ended, cast):
    """Resumed after step 3, the run repeats steps 4 and 5 bit for bit, with the snapshot at the same step.

    The resumed run computes old log-probs in a separate pass; step 4 of the killed run was one-pass. Both updates gave
    the same weights, so the log-probs of step 5 are equal.
    """
    resumed = ended("cast_resumed")
    assert cast.metrics[3]["cast/one_pass"] == 1.0
    assert [m["cast/one_pass"] for m in resumed.metrics] == [0.0, 0.0, 0.0]
    for step in (4, 5):
        assert_same_batches(cast, resumed, step)
    assert [m["cast/teacher/age"] for m in resumed.metrics] == [3, 0, 1]
    assert "cast/noise/p99" not in resumed.metrics[0], "the noise floor is the saved one"
    assert resumed.metrics[0]["cast/gap/deadzone"] == cast.metrics[3]["cast/gap/deadzone"]


@pytest.mark.runs("megatron")
def test_megatron_trains_with_the_method(ended):
    """test_engine.py holds the laws of its checkpoints."""
    run = ended("megatron")
    assert_trained_with_the_method(run, (1, 2, 3))
    assert [m["cast/teacher/age"] for m in run.metrics] == [0, 1, 0]
    assert [m["cast/one_pass"] for m in run.metrics] == [0, 1, 1], "the first step measures the noise floor"
    assert_rollouts_were_the_policys(run)


@pytest.mark.runs("colocate_async")
def test_two_ranks_colocate_async_experts_and_a_teacher_that_fails_on_one(ended):
    """Two ranks share one teacher, which reads the student's prompt: right after a snapshot every gap is 0.

    The model is a mixture of experts. In step 4 the second rank has the prompt that cannot be scored. The run ends with
    the reason although the first rank waits in a collective for the second.
    """
    run = ended("colocate_async", expected=1)
    assert "gave an empty prompt" in run.output
    assert "self-teacher ready on 2 rank(s)" in run.output
    assert run.batch(1)["trainer"] == "CastPPOTrainerColocateAsync"
    assert [m["cast/one_pass"] for m in run.metrics] == [0, 1, 1], "the first step measures the noise floor"
    assert [m["cast/gap/zero_share"] == 1.0 for m in run.metrics] == [True, False, True]
    assert run.metrics[0]["cast/flip/share"] == 0.0 and run.metrics[1]["cast/flip/share"] > 0
    assert_trained_with_the_method(run, (1, 2, 3))
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
    assert all(m["cast/teacher/age"] == 0 and m["cast/teacher/forward"] == 1 for m in run.metrics)
    assert [m["cast/one_pass"] for m in run.metrics] == [0, 1, 1], "the first step measures the noise floor"
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
    assert [m["cast/teacher/forward"] for m in run.metrics] == [0.0, 1.0, 1.0]
    assert run.metrics[0]["cast/gap/zero_share"] == 1.0 and run.metrics[0]["cast/flip/share"] == 0.0
    assert all(m["cast/one_pass"] == 0 for m in run.metrics), "two updates a batch"
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
