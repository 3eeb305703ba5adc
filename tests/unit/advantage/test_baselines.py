"""Laws of the baseline methods.

Their advantages equal an independent reference. Bad settings, and data without references, are refused before the run
starts.
"""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import reference_baselines
import tiny
import torch
from estimator_calls import call_of
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn

from verl_cast import CastConfigError
from verl_cast.advantage.compute import compute_advantage, rule_of
from verl_cast.checks.run import apply_method_defaults, check_run, summary
from verl_cast.checks.spelling import packaged_defaults
from verl_cast.config.baselines import BASELINES, GrpoOpsdConfig, OpsdConfig, RlrtConfig, RlsdConfig
from verl_cast.config.methods import METHODS, method_config
from verl_cast.teacher.context import TeacherContext
from verl_cast.teacher.privileged.context import PrivilegedContext, reference_messages
from verl_cast.teacher.privileged.references import check_references, peers, references

NAMES = [method.NAME for method in BASELINES]
MESSAGES = [{"role": "user", "content": "What is 1 + 1?"}]


def batch(seed: int, dtype=torch.float64, graded=False):
    """Twelve rows in three groups: mixed, all-correct and all-wrong. Masks have holes, and some gaps are zero."""
    rng = np.random.default_rng(seed)
    rewards = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0], dtype=np.float64)
    if graded:
        rewards = rewards * 0.4 + rng.uniform(0, 0.5, 12)
    T = 9
    token_level_rewards = np.zeros((12, T))
    token_level_rewards[:, -1] = rewards
    mask = (rng.random((12, T)) < 0.8).astype(np.float64)
    mask[:, 0] = 1
    old = rng.normal(-1, 0.5, (12, T))
    gap = rng.normal(0, 1, (12, T)) * rng.choice([0, 0.01, 0.3, 3, 30], (12, T))
    index = np.repeat(["a", "b", "c"], 4).astype(object)
    order = rng.permutation(12)
    tensors = (torch.tensor(x[order], dtype=dtype) for x in (token_level_rewards, mask, old, old + gap))
    token_level_rewards, mask, old, teacher = tensors
    return token_level_rewards, mask, index[order], old, teacher


def grpo(rewards, mask, index):
    return compute_grpo_outcome_advantage(rewards, mask, index)[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("graded", [False, True])
def test_every_rule_equals_the_reference(name, graded):
    method, rule = METHODS[name], getattr(reference_baselines, name)
    for seed in range(5):
        rewards, mask, index, old, teacher = batch(seed, graded=graded)
        step = 3 * seed
        kwargs = {"step": step} if name == "rlsd" else {}
        result = compute_advantage(rewards, mask, index, old, teacher, method(), completed_steps=step)
        A = grpo(rewards, torch.ones_like(mask), index)[:, 0]
        for i in range(len(mask)):
            correct = bool(rewards[i].sum() > 0.5)
            for t in range(mask.shape[1]):
                gap = float(teacher[i, t] - old[i, t])
                expected = rule(float(A[i]), gap, correct, **kwargs) if mask[i, t] else 0.0
                assert float(result.advantages[i, t]) == pytest.approx(expected, rel=1e-12, abs=1e-14), (seed, i, t)


@pytest.mark.parametrize("config", [GrpoOpsdConfig(gap_weight=0), RlsdConfig(gap_weight=0), RlrtConfig(gap_weight=0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("graded", [False, True])
def test_without_the_gap_it_is_verls_grpo_bit_for_bit(config, dtype, graded):
    for seed in range(5):
        rewards, mask, index, old, teacher = batch(seed, dtype, graded)
        advantages = compute_advantage(rewards, mask, index, old, teacher, config).advantages
        assert torch.equal(advantages, grpo(rewards, mask, index))


def test_rlsd_is_grpo_bit_for_bit_when_its_weight_has_decayed():
    weights = [rule_of(RlsdConfig(), step).gap_weight for step in (0, 25, 50, 51, 1000)]
    assert weights == [0.5, 0.25, 0.0, 0.0, 0.0]
    assert rule_of(RlsdConfig(gap_weight_decay_steps=0), 1000).gap_weight == 0.5
    rewards, mask, index, old, teacher = batch(0, torch.float32)
    late = compute_advantage(rewards, mask, index, old, teacher, RlsdConfig(), completed_steps=50)
    assert torch.equal(late.advantages, grpo(rewards, mask, index))


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_masked_tokens_count_nowhere(name):
    rewards, mask, index, old, teacher = batch(3)
    config = METHODS[name]()
    alone = compute_advantage(rewards, mask, index, old, teacher, config).advantages
    nan = torch.full((2, mask.shape[1]), float("nan"), dtype=mask.dtype)
    padded = compute_advantage(
        torch.cat([rewards, torch.zeros_like(nan)]),
        torch.cat([mask, torch.zeros_like(nan)]),
        np.append(index, ["a", "pad"]),
        torch.cat([old, nan]),
        torch.cat([teacher, nan]),
        config,
    ).advantages
    assert torch.equal(padded[:-2], alone) and not padded[-2:].any()
    broken = teacher.masked_fill(~mask.bool(), float("nan"))
    assert torch.equal(compute_advantage(rewards, mask, index, old, broken, config).advantages, alone)
    with pytest.raises(ValueError, match="NaN or infinite"):
        compute_advantage(rewards, mask, index, old, teacher.masked_fill(mask.bool(), float("nan")), config)


@pytest.mark.parametrize("name", NAMES)
def test_an_estimator_stops_a_trainer_that_computed_no_teacher_log_probs(name):
    from verl_cast import CastConfig
    from verl_cast.training.estimator import estimator_call

    rewards, mask, index, old, teacher = batch(0)
    estimator = get_adv_estimator_fn(name)
    call = {"token_level_rewards": rewards, "response_mask": mask, "index": index, "config": {}}
    with pytest.raises(RuntimeError, match=f"adv_estimator={name}.*would be GRPO"):
        estimator(**call)
    fields = {"old_log_probs": old, "teacher_log_probs": teacher}
    with estimator_call(call_of(CastConfig(), rewards, fields=fields)):
        with pytest.raises(RuntimeError, match=f"adv_estimator={name}"):
            estimator(**call)  # this call is of another method
    for missing in fields:
        rest = {field: values for field, values in fields.items() if field != missing}
        with estimator_call(call_of(METHODS[name](), rewards, completed_steps=7, fields=rest)):
            with pytest.raises(RuntimeError, match=f"adv_estimator={name}.*would be GRPO"):
                estimator(**call)
    with estimator_call(call_of(METHODS[name](), rewards, completed_steps=7, fields=fields)) as ours:
        advantages, returns = estimator(**call)
    expected = compute_advantage(rewards, mask, index, old, teacher, METHODS[name](), completed_steps=7)
    assert torch.equal(advantages, expected.advantages) and torch.equal(returns, advantages)
    assert ours.result.advantages is advantages


# ----------------------------------------------------------------------------------------------- the teacher's context


PLAIN = "What is 1 + 1?\n\nPlease reason step by step, and put your final answer within \\boxed{}.\n\n"
PRIVILEGED = {
    "reference": PLAIN + "[Reference solution]\n{SECRET}\n\n[Student response]\n",
    "peer": PLAIN + "[Correct rollout]\n{SECRET}\n\n[Student response]\n",
    "reference_chat": "<|im_start|>user\nWhat is 1 + 1?\n\n"
    "For your eyes only, the reference answer to this problem:\n{SECRET}\n\n"
    "Work towards it step by step as if you did not know it, in the form that the problem asks for.<|im_end|>\n"
    "<|im_start|>assistant\n",
}


@pytest.mark.parametrize("context", PRIVILEGED)
def test_a_privileged_context_shows_what_the_student_never_sees(context):
    tokenizer, before = tiny.tokenizer(), copy.deepcopy(MESSAGES)
    text = tokenizer.decode(PrivilegedContext(context, tokenizer, {}).prompt_ids(MESSAGES, "{SECRET}"))
    assert text == PRIVILEGED[context] and before == MESSAGES


def test_without_a_peer_the_teacher_reads_casts_plain_context():
    tokenizer = tiny.tokenizer()
    plain = TeacherContext("plain", None, tokenizer).prompt_ids(MESSAGES, [5])
    assert PrivilegedContext("peer", tokenizer, {}).prompt_ids(MESSAGES, "") == plain


def test_a_prompt_without_text_is_refused():
    for bad in ([{"role": "system", "content": "x"}], [{"role": "user", "content": [{"type": "image"}]}]):
        with pytest.raises(ValueError, match="no user message"):
            reference_messages(bad, "2")


def test_a_peer_is_a_correct_response_of_the_same_group_and_another_one_where_there_is_one():
    uids = ["a", "a", "a", "b", "b", "c", "c"]
    keys = [f"{uid}_{i}_0" for uid, i in zip(uids, (0, 1, 2, 0, 1, 0, 1), strict=True)]
    correct = [True, False, True, False, True, False, False]
    texts = ["a0", "a1", "a2", "b0", "b1", "c0", "c1"]
    shown = peers(uids, keys, correct, texts)
    assert shown == ["a2", "a0", "a0", "b1", "b1", "", ""]
    order = np.random.default_rng(0).permutation(7)
    permuted = peers(*([values[i] for i in order] for values in (uids, keys, correct, texts)))
    assert permuted == [shown[i] for i in order], "the order of the batch must not matter"


def test_references_of_rows():
    rows = {"reward_model": [{"ground_truth": "4"}, {"ground_truth": ["1", "2"]}, {"ground_truth": 7}]}
    assert references(rows, "reward_model.ground_truth", ["x", "y", "z"]) == ["4", "1\n2", "7"]
    for bad in ({"ground_truth": ""}, {"ground_truth": None}, {}, None):
        with pytest.raises(ValueError, match="row y has no reference at reward_model.ground_truth"):
            references({"reward_model": [{"ground_truth": "4"}, bad]}, "reward_model.ground_truth", ["x", "y"])


# -------------------------------------------------------------------------------------------------- config and refusals


@pytest.mark.parametrize(
    "name, values, key, says",
    [
        ("rlsd", {"gap_wieght": 1}, "algorithm.rlsd.gap_wieght", "did you mean algorithm.rlsd.gap_weight?"),
        ("rlsd", {"weight_clip": 1.5}, "algorithm.rlsd.weight_clip", "at most 1"),
        ("rlsd", {"gap_weight_decay_steps": 0.5}, "algorithm.rlsd.gap_weight_decay_steps", "whole number"),
        ("rlsd", {"teacher": {"context": "plain"}}, "algorithm.rlsd.teacher.context", "one of reference"),
        ("opsd", {"gap_weight": 1}, "algorithm.opsd.gap_weight", "unknown key"),
        ("grpo_opsd", {"teacher": {"reference_key": ""}}, "algorithm.grpo_opsd.teacher.reference_key", "column"),
        ("rlrt", {"dump": {}}, "algorithm.rlrt.dump", "unknown key"),
    ],
)
def test_bad_settings_are_named(name, values, key, says):
    with pytest.raises(CastConfigError) as caught:
        METHODS[name].from_dict(values)
    assert key in str(caught.value) and says in str(caught.value)


def run(compose, name, *overrides):
    return compose(f"algorithm.adv_estimator={name}", "actor_rollout_ref.rollout.n=8", *overrides)


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_runs_under_its_own_name_and_changes_nothing_else_of_the_config(compose, name):
    config = run(compose, name)
    before = copy.deepcopy(config)
    assert apply_method_defaults(config, []) == []
    check_run(config)
    assert config == before
    line = summary(config)
    assert f"{METHODS[name].TITLE} (a baseline, not CAST) is active" in line and "CAST is active" not in line
    assert "PRIVILEGED" in line
    with pytest.raises(CastConfigError, match="loss_mode"):
        check_run(run(compose, name, "actor_rollout_ref.actor.policy_loss.loss_mode=cast"))
    if name == "opsd":  # OPSD does not compare responses
        check_run(run(compose, name, "actor_rollout_ref.rollout.n=1"))
    else:
        with pytest.raises(CastConfigError, match="rollout.n=1.*compares the responses"):
            check_run(run(compose, name, "actor_rollout_ref.rollout.n=1"))


@pytest.mark.parametrize("name, other", [("cast", "rlsd"), ("rloo", "cast"), ("rlrt", "opsd")])
def test_what_another_method_is_asked_for_is_refused(compose, name, other):
    """A run may not change a setting of a method that it does not train. A whole group of defaults is allowed."""
    group = f"+algorithm.{other}={packaged_defaults(METHODS[other])}".replace("None", "null").replace("'", "")
    check_run(run(compose, name, group))
    for key, value in (("correct_threshold", 0.5), ("teacher.weights", "ema")):
        key = f"algorithm.{other}.{key}"
        with pytest.raises(CastConfigError, match=f"^{key}={value!r}: set algorithm.adv_estimator={other},"):
            check_run(run(compose, name, f"+{key}={value}"))
    with pytest.raises(CastConfigError, match=f"^algorithm.{other}.teacher.weights='ema'"):
        check_run(run(compose, name, group, f"algorithm.{other}.teacher.weights=ema"))


def write(path, **columns):
    pd.DataFrame(columns).to_parquet(path)
    return f"data.train_files={path}"


def test_data_without_references_are_refused_before_anything_is_spent(compose, tmp_path):
    prompt = [MESSAGES, MESSAGES]
    good = write(tmp_path / "good.parquet", prompt=prompt, reward_model=[{"ground_truth": "2"}] * 2)
    none = write(tmp_path / "none.parquet", prompt=prompt)
    key = write(tmp_path / "key.parquet", prompt=prompt, reward_model=[{"style": "rule"}] * 2)
    empty = [{"ground_truth": "2"}, {"ground_truth": " "}]
    for data, says in (
        (none, r"no column 'reward_model' \(it has prompt\)"),
        (key, r"no key 'ground_truth' in 'reward_model' \(it has style\)"),
        (write(tmp_path / "rows.parquet", prompt=prompt, reward_model=empty), "1 of 2 rows"),
        (f"data.train_files=[{tmp_path / 'good.parquet'},{tmp_path / 'none.parquet'}]", "none.parquet"),
    ):
        with pytest.raises(CastConfigError, match=f"algorithm.rlsd.teacher.reference_key.*{says}"):
            check_run(run(compose, "rlsd", data))
    check_run(run(compose, "rlrt", none))  # its teacher reads another response of the group
    for name in ("opsd", "grpo_opsd", "rlsd"):
        check_run(run(compose, name, good))
    solution = write(tmp_path / "solution.parquet", prompt=prompt, extra_info=[{"solution": "1 + 1 = 2"}] * 2)
    check_run(run(compose, "rlsd", solution, "+algorithm.rlsd.teacher.reference_key=extra_info.solution"))
    config = run(compose, "rlrt", solution, "+algorithm.rlrt.teacher.context=reference")
    with pytest.raises(CastConfigError, match="reference_key"):
        check_references(config, method_config(config))


def test_defaults_are_those_of_the_papers():
    """These are the defaults that section 10 of the method gives."""
    assert (RlsdConfig().gap_weight, RlsdConfig().gap_weight_decay_steps, RlsdConfig().weight_clip) == (0.5, 50, 0.2)
    assert (RlsdConfig().teacher.weights, RlsdConfig().teacher.refresh_interval) == ("snapshot", 10)
    assert (RlrtConfig().gap_weight, RlrtConfig().weight_clip) == (0.5, 1.0)
    assert (RlrtConfig().teacher.weights, RlrtConfig().teacher.context) == ("current", "peer")
    assert OpsdConfig().teacher.weights == "initial"
    assert all(dataclasses.is_dataclass(method) and method().teacher.PRIVILEGED for method in BASELINES)
