"""Laws of `algorithm.cast` and of the checks of a whole run.

The defaults are the paper's. Bad input is refused with one sentence that names the key and a remedy.
"""

import dataclasses
import pickle

import pytest
from omegaconf import OmegaConf

from verl_cast import CastConfig, CastConfigError, TeacherConfig
from verl_cast.checks.run import (
    LOSS_KEY,
    LOSSES_WITHOUT_TOKEN_SIGNS,
    METHOD_DEFAULTS,
    apply_method_defaults,
    check_run,
    summary,
)
from verl_cast.checks.spelling import settings_of_a_twin
from verl_cast.config.methods import cast_config
from verl_cast.config.words import narration

CAST = ("algorithm.adv_estimator=cast", "actor_rollout_ref.rollout.n=8")
MEGATRON = ("model_engine=megatron",)
FSDP, MCORE = "actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.actor.megatron"


def test_defaults_are_those_of_the_evaluated_run():
    assert dataclasses.asdict(CastConfig()) == {
        "gap_weight": 1.0,
        "positive_clip": (0.8, 1.05),
        "negative_clip": (0.95, 1.2),
        "flip": "both",
        "flip_groups": "all",
        "advantage_clip": 1.2,
        "base_correct": 1.0,
        "base_wrong": 1.0,
        "correct_threshold": 0.5,
        "gap_deadzone": 0.0,
        "noise_floor_interval": 0,
        "one_pass": True,
        "trust": "always",
        "trust_responses": 128,
        "trust_standard_errors": 3.0,
        "dump": {"interval": 0, "groups": 4, "directory": None},
        "teacher": {
            "weights": "snapshot",
            "refresh_interval": 10,
            "ema_decay": 0.995,
            "context": "plain",
            "missing_state": "error",
            "pin_memory": "auto",
        },
    }
    assert CastConfig.from_dict(None) == CastConfig.from_dict({}) == CastConfig()


@pytest.mark.parametrize(
    "values, key, says",
    [
        ({"flipp": "both"}, "algorithm.cast.flipp", "did you mean algorithm.cast.flip?"),
        ({"colour": 1}, "algorithm.cast.colour", "the keys are gap_weight"),
        (
            {"teacher": {"wieghts": "ema"}},
            "algorithm.cast.teacher.wieghts",
            "did you mean algorithm.cast.teacher.weights",
        ),
        ({"flip": "sideways"}, "algorithm.cast.flip", "one of both, correct, wrong, none"),
        ({"flip": False}, "algorithm.cast.flip", "YAML reads"),
        ({"gap_weight": "1"}, "algorithm.cast.gap_weight", "finite number"),
        ({"gap_weight": True}, "algorithm.cast.gap_weight", "finite number"),
        ({"gap_weight": -0.1}, "algorithm.cast.gap_weight", "at least 0"),
        ({"gap_weight": float("nan")}, "algorithm.cast.gap_weight", "finite number"),
        ({"noise_floor_interval": None, "gap_deadzone": "noise"}, "algorithm.cast.noise_floor_interval", "interval=0"),
        ({"flip_groups": "mixed"}, "algorithm.cast.flip_groups", "one of all, zero_variance"),
        ({"gap_deadzone": -1}, "algorithm.cast.gap_deadzone", "at least 0"),
        ({"trust": "never"}, "algorithm.cast.trust", "one of always, measured"),
        ({"trust_responses": 31}, "algorithm.cast.trust_responses", "at least 32"),
        ({"trust_standard_errors": -3}, "algorithm.cast.trust_standard_errors", "at least 0"),
        ({"gap_deadzone": "loud"}, "algorithm.cast.gap_deadzone", "or noise"),
        ({"base_correct": -1}, "algorithm.cast.base_correct", "at least 0"),
        ({"base_wrong": -1}, "algorithm.cast.base_wrong", "at least 0"),
        ({"positive_clip": [1.05, 0.8]}, "algorithm.cast.positive_clip", "positive_clip=[0.8,1.05]"),
        ({"negative_clip": [0.5, 0.9]}, "algorithm.cast.negative_clip", "at least 1"),
        ({"negative_clip": 1.2}, "algorithm.cast.negative_clip", "two numbers"),
        ({"positive_clip": [-0.1, 1.05]}, "algorithm.cast.positive_clip", "at least 0"),
        ({"advantage_clip": 0}, "algorithm.cast.advantage_clip", "null for no clip"),
        ({"correct_threshold": None}, "algorithm.cast.correct_threshold", "finite number"),
        ({"teacher": {"weights": "older"}}, "algorithm.cast.teacher.weights", "snapshot, ema, initial, current"),
        ({"teacher": {"refresh_interval": 0}}, "algorithm.cast.teacher.refresh_interval", "at least 1"),
        ({"teacher": {"refresh_interval": 2.5}}, "algorithm.cast.teacher.refresh_interval", "whole number"),
        ({"teacher": {"ema_decay": 1}}, "algorithm.cast.teacher.ema_decay", "weights=initial"),
        ({"teacher": {"ema_decay": 0.0}}, "algorithm.cast.teacher.ema_decay", "weights=current"),
        ({"teacher": {"ema_decay": "slow"}}, "algorithm.cast.teacher.ema_decay", "finite number"),
        ({"teacher": {"context": "poem"}}, "algorithm.cast.teacher.context", "plain, same, or the path"),
        ({"teacher": {"pin_memory": "yes"}}, "algorithm.cast.teacher.pin_memory", "auto, True or False"),
        ({"teacher": {"missing_state": "ignore"}}, "algorithm.cast.teacher.missing_state", "error, snapshot"),
        ({"teacher": "plain"}, "algorithm.cast.teacher", "group of keys"),
        ({"noise_floor_interval": -1}, "algorithm.cast.noise_floor_interval", "at least 0"),
        ({"dump": {"interval": True}}, "algorithm.cast.dump.interval", "whole number"),
        ({"dump": {"groups": 0}}, "algorithm.cast.dump.groups", "at least 1"),
        ({"dump": {"directory": ""}}, "algorithm.cast.dump.directory", "null for the default"),
        ({"dump": {"every": 5}}, "algorithm.cast.dump.every", "the keys are interval, groups, directory"),
        ({"dump": 5}, "algorithm.cast.dump", "group of keys"),
        ("both", "algorithm.cast", "group of keys"),
    ],
)
def test_bad_values_are_refused_by_key_and_remedy(values, key, says):
    with pytest.raises(CastConfigError) as error:
        CastConfig.from_dict(values)
    assert str(error.value).startswith(f"{key}=") and says in str(error.value)


def test_a_config_is_checked_however_it_is_built():
    with pytest.raises(CastConfigError):
        CastConfig(flip="sideways")
    with pytest.raises(CastConfigError):
        TeacherConfig(refresh_interval=0)
    assert CastConfig(positive_clip=[0.9, 1.1]).positive_clip == (0.9, 1.1)


def test_command_line_reaches_the_config(compose):
    config = compose(
        *CAST,
        "+algorithm.cast.flip=none",
        "+algorithm.cast.positive_clip=[0.9,1.1]",
        "+algorithm.cast.advantage_clip=null",
        "+algorithm.cast.teacher.context=same",
    )
    check_run(config)
    assert cast_config(config) == CastConfig(
        flip="none", positive_clip=(0.9, 1.1), advantage_clip=None, teacher=TeacherConfig(context="same")
    )


def test_a_plain_cast_run_passes_and_is_summarised(compose):
    config = compose(*CAST)
    check_run(config)
    for word in ("all defaults", "snapshot weights", "context plain", "8 responses per prompt"):
        assert word in summary(config)


def test_filtered_groups_are_allowed_where_only_mixed_groups_train(compose):
    check_run(
        compose(
            *CAST,
            "algorithm.filter_groups.enable=True",
            "+algorithm.cast.base_correct=0",
            "+algorithm.cast.base_wrong=0",
        )
    )


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_trainer_modes_pass(compose, mode):
    check_run(compose(*CAST, f"trainer.v1.trainer_mode={mode}"))
    check_run(compose(*CAST, *MEGATRON, f"trainer.v1.trainer_mode={mode}"))


def test_a_teacher_of_live_weights_takes_one_update_a_step(compose):
    """From the second update on, verl restores an earlier policy for the old log-probs. Live weights are newer."""
    asynchronous = [*CAST, "trainer.v1.trainer_mode=separate_async", "+algorithm.cast.teacher.weights=current"]
    check_run(compose(*asynchronous, "trainer.v1.separate_async.parameter_sync_step=1"))
    with pytest.raises(CastConfigError, match="algorithm.cast.teacher.weights='current'.*parameter_sync_step"):
        check_run(compose(*asynchronous, "trainer.v1.separate_async.parameter_sync_step=2"))


def test_the_old_policy_of_several_updates_is_kept_in_memory_of_its_own(compose):
    """With offloaded parameters, verl's FSDP2 copy of the old policy is an alias. It would lose updates."""
    asynchronous = ["trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=4"]
    fsdp2 = "actor_rollout_ref.actor.strategy=fsdp2"
    check_run(compose(*CAST, *asynchronous, fsdp2))
    check_run(compose(*CAST, *asynchronous, "actor_rollout_ref.actor.strategy=fsdp", f"{FSDP}.param_offload=True"))
    one_update = ["trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=1"]
    check_run(compose(*CAST, *one_update, fsdp2, f"{FSDP}.param_offload=True"))
    for key in ("param_offload", "offload_policy"):
        with pytest.raises(CastConfigError, match=f"{key}=True: with trainer.v1.separate_async.parameter_sync_step"):
            check_run(compose(*CAST, *asynchronous, fsdp2, f"{FSDP}.{key}=True"))


def test_a_slow_average_of_the_policy_may_share_its_prompt(compose):
    for weights in ("ema", "initial"):
        check_run(
            compose(
                *CAST,
                "+algorithm.cast.teacher.context=same",
                f"+algorithm.cast.teacher.weights={weights}",
                "+algorithm.cast.teacher.refresh_interval=1",  # only snapshots use it
            )
        )


@pytest.mark.parametrize(
    "overrides, key, says",
    [
        (["trainer.use_v1=False"], "trainer.use_v1", "V1 trainer"),
        (["actor_rollout_ref.rollout.n=1"], "actor_rollout_ref.rollout.n", "2 or more"),
        (["critic.enable=True"], "critic.enable", "no critic"),
        (["algorithm.use_kl_in_reward=True"], "algorithm.use_kl_in_reward", "use_kl_loss"),
        (
            ["algorithm.rollout_correction.bypass_mode=True"],
            "algorithm.rollout_correction.bypass_mode",
            "training engine",
        ),
        (
            ["actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"],
            "actor_rollout_ref.actor.policy_loss.loss_mode",
            "loss_mode=cast",
        ),
        (
            ["actor_rollout_ref.actor.policy_loss.loss_mode=gsop"],
            "actor_rollout_ref.actor.policy_loss.loss_mode",
            "no such loss; did you mean gspo? Use actor_rollout_ref.actor.policy_loss.loss_mode=cast, or one of ",
        ),
        (["actor_rollout_ref.rollout.n=many"], "actor_rollout_ref.rollout.n", "2 or more"),
        (["actor_rollout_ref.rollout.temperature=0"], "actor_rollout_ref.rollout.temperature", "temperature=1.0"),
        (["actor_rollout_ref.actor.strategy=veomni"], "actor_rollout_ref.actor.strategy", "fsdp, fsdp2, megatron"),
        ([f"{FSDP}.qat.enable=True"], f"{FSDP}.qat.enable", "=False"),
        (
            [*MEGATRON, f"+{MCORE}.override_transformer_config.fp8=e4m3"],
            f"{MCORE}.override_transformer_config.fp8",
            "null",
        ),
        (
            [*MEGATRON, f"+{MCORE}.override_ddp_config.overlap_param_gather=True"],
            f"{MCORE}.override_ddp_config.overlap_param_gather",
            "stale",
        ),
        (
            [*MEGATRON, "+actor_rollout_ref.actor.optim.override_optimizer_config.overlap_param_gather=True"],
            "actor_rollout_ref.actor.optim.override_optimizer_config.overlap_param_gather",
            "stale",
        ),
        (
            [*MEGATRON, f"{MCORE}.use_distributed_optimizer=False"],
            f"{MCORE}.use_distributed_optimizer",
            "=True",
        ),
        (
            [
                *MEGATRON,
                f"{MCORE}.virtual_pipeline_model_parallel_size=2",
                "+algorithm.cast.noise_floor_interval=10",
            ],
            "algorithm.cast.noise_floor_interval",
            "virtual pipeline",
        ),
        (
            [
                *MEGATRON,
                f"{MCORE}.virtual_pipeline_model_parallel_size=2",
                "+algorithm.cast.gap_deadzone=noise",
            ],
            "algorithm.cast.gap_deadzone",
            "virtual pipeline",
        ),
        ([*MEGATRON, f"{MCORE}.use_megatron_fsdp=True"], f"{MCORE}.use_megatron_fsdp", "=False"),
        ([*MEGATRON, f"{MCORE}.dynamic_context_parallel=True"], f"{MCORE}.dynamic_context_parallel", "never tried"),
        (
            ["actor_rollout_ref.actor.strategy=fsdp", f"{FSDP}.fsdp_size=1", "trainer.n_gpus_per_node=2"],
            f"{FSDP}.fsdp_size",
            "each of the 2 ranks trains a policy of its own",
        ),
        (["algorithm.filter_groups.enable=True"], "algorithm.filter_groups.enable", "which CAST trains on"),
        (["distillation.enabled=True"], "distillation.enabled", "own teacher"),
        (
            ["+algorithm.cast.teacher.context=same", "+algorithm.cast.teacher.weights=current"],
            "algorithm.cast.teacher.context",
            "teaches nothing",
        ),
        (
            ["+algorithm.cast.teacher.context=same", "+algorithm.cast.teacher.refresh_interval=1"],
            "algorithm.cast.teacher.context",
            "teaches nothing",
        ),
        (["+algorithm.cast.flipp=both"], "algorithm.cast.flipp", "did you mean"),
        (["+algorithm.cast.teacher.context=/nowhere/t.jinja"], "algorithm.cast.teacher.context", "cannot be read"),
    ],
)
def test_runs_that_could_not_be_cast_are_refused(compose, overrides, key, says):
    with pytest.raises(CastConfigError) as error:
        check_run(compose(*CAST, *overrides))
    assert str(error.value).startswith(f"{key}=") and says in str(error.value)


TRUST = "+algorithm.cast.trust=measured"


@pytest.mark.parametrize(
    "overrides, key, says",
    [
        (["+algorithm.cast.teacher.weights=ema"], "algorithm.cast.teacher.weights", "at every refresh"),
        (["+algorithm.cast.teacher.weights=initial"], "algorithm.cast.teacher.weights", "at every refresh"),
        (["+algorithm.cast.teacher.weights=current"], "algorithm.cast.teacher.weights", "must not change between"),
        (["+algorithm.cast.teacher.context=same"], "algorithm.cast.teacher.context", "nothing to measure"),
        (
            [
                "algorithm.filter_groups.enable=True",
                *(f"+algorithm.cast.base_{side}=0" for side in ("correct", "wrong")),
            ],
            "algorithm.filter_groups.enable",
            "by their rewards; set it to False",
        ),
        (
            ["trainer.v1.sampler.custom_sampler.path=mine.py", "trainer.v1.sampler.custom_sampler.name=Mine"],
            "trainer.v1.sampler.custom_sampler.path",
            "by another sampler; set it to null",
        ),
        (["skip.rollout_tq.enable=True"], "skip.rollout_tq.enable", "must generate"),
        (["actor_rollout_ref.rollout.name=trtllm"], "actor_rollout_ref.rollout.name", "use vllm or sglang"),
        (
            ["reward.reward_model.enable=True"],
            "reward.reward_model.enable_resource_pool",
            "this reward model takes its place; set it to True",
        ),
    ],
)
def test_a_teacher_that_cannot_be_measured_is_refused(compose, overrides, key, says):
    check_run(compose(*CAST, *overrides))  # as long as trust is `always`
    with pytest.raises(CastConfigError) as error:
        check_run(compose(*CAST, TRUST, *overrides))
    assert str(error.value).startswith(f"{key}=") and says in str(error.value)
    assert str(error.value).endswith("or ++algorithm.cast.trust=always.")


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_a_teacher_is_measured_in_every_mode(compose, mode):
    pooled = ("reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=True")
    check_run(compose(*CAST, TRUST, f"trainer.v1.trainer_mode={mode}"))
    check_run(compose(*CAST, TRUST, f"trainer.v1.trainer_mode={mode}", *pooled))


def test_every_loss_of_verls_registry_passes_that_keeps_token_signs(compose):
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    config = compose(*CAST)
    for name in {*POLICY_LOSS_REGISTRY} - {*LOSSES_WITHOUT_TOKEN_SIGNS}:
        OmegaConf.update(config, LOSS_KEY, name)
        check_run(config)
    # The user's library is imported in workers only, and may register more.
    check_run(compose(*CAST, f"{LOSS_KEY}=mine", "actor_rollout_ref.model.external_lib=my.losses"))
    check_run(compose("algorithm.adv_estimator=grpo", f"{LOSS_KEY}=mine"))


@pytest.mark.parametrize(
    "override, key, near",
    [
        ("+algorithm.cats.flip=none", "algorithm.cats.flip='none'", "algorithm.cast"),
        ("+algorithm.CAST.flpi=none", "algorithm.CAST.flpi='none'", "algorithm.cast"),
        ("+algorithm.casts.teacher.context=same", "algorithm.casts.teacher.context='same'", "algorithm.cast"),
        ("+algorithm.grpoopsd.gap_weight=2", "algorithm.grpoopsd.gap_weight=2", "algorithm.grpo_opsd"),
        ("+algorithm.rldz.weight_clip=2", "algorithm.rldz.weight_clip=2", "algorithm.rlsd"),
    ],
)
def test_a_misspelt_group_is_refused_with_the_likely_name(compose, override, key, near):
    """verl takes a group of any name, nothing reads it, and the defaults would train."""
    with pytest.raises(CastConfigError) as error:
        check_run(compose(*CAST, override))
    assert str(error.value).startswith(f"{key}: ") and f"did you mean {near}?" in str(error.value)
    check_run(compose("algorithm.adv_estimator=grpo", override))  # no run of ours


@pytest.mark.parametrize(
    "overrides",
    [
        ["+algorithm.mine.flip=none"],  # the name is far from ours
        ["+algorithm.cost.budget=3"],  # the keys are
        ["+algorithm.cost=3", "+algorithm.case=null"],  # no groups
        ["+algorithm.gdpo_reward_keys=[a]", "+algorithm.pf_ppo.flip=1"],  # verl's own
    ],
)
def test_groups_of_verl_and_of_the_user_are_left_alone(compose, overrides):
    check_run(compose(*CAST, *overrides))


def test_all_that_is_wrong_is_said_at_once(compose):
    """Of the method's settings, its groups, the template, other groups and the rest of verl, one a line."""
    with pytest.raises(CastConfigError) as error:
        check_run(
            compose(
                *CAST,
                "+algorithm.cast={flip: sideways, gap_weight: abc, colour: 1, dump: {interval: -1, groups: 0}}",
                "+algorithm.cast.teacher={weights: older, ema_decay: 2, context: /nowhere/t.jinja, speed: 1}",
                "+algorithm.cats.flip=none",
                "+algorithm.rlsd.weight_clip=0.5",
                "actor_rollout_ref.rollout.n=1",
                "critic.enable=True",
            )
        )
    lines = str(error.value).splitlines()
    assert lines == list(error.value.complaints) == list(pickle.loads(pickle.dumps(error.value)).complaints)
    assert {line.split("=", 1)[0] for line in lines} == {
        "algorithm.cast.flip",
        "algorithm.cast.gap_weight",
        "algorithm.cast.colour",
        "algorithm.cast.dump.interval",
        "algorithm.cast.dump.groups",
        "algorithm.cast.teacher.weights",
        "algorithm.cast.teacher.ema_decay",
        "algorithm.cast.teacher.context",
        "algorithm.cast.teacher.speed",
        "algorithm.cats.flip",
        "algorithm.rlsd.weight_clip",
        "actor_rollout_ref.rollout.n",
        "critic.enable",
    }
    with pytest.raises(CastConfigError) as error:
        check_run(
            compose(
                "algorithm.adv_estimator=rlsd",
                "actor_rollout_ref.rollout.n=1",
                "+algorithm.rlsd={gap_weight: 2, weight_clip: -1, one_pass: 3, teacher: {context: plain}}",
            )
        )
    assert len(error.value.complaints) == 5


@pytest.mark.parametrize("shown", ["{{ problem }}", "{{ messages[-1].content }}", "{{ student_prompt }}", None])
def test_a_template_without_the_question_is_refused(compose, tmp_path, shown):
    template = tmp_path / "teacher.jinja"
    template.write_text("{{ apply_chat_template([{'role': 'user', 'content': 'Think.'}]) }} " + (shown or "problem"))
    config = compose(*CAST, f"+algorithm.cast.teacher.context={template}")
    if shown is not None:
        return check_run(config)
    with pytest.raises(CastConfigError, match="teacher.context='.*teacher.jinja'.*uses neither.*write {{ problem }}"):
        check_run(config)


@pytest.mark.parametrize("estimator", ["rloo", "gae"])
@pytest.mark.parametrize(
    "override", ["+algorithm.cast.flip=none", "actor_rollout_ref.actor.policy_loss.loss_mode=cast"]
)
def test_no_run_says_cast_and_trains_something_else(compose, estimator, override):
    with pytest.raises(CastConfigError, match="adv_estimator=cast, or leave out"):
        check_run(compose(f"algorithm.adv_estimator={estimator}", override))


@pytest.mark.parametrize("estimator", ["grpo", "gae", "rloo"])
def test_other_estimators_are_not_touched(compose, estimator):
    config = compose(f"algorithm.adv_estimator={estimator}", "actor_rollout_ref.rollout.n=1", "trainer.use_v1=False")
    before = OmegaConf.to_yaml(config)
    check_run(config)
    assert OmegaConf.to_yaml(config) == before


def test_method_defaults_fill_in_verls_stock_values_only(compose):
    for key, stock, _ in METHOD_DEFAULTS:  # contract: the listed stock values are verl's
        assert OmegaConf.select(compose(), key) == stock
    config = compose(*CAST)
    assert len(apply_method_defaults(config, list(CAST))) == 2
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "cast"
    assert config.actor_rollout_ref.actor.clip_ratio_low == 0.2
    assert config.actor_rollout_ref.actor.clip_ratio_high == 0.28
    assert "not the method's own" not in summary(config)
    # values on the command line are kept, even verl's stock values
    chosen = [f"{key}={stock}" for key, stock, _ in METHOD_DEFAULTS]
    config = compose(*CAST, *chosen)
    assert apply_method_defaults(config, [*CAST, *chosen]) == []
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "vanilla"
    assert "not the method's own: actor_rollout_ref.actor.policy_loss.loss_mode" in summary(config)
    assert config.actor_rollout_ref.actor.clip_ratio_high == 0.2


def test_a_twin_may_keep_casts_words_and_names_them(compose):
    """Not its loss, which would be no twin's."""
    config = compose("algorithm.adv_estimator=grpo", "+algorithm.cast.flip=none")
    check_run(config)
    [sentence] = settings_of_a_twin(config)
    assert "trains verl's GRPO: algorithm.cast (algorithm.cast.flip='none') is not read" in sentence
    assert settings_of_a_twin(compose(*CAST, "+algorithm.cast.flip=none")) == []
    with pytest.raises(CastConfigError, match="adv_estimator=cast, or leave out"):
        check_run(compose("algorithm.adv_estimator=grpo", f"{LOSS_KEY}=cast"))


def test_an_estimator_in_capitals_is_refused(compose):
    with pytest.raises(CastConfigError, match="lower case; use algorithm.adv_estimator=cast"):
        check_run(compose("algorithm.adv_estimator=CAST"))


SIZES = ("data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "trainer.n_gpus_per_node=2")
ROLLOUT_SIZE = "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu"
ACTOR_SIZE = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"


@pytest.mark.parametrize(
    "overrides, key, right",
    [
        # a rank has 32 rows of a step, 16 of an update
        ((f"{ROLLOUT_SIZE}=32", f"{ACTOR_SIZE}=16"), None, None),
        ((f"{ROLLOUT_SIZE}=32", f"{ACTOR_SIZE}=32"), f"{ACTOR_SIZE}=32", f"{ACTOR_SIZE}=16"),
        ((f"{ROLLOUT_SIZE}=12", f"{ACTOR_SIZE}=16"), f"{ROLLOUT_SIZE}=12", f"{ROLLOUT_SIZE}=4"),
        ((f"{ACTOR_SIZE}=32", "actor_rollout_ref.actor.use_dynamic_bsz=True"), None, None),
        ((f"{ACTOR_SIZE}=32", f"{FSDP}.ulysses_sequence_parallel_size=2"), None, None),
        (
            (f"{ROLLOUT_SIZE}=1", "actor_rollout_ref.actor.use_kl_loss=True"),
            None,
            None,
        ),
        (
            (
                "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=64",
                "actor_rollout_ref.actor.use_kl_loss=True",
            ),
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=64",
            "log_prob_micro_batch_size_per_gpu=32",
        ),
        # padding fills a step up to whole updates: 5 prompts become 8
        ((f"{ROLLOUT_SIZE}=32", "data.train_batch_size=5"), None, None),
        (("trainer.n_gpus_per_node=3",), "actor_rollout_ref.actor.ppo_mini_batch_size=4", "3 ranks cannot share"),
        (
            ("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=3"),
            "data.train_batch_size=8",
            "use a multiple",
        ),
        (
            ("actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True",),
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True",
            "log_prob_use_dynamic_bsz=False",
        ),
    ],
)
def test_micro_batches_that_would_end_the_first_step_are_refused(compose, overrides, key, right):
    """`prepare_micro_batches` of verl's workers asserts that a rank's rows fill them."""
    config = compose(*CAST, *SIZES, *overrides)
    if key is None:
        return check_run(config)
    with pytest.raises(CastConfigError) as error:
        check_run(config)
    assert str(error.value).startswith(f"{key}: ") and right in str(error.value)


def test_the_start_line_names_every_setting_that_differs(compose):
    """Whatever the narration is; test_words.py has the law that it names every field."""
    config = compose(
        *CAST,
        "+algorithm.cast.flip_groups=zero_variance",
        "+algorithm.cast.base_wrong=0.1",
        "+algorithm.cast.dump.groups=2",
    )
    line = summary(config)
    assert f" is active: {narration(cast_config(config))} |" in line and "flip_groups=zero_variance" in line
    assert f" is active: {narration(CastConfig())} |" in summary(compose(*CAST))
