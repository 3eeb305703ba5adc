"""A step takes one pass only where one pass is exact. One pass trains as two do. Only rows that need it are scored."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from estimator_calls import call_of
from tensordict import NonTensorStack, TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from verl_cast import CastConfig, wire
from verl_cast.advantage.base import ALL_WRONG, MIXED, BaseAdvantage
from verl_cast.advantage.compute import rule_of, token_advantage, trajectory_advantage
from verl_cast.config.methods import METHODS, method_config
from verl_cast.training.estimator import ESTIMATORS, estimator_call
from verl_cast.training.one_pass_loss import ENTROPY, ROW, OnePassLossOnLogits
from verl_cast.training.passes import own_stage, training_only_settings, why_two_passes
from verl_cast.training.step_plan import plan_step
from verl_cast.training.trainer import SelfTeacherTrainerMixin
from verl_cast.wire import final_rows

ACTOR, CORRECTION = "actor_rollout_ref.actor", "algorithm.rollout_correction"
ON_POLICY = (
    "algorithm.adv_estimator=cast",
    "data.train_batch_size=2",
    f"{ACTOR}.ppo_mini_batch_size=2",
    "actor_rollout_ref.rollout.n=3",
)
AGE_1 = {"is_policy": False, "age": 1, "noise_floor": 1e-6}


@pytest.mark.parametrize(
    "overrides, reason",
    [
        ((), None),
        ((f"{ACTOR}.entropy_coeff=0.01", f"{ACTOR}.use_kl_loss=True", f"{ACTOR}.shuffle=True"), None),
        (("actor_rollout_ref.rollout.calculate_log_probs=True", "trainer.v1.trainer_mode=colocate_async"), None),
        (("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=1"), None),
        (("+algorithm.cast.teacher.context=same",), None),
        (("+algorithm.cast.teacher.context=same", f"{ACTOR}.shuffle=True"), f"{ACTOR}.shuffle=True: with context=same"),
        (("data.train_batch_size=4",), f"{ACTOR}.ppo_mini_batch_size=2: the policy moves"),
        ((f"{ACTOR}.ppo_epochs=2",), f"{ACTOR}.ppo_epochs=2: the policy moves"),
        (("+algorithm.cast.one_pass=False",), "algorithm.cast.one_pass=False: it is switched off"),
        ((f"{CORRECTION}.rollout_is=token",), f"{CORRECTION}="),
        ((f"{CORRECTION}.rollout_rs=seq_mean_k1", f"{CORRECTION}.rollout_rs_threshold=1.1"), f"{CORRECTION}="),
        (
            ("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=2"),
            "trainer.v1.separate_async.parameter_sync_step=2",
        ),
        (
            ("model_engine=megatron", f"{ACTOR}.megatron.router_replay.mode=R2"),
            f"{ACTOR}.megatron.router_replay.mode=R2",
        ),
        ((f"{ACTOR}.fsdp_config.pad_to_length=True",), "pad_to_length=True"),
    ],
)
def test_one_pass_is_the_choice_where_it_is_exact_and_only_there(compose, overrides, reason):
    config = compose(*ON_POLICY, *overrides)
    said = why_two_passes(config, method_config(config))
    assert said is None if reason is None else reason in said


def rows(rewards, lengths=None):
    """Keys and fields that a step reads from TransferQueue, with three responses per prompt."""
    lengths = lengths or [3] * len(rewards)
    scores = [torch.zeros(max(length, 1)) for length in lengths]
    for row, reward in zip(scores, rewards, strict=True):
        row[-1] = reward
    masks = [(torch.arange(len(row)) < length).long() for row, length in zip(scores, lengths, strict=True)]
    nested = (torch.nested.as_nested_tensor(values, layout=torch.jagged) for values in (scores, masks))
    fields = dict(zip(("rm_scores", "response_mask"), nested, strict=True))
    data = TensorDict(fields, batch_size=len(rewards))
    data["uid"] = NonTensorStack(*(f"p{i // 3}" for i in range(len(rewards))))
    return [f"p{i // 3}_{i % 3}_0" for i in range(len(rewards))], data


def plan(config, rewards, lengths=None, step=2, teacher=AGE_1, images=False, **changes):
    keys, data = rows(rewards, lengths)
    method = dataclasses.replace(method_config(config), **changes)
    run = {"live_is_old": True, "may_be_one_pass": True, "holds_images": lambda: images}
    return plan_step(config, method, keys, data, step, teacher, **run)


def test_a_step_needs_the_teacher_for_the_rows_whose_gap_matters(compose):
    config = compose(*ON_POLICY)
    mixed, all_wrong = [1, 0, 0], [0, 0, 0]
    default = plan(config, mixed + all_wrong)
    assert default.scored.all() and default.one_pass and default.teacher_runs
    assert default.metrics() == {"teacher/forward": 1.0, "one_pass": 1.0, "teacher/age": 1.0}
    assert default.base_is_final and default.rewards.tolist() == mixed + all_wrong
    assert default.base.kind.tolist() == [MIXED] * 3 + [ALL_WRONG] * 3

    empty = plan(config, mixed + all_wrong, lengths=[3, 3, 0, 3, 3, 3])
    assert empty.scored.tolist() == [True, True, False, True, True, True]
    mixed_only = plan(config, mixed + all_wrong, base_wrong=0.0)
    assert mixed_only.scored.tolist() == [True] * 3 + [False] * 3
    right_ones = plan(config, mixed + all_wrong, gap_weight=0.0, flip="correct")
    assert right_ones.scored.tolist() == [True] + [False] * 5
    no_gap = plan(config, mixed + all_wrong, gap_weight=0.0, flip="none")
    assert not no_gap.scored.any() and not no_gap.teacher_runs and not no_gap.one_pass, "verl's own path"


def test_a_step_takes_one_pass_only_where_the_batch_is_one_update(compose):
    config = compose(*ON_POLICY)
    assert plan(config, [1, 0, 0] * 2).one_pass
    assert not plan(config, [1, 0, 0] * 4).one_pass, "two mini-batches: an agent loop gave more rows"
    assert not plan(config, [1, 0, 0] * 2, noise_floor_interval=2).one_pass, "of the weights before the update"
    assert plan(config, [1, 0, 0] * 2, noise_floor_interval=3).one_pass
    first = plan(config, [1, 0, 0] * 2, teacher=AGE_1 | {"noise_floor": None}, gap_deadzone="noise")
    assert first.measures_noise and not first.one_pass, "no noise floor is known"
    unasked = plan(config, [1, 0, 0] * 2, teacher=AGE_1 | {"noise_floor": None})
    assert unasked.measures_noise, "the first step measures it, whatever the dead zone"
    never = plan(config, [1, 0, 0] * 2, teacher=AGE_1 | {"noise_floor": None}, noise_floor_interval=None)
    assert never.one_pass and not never.measures_noise
    no_gap = {"gap_weight": 0.0, "flip": "none", "teacher": AGE_1 | {"noise_floor": None}}
    assert not plan(config, [1, 0, 0] * 2, **no_gap).measures_noise, "no gap matters"
    assert plan(config, [1, 0, 0] * 2, **no_gap, gap_deadzone="noise").measures_noise, "the dead zone needs a number"
    virtual = compose(*ON_POLICY, "model_engine=megatron", f"{ACTOR}.megatron.virtual_pipeline_model_parallel_size=2")
    assert not plan(virtual, [1, 0, 0] * 2, teacher=AGE_1 | {"noise_floor": None}).measures_noise
    with pytest.raises(ValueError, match="the noise floor has not been measured"):
        first.rule.gap_deadzone  # noqa: B018
    held = plan(config, [1, 0, 0] * 2, teacher=AGE_1 | {"noise_floor": 0.25}, gap_deadzone="noise")
    assert held.one_pass and held.rule.gap_deadzone == 0.25
    assert not plan(compose(*ON_POLICY, "trainer.critic_warmup=5"), [1, 0, 0] * 2).one_pass, "no update"
    is_policy = {"is_policy": True, "age": 0, "noise_floor": 1e-6}
    same = compose(*ON_POLICY, "+algorithm.cast.teacher.context=same")
    fresh = plan(same, [1, 0, 0] * 2, teacher=is_policy)
    assert fresh.gap_is_zero and fresh.one_pass and not fresh.teacher_runs, "no pass but the update's"
    rejecting = compose(*ON_POLICY, f"{CORRECTION}.rollout_rs=seq_mean_k1", f"{CORRECTION}.rollout_rs_threshold=1.1")
    may_change = plan(rejecting, [1, 0, 0] * 2, base_wrong=0.0, base_correct=0.0)
    assert may_change.scored.all() and not may_change.base_is_final, "groups may yet change"


def test_rows_with_images_measure_no_noise_floor(compose):
    """verl's models with images refuse a text row that stands in a micro-batch without any image."""
    config, first = compose(*ON_POLICY), AGE_1 | {"noise_floor": None}
    assert plan(config, [1, 0, 0] * 2, teacher=first).measures_noise
    with_images = plan(config, [1, 0, 0] * 2, teacher=first, images=True)
    assert not with_images.measures_noise and with_images.one_pass
    with pytest.raises(
        ValueError, match=r"not measured for rows with images.* \+\+algorithm\.cast\.gap_deadzone=0\.01"
    ):
        plan(config, [1, 0, 0] * 2, teacher=first, images=True, gap_deadzone="noise")


def test_images_are_found_once_and_logged_once(monkeypatch, capsys):
    """The rows of a model without a processor are not read. The first image of a run is enough."""

    def rows(*inputs):
        data = TensorDict({}, batch_size=len(inputs))
        data["multi_modal_inputs"] = NonTensorStack(*inputs)
        return data

    image = {"pixel_values": torch.zeros(2, 3)}
    reads = [rows({}, {}), rows({}, image)]
    trainer = SelfTeacherTrainerMixin.__new__(SelfTeacherTrainerMixin)
    trainer.processor = None
    monkeypatch.setattr(trainer, "_read", lambda batch, fields: reads.pop(0), raising=False)
    assert not trainer._holds_images(None) and len(reads) == 2
    trainer.processor = object()
    assert [trainer._holds_images(None) for _ in range(4)] == [False, True, True, True]
    assert capsys.readouterr().out.count("rows carry images: the noise floor is not measured") == 1


def test_rewards_that_differ_on_one_side_of_the_threshold_are_warned_of_once(capsys, compose):
    """The warning ends in words that make such a group a mixed one."""
    trainer = SelfTeacherTrainerMixin.__new__(SelfTeacherTrainerMixin)
    trainer.global_steps = 3

    def base(rewards, config):
        rewards = torch.tensor(rewards).unsqueeze(-1)
        return trajectory_advantage(rule_of(config), rewards, torch.ones_like(rewards), np.repeat(["a", "b"], 3))

    trainer.method, graded = CastConfig(), [0.0, 0.2, 0.5, 1.0, 0.0, 0.0]
    trainer._warn_of_one_side(base([0.0, 0.0, 0.0, 1.0, 0.2, 0.0], trainer.method))
    assert capsys.readouterr().out == "", "a mixed group is compared"
    for _ in range(2):
        trainer._warn_of_one_side(base(graded, trainer.method))
    said = capsys.readouterr().out
    assert said.count("warning: step 3: rewards of one group differ (from 0 to 0.5), but all are wrong") == 1
    words = said.rsplit(" ", 1)[1].strip()
    assert words == "++algorithm.cast.correct_threshold=0.25"
    remedied = base(graded, method_config(compose("algorithm.adv_estimator=cast", words)))
    assert remedied.kind.tolist() == [MIXED] * 6


def test_rows_of_a_session_follow_its_final_output(compose):
    """Keys are {uid}_{session}_{index}; a uid may hold underscores, and rows come in any order."""
    assert final_rows(["u_1_0_2", "u_1_1_0", "u_1_0_0", "v_0_10", "v_0_9", "u_1_0_1"]).tolist() == [0, 1, 0, 3, 3, 0]
    assert final_rows(["a_0_0", "a_1_0"]).tolist() == [0, 1]
    config = compose(*ON_POLICY)
    _, data = rows([1, 0, 0])
    with pytest.raises(ValueError, match="several outputs"):
        plan_step(config, CastConfig(), ["p_0_0", "p_0_1", "p_1_0"], data, 1, AGE_1, True, True, lambda: False)


@pytest.mark.parametrize("name", METHODS)
def test_where_no_gap_is_needed_none_matters_and_elsewhere_it_does(name):
    generator = torch.Generator().manual_seed(0)
    configs = [METHODS[name]()]
    if name == "cast":
        flips = [
            CastConfig(flip=flip, gap_weight=weight)
            for flip in ("both", "correct", "wrong", "none")
            for weight in (0, 1)
        ]
        configs += flips + [
            CastConfig(flip="none", positive_clip=(1.0, 1.0)),
            CastConfig(base_correct=0.0, base_wrong=0.0),
            CastConfig(base_correct=0.0, flip="wrong"),
        ]
    if name == "rlsd":
        configs.append(METHODS[name](gap_weight_decay_steps=2))  # the decay has ended by step 5
    for config in configs:
        rewards = torch.zeros(12, 6)
        rewards[:, 0] = torch.tensor([1, 0, 0, 1] + [1] * 4 + [0] * 4)
        mask = torch.ones(12, 6, dtype=torch.int64)
        mask[3] = 0
        index = np.repeat(["a", "b", "c"], 4)
        old = torch.zeros(12, 6)
        gaps = [torch.randn(12, 6, generator=generator) for _ in range(4)]
        rule = rule_of(config, completed_steps=5)
        base = trajectory_advantage(rule, rewards, mask, index)
        needed = rule.needs_gap(base)
        results = [token_advantage(rule, base, mask, old, gap).advantages for gap in gaps]
        differs = torch.stack([(result != results[0]).any(-1) for result in results]).any(0)
        assert torch.equal(differs, needed), config
        unscored = gaps[0].masked_fill(~needed[:, None], float("nan"))
        skipped = token_advantage(rule, base, mask, old, unscored, needed)
        assert torch.equal(skipped.advantages, results[0]), "what is not scored is not looked at"


def test_an_unscored_row_that_needs_its_gap_stops_the_run():
    rewards = torch.tensor([[1.0], [0.0]])
    zeros, mask = torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.int64)
    index = np.array(["a", "a"])
    base = trajectory_advantage(rule_of(CastConfig()), rewards, mask, index)
    for formed_before in (None, base):
        call = call_of(CastConfig(), rewards, scored=torch.tensor([True, False]), base=formed_before)
        with estimator_call(call), pytest.raises(RuntimeError, match="1 responses need the teacher's log-probs"):
            ESTIMATORS["cast"](rewards, mask, index, None, zeros, zeros)


def test_rewards_that_change_after_the_base_was_formed_stop_the_run():
    rewards = torch.tensor([[1.0], [0.0]])
    zeros, mask, index = torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.int64), np.array(["a", "a"])
    base = trajectory_advantage(rule_of(CastConfig()), rewards, mask, index)
    with estimator_call(call_of(CastConfig(), rewards, base=base)) as call:
        with pytest.raises(RuntimeError, match="the rewards of 2 responses have changed"):
            ESTIMATORS["cast"](1 - rewards, mask, index, None, zeros, zeros)
        ESTIMATORS["cast"](rewards, mask, index, None, zeros, zeros)
        assert call.result.base is base, "formed once"
        with pytest.raises(RuntimeError, match="called the estimator `cast` twice"):
            ESTIMATORS["cast"](rewards, mask, index, None, zeros, zeros)


def micro_batch():
    """Two rows as an engine passes them to a loss: prompts of 2 and 3 tokens, responses of 4 and 3."""
    generator = torch.Generator().manual_seed(1)
    prompts, responses = [torch.arange(2), torch.arange(3)], [torch.arange(4), torch.arange(3)]
    masks = [torch.tensor([1, 1, 0, 1]), torch.tensor([1, 1, 1])]

    def nested(values):
        return torch.nested.as_nested_tensor(list(values), layout=torch.jagged)

    values = torch.randn(12, generator=generator)
    data = TensorDict(
        {
            "prompts": nested(prompts),
            "responses": nested(responses),
            "input_ids": nested([torch.arange(6), torch.arange(6)]),
            "response_mask": nested(masks),
            "teacher_log_probs": nested(torch.randn(len(r), generator=generator) for r in responses),
            wire.BASE: torch.tensor([1.0, -1.0]),
            wire.CORRECT: torch.tensor([True, False]),
            wire.KIND: torch.tensor([MIXED, MIXED]),
            wire.SCORED: torch.tensor([True, True]),
            ROW: torch.tensor([1, 0]),
        },
        batch_size=2,
    )
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=6, global_batch_size=2)
    return data, values


def outputs_of(values):
    log_probs = values.clone().requires_grad_()
    offsets = torch.tensor([0, 6, 12])
    return log_probs, {"log_probs": torch.nested.nested_tensor_from_jagged(log_probs, offsets)}


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_that_forms_the_gap_has_the_gradient_of_two_passes(compose, name):
    """It wraps verl's own loss. Loss and gradient are equal bit for bit."""
    config = compose(*ON_POLICY[1:], f"algorithm.adv_estimator={name}", f"{ACTOR}.ppo_micro_batch_size_per_gpu=2")
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    rule = rule_of(method_config(config), completed_steps=3)

    def stock(model_output, data, dp_group=None):
        return ppo_loss(actor, model_output, data, dp_group)

    data, values = micro_batch()
    with pytest.raises(KeyError):
        stock(outputs_of(values)[1], data)  # without the loss around it the batch has no advantages
    one, model_output = outputs_of(values)
    entropy = torch.rand(1, 12)
    loss_function = OnePassLossOnLogits(stock, rule, False, entropy_function=lambda logits: logits.sum(-1))
    handed = loss_function.process_logits(torch.stack([entropy, torch.zeros_like(entropy)], -1), data)
    responses = torch.tensor([1, 2, 3, 4, 8, 9, 10])  # positions of the response tokens, each one earlier
    assert torch.equal(handed[ENTROPY][0].nonzero()[:, 0], responses)
    assert torch.equal(handed[ENTROPY][0, responses], entropy[0, responses])
    part = loss_function.process_logits(torch.rand(1, 6, 2), data)[ENTROPY]  # a rank with half of the tokens
    assert part.shape == (1, 6) and (part > 0).all()
    model_output[ENTROPY] = torch.nested.nested_tensor_from_jagged(handed[ENTROPY][0], torch.tensor([0, 6, 12]))
    loss, metrics = loss_function(model_output=model_output, data=data)
    loss.backward()
    assert "advantages" not in data, "the batch is as it was"

    two, model_output = outputs_of(values)
    old = [values[1:5], values[8:11]]  # a token's log-prob stands one position before it
    data["old_log_probs"] = torch.nested.as_nested_tensor(old, layout=torch.jagged)
    padded = data.select("response_mask", "old_log_probs", "teacher_log_probs").to_padded_tensor()
    base = BaseAdvantage(data[wire.BASE], data[wire.CORRECT], data[wire.KIND])
    log_probs = (padded[key] for key in ("response_mask", "old_log_probs", "teacher_log_probs"))
    data["advantages"] = token_advantage(rule, base, *log_probs).advantages
    expected, expected_metrics = stock(model_output, data)
    expected.backward()
    assert torch.equal(loss, expected) and torch.equal(one.grad, two.grad) and one.grad.abs().sum() > 0
    assert metrics.keys() == expected_metrics.keys()

    kept = loss_function.outputs(2)  # in the order of the batch, not of the micro-batch
    assert torch.equal(kept["log_probs"].values(), torch.cat([values[6:], values[:6]]))
    assert torch.equal(kept["entropy"].values(), torch.cat([handed[ENTROPY][0, 6:], handed[ENTROPY][0, :6]]))
    with pytest.raises(RuntimeError, match="1 of 3 responses took no part"):
        loss_function.outputs(3)


def test_what_acts_in_training_only_is_found_in_settings_and_modules():
    from transformers import MixtralConfig, PhimoeConfig, Qwen3Config

    class Engine:
        module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.0))

    engine = Engine()
    assert training_only_settings(engine, Qwen3Config()) == []
    assert training_only_settings(engine, PhimoeConfig()) == ["router_jitter_noise=0.01"]
    assert training_only_settings(engine, MixtralConfig(attention_dropout=0.2)) == ["attention_dropout=0.2"]
    engine.module = [torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Dropout(0.1))]
    engine.tf_config = type("Settings", (), {})()
    engine.tf_config.hidden_dropout = 0.3
    assert training_only_settings(engine, Qwen3Config()) == ["Dropout=0.1", "hidden_dropout=0.3"]
    engine.tf_config = type("Settings", (), {})()
    for balancing in ("sinkhorn", ["aux_loss", "sinkhorn"]):
        engine.tf_config.moe_router_load_balancing_type = balancing
        assert f"moe_router_load_balancing_type={balancing}" in training_only_settings(engine, Qwen3Config())


def test_a_stage_of_old_log_probs_that_is_not_verls_is_seen(monkeypatch):
    """Defined by a subclass, or wrapped in place, with or without verl's name on the wrapper."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls
    from wrapt import FunctionWrapper

    verls, stage = get_trainer_cls("separate_async"), PPOTrainer._compute_old_log_prob

    class Mixed(SelfTeacherTrainerMixin, verls):
        pass

    class Own(Mixed):
        def _compute_old_log_prob(self, batch, metrics):
            return super()._compute_old_log_prob(batch, metrics)

    def wrapper(*args):
        return stage(*args)

    def seen(cls):
        return own_stage(object.__new__(cls))

    assert seen(verls) is None and seen(Mixed) is None, "verl's own classes, and ours"
    assert seen(Own) == __name__
    for wrapped in (wrapper, functools.wraps(stage)(wrapper)):
        monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", wrapped)
        assert seen(Mixed) == __name__
    monkeypatch.setattr(
        PPOTrainer, "_compute_old_log_prob", FunctionWrapper(stage, lambda f, _, args, kw: f(*args, **kw))
    )
    assert seen(Mixed) is not None
