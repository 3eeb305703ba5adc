"""Laws of the baseline methods: their advantages equal an independent reference, and their runs keep to themselves."""

import copy

import numpy as np
import pytest
import reference_baselines
import torch
from estimator_calls import call_of
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn

from verl_cast import CastConfigError
from verl_cast.advantage.compute import compute_advantage, rule_of
from verl_cast.checks.run import apply_method_defaults, check_run, summary
from verl_cast.checks.spelling import packaged_defaults
from verl_cast.config.baselines import BASELINES, GrpoOpsdConfig, OpsdConfig, RlrtConfig, RlsdConfig
from verl_cast.config.methods import METHODS

NAMES = [method.NAME for method in BASELINES]
T = 9


def batch(seed: int, dtype=torch.float64, graded=False):
    """Twelve rows in three groups: mixed, all-correct and all-wrong. Masks have holes, and some gaps are zero.

    Two more rows count nowhere. NaN stands under every zero of the mask.
    """
    rng = np.random.default_rng(seed)
    rewards = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0], dtype=np.float64)
    if graded:
        rewards = rewards * 0.4 + rng.uniform(0, 0.5, 14)
    token_level_rewards = np.zeros((14, T))
    token_level_rewards[:, -1] = rewards
    mask = (rng.random((14, T)) < 0.8).astype(np.float64)
    mask[:, 0] = 1
    mask[12:] = 0
    old = rng.normal(-1, 0.5, (14, T))
    gap = rng.normal(0, 1, (14, T)) * rng.choice([0, 0.01, 0.3, 3, 30], (14, T))
    old[mask == 0] = np.nan
    index = np.array([*"aaaabbbbcccc", "a", "pad"], dtype=object)
    order = rng.permutation(14)
    tensors = (torch.tensor(x[order], dtype=dtype) for x in (token_level_rewards, mask, old, old + gap))
    token_level_rewards, mask, old, teacher = tensors
    return token_level_rewards, mask, index[order], old, teacher


def grpo(rewards, mask, index):
    """verl's, of the rows that count; 0 for the others."""
    counts = mask.bool().any(dim=-1)
    advantages = torch.zeros_like(rewards)
    advantages[counts] = compute_grpo_outcome_advantage(rewards[counts], mask[counts], index[counts.numpy()])[0]
    return advantages


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("graded", [False, True])
def test_every_rule_equals_the_reference(name, graded):
    method, rule = METHODS[name], getattr(reference_baselines, name)
    for seed in range(5):
        rewards, mask, index, old, teacher = batch(seed, graded=graded)
        step = 3 * seed
        kwargs = {"step": step} if name == "rlsd" else {}
        result = compute_advantage(rewards, mask, index, old, teacher, method(), completed_steps=step)
        A = grpo(rewards, mask, index).sum(dim=-1) / mask.sum(dim=-1)
        assert not result.advantages[mask == 0].any(), "neither NaN nor a number"
        for i, t in mask.nonzero().tolist():
            correct, gap = bool(rewards[i].sum() > 0.5), float(teacher[i, t] - old[i, t])
            expected = rule(float(A[i]), gap, correct, **kwargs)
            assert float(result.advantages[i, t]) == pytest.approx(expected, rel=1e-12, abs=1e-14), (seed, i, t)


@pytest.mark.parametrize(
    "config, step",
    [(method(gap_weight=0), 0) for method in (GrpoOpsdConfig, RlsdConfig, RlrtConfig)] + [(RlsdConfig(), 50)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_the_gap_it_is_verls_grpo_bit_for_bit(config, step, dtype):
    for seed in range(6):
        rewards, mask, index, old, teacher = batch(seed, dtype, graded=seed % 2 == 0)
        result = compute_advantage(rewards, mask, index, old, teacher, config, completed_steps=step)
        assert torch.equal(result.advantages, grpo(rewards, mask, index))


def test_the_weight_of_rlsd_decays():
    weights = [rule_of(RlsdConfig(), step).gap_weight for step in (0, 25, 50, 51, 1000)]
    assert weights == [0.5, 0.25, 0.0, 0.0, 0.0]
    assert rule_of(RlsdConfig(gap_weight_decay_steps=0), 1000).gap_weight == 0.5


@pytest.mark.parametrize("name", METHODS)
def test_an_estimator_stops_a_trainer_that_computed_no_teacher_log_probs(name):
    from verl_cast.training.estimator import estimator_call

    rewards, mask, index, old, teacher = batch(0)
    estimator, method = get_adv_estimator_fn(name), METHODS[name]
    call = {"token_level_rewards": rewards, "response_mask": mask, "index": index, "config": {}}
    with pytest.raises(RuntimeError, match=f"adv_estimator={name},.*no teacher log-probs.*would be GRPO"):
        estimator(**call)
    fields = {"old_log_probs": old, "teacher_log_probs": teacher}
    other = next(other for other in METHODS.values() if other is not method)
    with estimator_call(call_of(other(), rewards, fields=fields)):
        with pytest.raises(RuntimeError, match=f"adv_estimator={name}"):
            estimator(**call)  # this call is of another method
    for missing in fields:
        rest = {field: values for field, values in fields.items() if field != missing}
        with estimator_call(call_of(method(), rewards, completed_steps=7, fields=rest)):
            with pytest.raises(RuntimeError, match=f"adv_estimator={name}.*would be GRPO"):
                estimator(**call)
    with estimator_call(call_of(method(), rewards, completed_steps=7, fields=fields)) as ours:
        advantages, returns = estimator(**call)
    expected = compute_advantage(rewards, mask, index, old, teacher, method(), completed_steps=7)
    assert torch.equal(advantages, expected.advantages) and torch.equal(returns, advantages)
    assert ours.result.advantages is advantages


def run(compose, name, *overrides):
    return compose(f"algorithm.adv_estimator={name}", "actor_rollout_ref.rollout.n=8", *overrides)


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_runs_under_its_own_name_and_changes_nothing_else_of_the_config(compose, tmp_path, name):
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
    import pandas

    pandas.DataFrame({"prompt": [[{"role": "user", "content": "?"}]]}).to_parquet(tmp_path / "train.parquet")
    config = run(compose, name, f"data.train_files={tmp_path}/train.parquet")
    if name == "rlrt":  # its teacher reads another response
        return check_run(config)
    with pytest.raises(CastConfigError, match="reference_key.*no column 'reward_model'"):
        check_run(config)


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


def test_defaults_are_those_of_the_papers():
    """These are the defaults that section 10 of the method gives."""
    assert (RlsdConfig().gap_weight, RlsdConfig().gap_weight_decay_steps, RlsdConfig().weight_clip) == (0.5, 50, 0.2)
    assert (RlsdConfig().teacher.weights, RlsdConfig().teacher.refresh_interval) == ("snapshot", 10)
    assert (RlrtConfig().gap_weight, RlrtConfig().weight_clip) == (0.5, 1.0)
    assert (RlrtConfig().teacher.weights, RlrtConfig().teacher.context) == ("current", "peer")
    assert OpsdConfig().teacher.weights == "initial"
    assert all(method().teacher.PRIVILEGED for method in BASELINES)
