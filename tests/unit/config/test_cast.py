"""Laws of `algorithm.cast`, the baselines' settings, and the checks of a whole run.

The defaults are the paper's. Bad input is refused with one sentence that names the key and a remedy.
"""

import dataclasses
import pickle

import pytest
from omegaconf import OmegaConf

from verl_cast import CastConfig, CastConfigError, DumpConfig, TeacherConfig
from verl_cast.checks.run import (
    LOSS_KEY,
    LOSSES_WITHOUT_TOKEN_SIGNS,
    METHOD_DEFAULTS,
    apply_method_defaults,
    check_run,
    summary,
)
from verl_cast.checks.spelling import settings_of_a_twin
from verl_cast.config.methods import METHODS, cast_config
from verl_cast.config.words import narration

CAST = ("algorithm.adv_estimator=cast", "actor_rollout_ref.rollout.n=8")
ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
MEGATRON, FSDP, MCORE = "model_engine=megatron", f"{ACTOR}.fsdp_config", f"{ACTOR}.megatron"
VIRTUAL = f"{MEGATRON} {MCORE}.virtual_pipeline_model_parallel_size=2"
MODES = ("sync", "colocate_async", "separate_async")
SYNC_STEP = "trainer.v1.separate_async.parameter_sync_step"
WITHOUT_BASE = "+algorithm.cast.base_correct=0 +algorithm.cast.base_wrong=0"
SAMPLER, REWARD = "trainer.v1.sampler.custom_sampler", "reward.reward_model"


@pytest.fixture
def check(compose):
    """check(words): of a CAST run with these words."""
    return lambda words: check_run(compose(*CAST, *words.split()))


def refused_key(words: str) -> str:
    """The key of the last word; the words before it set the scene."""
    return words.split()[-1].lstrip("+").split("=")[0]


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
    "name, key, value, says",
    [
        ("cast", "flipp", "both", "did you mean algorithm.cast.flip?"),
        ("cast", "colour", 1, "the keys are gap_weight"),
        ("cast", "teacher.wieghts", "ema", "did you mean algorithm.cast.teacher.weights"),
        ("cast", "flip", "sideways", "one of both, correct, wrong, none"),
        ("cast", "flip", False, "YAML reads"),
        ("cast", "gap_weight", "1", "finite number"),
        ("cast", "gap_weight", True, "finite number"),
        ("cast", "gap_weight", float("nan"), "finite number"),
        ("cast", "gap_weight", -0.1, "at least 0"),
        ("cast", "flip_groups", "mixed", "one of all, zero_variance"),
        ("cast", "gap_deadzone", -1, "at least 0"),
        ("cast", "gap_deadzone", "loud", "or noise"),
        ("cast", "trust", "never", "one of always, measured"),
        ("cast", "trust_responses", 31, "at least 32"),
        ("cast", "trust_standard_errors", -3, "at least 0"),
        ("cast", "base_correct", -1, "at least 0"),
        ("cast", "base_wrong", -1, "at least 0"),
        ("cast", "positive_clip", [1.05, 0.8], "positive_clip=[0.8,1.05]"),
        ("cast", "positive_clip", [-0.1, 1.05], "at least 0"),
        ("cast", "negative_clip", [0.5, 0.9], "at least 1"),
        ("cast", "negative_clip", 1.2, "two numbers"),
        ("cast", "advantage_clip", 0, "null for no clip"),
        ("cast", "correct_threshold", None, "finite number"),
        ("cast", "noise_floor_interval", -1, "at least 0"),
        ("cast", "one_pass", "yes", "True or False"),
        ("cast", "teacher", "plain", "group of keys"),
        ("cast", "teacher.weights", "older", "snapshot, ema, initial, current"),
        ("cast", "teacher.refresh_interval", 0, "at least 1"),
        ("cast", "teacher.refresh_interval", 2.5, "whole number"),
        ("cast", "teacher.ema_decay", 1, "weights=initial"),
        ("cast", "teacher.ema_decay", 0.0, "weights=current"),
        ("cast", "teacher.context", "poem", "plain, same, or the path"),
        ("cast", "teacher.pin_memory", "yes", "auto, True or False"),
        ("cast", "teacher.missing_state", "ignore", "error, snapshot"),
        ("cast", "dump", 5, "group of keys"),
        ("cast", "dump.interval", True, "whole number"),
        ("cast", "dump.groups", 0, "at least 1"),
        ("cast", "dump.directory", "", "null for the default"),
        ("cast", "dump.every", 5, "the keys are interval, groups, directory"),
        ("rlsd", "gap_wieght", 1, "did you mean algorithm.rlsd.gap_weight?"),
        ("rlsd", "gap_weight", 1.5, "at most 1"),
        ("rlsd", "weight_clip", -0.5, "at least 0"),
        ("rlsd", "gap_weight_decay_steps", 0.5, "whole number"),
        ("rlsd", "teacher.context", "plain", "one of reference"),
        ("rlrt", "weight_clip", 1.5, "at most 1"),
        ("rlrt", "gap_weight", -1, "at least 0"),
        ("rlrt", "dump", {}, "unknown key"),
        ("rlrt", "teacher.context", "plain", "one of peer, reference"),
        ("opsd", "gap_weight", 1, "unknown key"),
        ("opsd", "correct_threshold", "high", "finite number"),
        ("opsd", "teacher.weights", "older", "snapshot, ema"),
        ("grpo_opsd", "gap_weight", -1, "at least 0"),
        ("grpo_opsd", "one_pass", 1, "True or False"),
        ("grpo_opsd", "teacher.reference_key", "", "column"),
        ("grpo_opsd", "teacher.reference_key", "a..b", "column"),
    ],
)
def test_bad_values_are_refused_by_key_and_remedy(name, key, value, says):
    group, _, last = key.rpartition(".")
    with pytest.raises(CastConfigError) as error:
        METHODS[name].from_dict({group: {last: value}} if group else {last: value})
    assert str(error.value).startswith(f"algorithm.{name}.{key}=") and says in str(error.value)


def test_a_dead_zone_of_noise_needs_its_measurement():
    with pytest.raises(CastConfigError, match="^algorithm.cast.noise_floor_interval=None: .*_interval=0 "):
        CastConfig(gap_deadzone="noise", noise_floor_interval=None)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CastConfig(flip="sideways"),
        lambda: CastConfig(teacher={"weights": "ema"}),
        lambda: TeacherConfig(refresh_interval=0),
        lambda: DumpConfig(groups=0),
        lambda: CastConfig.from_dict("both"),
    ],
)
def test_a_config_is_checked_however_it_is_built(build):
    with pytest.raises(CastConfigError):
        build()
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


@pytest.mark.parametrize(
    "words",
    [
        # only mixed groups train
        f"{WITHOUT_BASE} algorithm.filter_groups.enable=True",
        *(f"trainer.v1.trainer_mode={mode} {engine}" for mode in MODES for engine in ("", MEGATRON)),
        *(f"trainer.v1.trainer_mode={mode} +algorithm.cast.trust=measured" for mode in MODES),
        f"+algorithm.cast.trust=measured {REWARD}.enable=True {REWARD}.enable_resource_pool=True",
        # a slow average of the policy may share its prompt; only snapshots use the interval
        "+algorithm.cast.teacher={context:same,weights:ema,refresh_interval:1}",
        "+algorithm.cast.teacher={context:same,weights:initial}",
        # groups of verl and of the user are left alone: the name, or the keys, are far from ours
        "+algorithm.mine.flip=none +algorithm.cost.budget=3 +algorithm.case=null +algorithm.gdpo_reward_keys=[a]",
        "+algorithm.pf_ppo.flip=1",
    ],
)
def test_runs_that_pass(check, words):
    check(words)


ASYNC = "trainer.v1.trainer_mode=separate_async"


@pytest.mark.parametrize(
    "words, key, says",
    [
        # From the second update on, verl restores an earlier policy for the old log-probs. Live weights are newer.
        (f"{ASYNC} +algorithm.cast.teacher.weights=current", "algorithm.cast.teacher.weights", SYNC_STEP),
        # With offloaded parameters, verl's FSDP2 copy of the old policy is an alias. It would lose updates.
        (f"{ASYNC} {ACTOR}.strategy=fsdp2 {FSDP}.param_offload=True", f"{FSDP}.param_offload", f"with {SYNC_STEP}"),
        (f"{ASYNC} {ACTOR}.strategy=fsdp2 {FSDP}.offload_policy=True", f"{FSDP}.offload_policy", f"with {SYNC_STEP}"),
        (f"{ASYNC} {ACTOR}.strategy=fsdp2", None, None),
        (f"{ASYNC} {ACTOR}.strategy=fsdp {FSDP}.param_offload=True", None, None),
    ],
)
def test_several_updates_between_weight_syncs_need_an_old_policy_that_stays(check, words, key, says):
    check(f"{words} {SYNC_STEP}=1")
    if key is None:
        return check(f"{words} {SYNC_STEP}=4")
    with pytest.raises(CastConfigError) as error:
        check(f"{words} {SYNC_STEP}=4")
    assert str(error.value).startswith(f"{key}=") and says in str(error.value)


REFUSED = {
    "trainer.use_v1=False": "V1 trainer",
    f"{ROLLOUT}.n=1": "2 or more",
    f"{ROLLOUT}.n=many": "2 or more",
    f"{ROLLOUT}.temperature=0": "temperature=1.0",
    "critic.enable=True": "no critic",
    "algorithm.use_kl_in_reward=True": "use_kl_loss",
    "algorithm.rollout_correction.bypass_mode=True": "training engine",
    f"{LOSS_KEY}=geo_mean": "loss_mode=cast",
    f"{LOSS_KEY}=gsop": f"no such loss; did you mean gspo? Use {LOSS_KEY}=cast, or one of ",
    f"{ACTOR}.strategy=veomni": "fsdp, fsdp2, megatron",
    f"{FSDP}.qat.enable=True": "=False",
    f"{MEGATRON} +{MCORE}.override_transformer_config.fp8=e4m3": "null",
    f"{MEGATRON} +{MCORE}.override_ddp_config.overlap_param_gather=True": "stale",
    f"{MEGATRON} +{ACTOR}.optim.override_optimizer_config.overlap_param_gather=True": "stale",
    f"{MEGATRON} {MCORE}.use_distributed_optimizer=False": "=True",
    f"{MEGATRON} {MCORE}.use_megatron_fsdp=True": "=False",
    f"{MEGATRON} {MCORE}.dynamic_context_parallel=True": "never tried",
    f"{VIRTUAL} +algorithm.cast.noise_floor_interval=10": "virtual pipeline",
    f"{VIRTUAL} +algorithm.cast.gap_deadzone=noise": "virtual pipeline",
    f"{ACTOR}.strategy=fsdp trainer.n_gpus_per_node=2 {FSDP}.fsdp_size=1": "each of the 2 ranks trains a policy",
    "algorithm.filter_groups.enable=True": "which CAST trains on",
    "distillation.enabled=True": "own teacher",
    "+algorithm.cast.teacher.weights=current +algorithm.cast.teacher.context=same": "teaches nothing",
    "+algorithm.cast.teacher.refresh_interval=1 +algorithm.cast.teacher.context=same": "teaches nothing",
    "+algorithm.cast.flipp=both": "did you mean",
    "+algorithm.cast.teacher.context=/nowhere/t.jinja": "cannot be read",
}


@pytest.mark.parametrize("words", REFUSED)
def test_runs_that_could_not_be_cast_are_refused(check, words):
    with pytest.raises(CastConfigError) as error:
        check(words)
    assert str(error.value).startswith(f"{refused_key(words)}=") and REFUSED[words] in str(error.value)


NOT_MEASURED = {
    "+algorithm.cast.teacher.weights=ema": "at every refresh",
    "+algorithm.cast.teacher.weights=current": "must not change between",
    "+algorithm.cast.teacher.context=same": "nothing to measure",
    f"{WITHOUT_BASE} algorithm.filter_groups.enable=True": "by their rewards; set it to False",
    f"{SAMPLER}.name=Mine {SAMPLER}.path=mine.py": "by another sampler; set it to null",
    "skip.rollout_tq.enable=True": "must generate",
    f"{ROLLOUT}.name=trtllm": "use vllm or sglang",
    f"{REWARD}.enable=True {REWARD}.enable_resource_pool=False": "this reward model takes its place; set it to True",
}


@pytest.mark.parametrize("words", NOT_MEASURED)
def test_a_teacher_that_cannot_be_measured_is_refused(check, words):
    check(words)  # as long as trust is `always`
    with pytest.raises(CastConfigError) as error:
        check(f"+algorithm.cast.trust=measured {words}")
    assert str(error.value).startswith(f"{refused_key(words)}=") and NOT_MEASURED[words] in str(error.value)
    assert str(error.value).endswith("or ++algorithm.cast.trust=always.")


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


@pytest.mark.parametrize("override", ["+algorithm.cast.flip=none", f"{LOSS_KEY}=cast"])
def test_no_run_says_cast_and_trains_something_else(compose, override):
    with pytest.raises(CastConfigError, match="adv_estimator=cast, or leave out"):
        check_run(compose("algorithm.adv_estimator=rloo", override))


@pytest.mark.parametrize("estimator", ["grpo", "gae"])
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


SIZES = f"data.train_batch_size=8 {ACTOR}.ppo_mini_batch_size=4 trainer.n_gpus_per_node=2"
ROLLOUT_SIZE, ACTOR_SIZE = f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu", f"{ACTOR}.ppo_micro_batch_size_per_gpu"
REF_SIZE = "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"
PACKED = f"{ROLLOUT}.log_prob_use_dynamic_bsz"


@pytest.mark.parametrize(
    "words, right",
    [
        # a rank has 32 rows of a step, 16 of an update
        (f"{ROLLOUT_SIZE}=32 {ACTOR_SIZE}=16", None),
        (f"{ROLLOUT_SIZE}=32 {ACTOR_SIZE}=32", f"{ACTOR_SIZE}=16"),
        (f"{ACTOR_SIZE}=16 {ROLLOUT_SIZE}=12", f"{ROLLOUT_SIZE}=4"),
        (f"{ACTOR}.use_dynamic_bsz=True {ACTOR_SIZE}=32", None),
        (f"{FSDP}.ulysses_sequence_parallel_size=2 {ACTOR_SIZE}=32", None),
        (f"{ACTOR}.use_kl_loss=True {ROLLOUT_SIZE}=1", None),
        (f"{ACTOR}.use_kl_loss=True {REF_SIZE}=64", f"{REF_SIZE}=32"),
        # padding fills a step up to whole updates: 5 prompts become 8
        (f"{ROLLOUT_SIZE}=32 data.train_batch_size=5", None),
        (f"trainer.n_gpus_per_node=3 {ACTOR}.ppo_mini_batch_size=4", "3 ranks cannot share"),
        (f"{ASYNC} {SYNC_STEP}=3 data.train_batch_size=8", "use a multiple"),
        (f"{PACKED}=True", f"{PACKED}=False"),
    ],
)
def test_micro_batches_that_would_end_the_first_step_are_refused(check, words, right):
    """`prepare_micro_batches` of verl's workers asserts that a rank's rows fill them."""
    if right is None:
        return check(f"{SIZES} {words}")
    with pytest.raises(CastConfigError) as error:
        check(f"{SIZES} {words}")
    assert str(error.value).startswith(f"{words.split()[-1]}: ") and right in str(error.value)


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
