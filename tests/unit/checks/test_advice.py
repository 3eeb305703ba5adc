"""Laws of the advice about settings that are valid but pointless or risky.

Each such setting is reported with its key, its value and a remedy. The default run is warned of one thing: that its
teacher is always trusted.
"""

import copy
import re
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from scripts import overrides

from verl_cast.checks import advice
from verl_cast.checks.run import check_run
from verl_cast.config.cast import CastConfigError
from verl_cast.tools.run_config import compose

CAST, ROLLOUT, ACTOR = "algorithm.cast", "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
PRECISION = f"{ACTOR}.fsdp_config.mixed_precision"
RUN = ["algorithm.adv_estimator=cast", f"{ROLLOUT}.n=8", f"+{PRECISION}={{param_dtype: fp32}}"]


@pytest.fixture(scope="module")
def default_run():
    """All defaults, on an engine in float32."""
    return compose(RUN)


def warnings_beside_trust(config):
    """What is said about a run beside the default run's warning."""
    trust = advice.teacher_is_always_trusted(config, advice.cast_config(config))
    return [sentence for sentence in advice.warnings_of(config) if sentence != trust]


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with a GPU."""
    monkeypatch.delenv("VERL_PLATFORM", raising=False)


def changed(config, settings):
    """The run with other settings. `check_run` must accept it, because a refused run needs no warning."""
    config = copy.deepcopy(config)
    for key, value in settings.items():
        OmegaConf.update(config, key, value, force_add=True)
    check_run(config)
    return config


SENSELESS = [
    ("no_gap_can_act", {f"{CAST}.flip": "none", f"{CAST}.gap_weight": 0}, "flip=none with gap_weight=0", "base adv"),
    (
        "no_gap_can_act",
        {
            f"{CAST}.flip": "none",
            f"{CAST}.positive_clip": [1, 1],
            f"{CAST}.negative_clip": [1, 1],
            f"{CAST}.base_correct": 0,
            f"{CAST}.base_wrong": 0,
        },
        "[1.0, 1.0]",
        "GRPO's advantages",
    ),
    (
        "bases_outweigh_mixed_groups",
        {"algorithm.norm_adv_by_std_in_grpo": False},
        "algorithm.norm_adv_by_std_in_grpo=False",
        "base_correct=0.5 ++algorithm.cast.base_wrong=0.5 or less",
    ),
    (
        "snapshot_is_never_renewed",
        {"trainer.total_training_steps": 10},
        f"{CAST}.teacher.refresh_interval=10 in a run of 10 training steps",
        "weights=initial",
    ),
    (
        "average_hardly_moves",
        {f"{CAST}.teacher.weights": "ema", f"{CAST}.teacher.ema_decay": 0.9999, "trainer.total_training_steps": 300},
        f"{CAST}.teacher.ema_decay=0.9999: after all 300 steps the teacher is still 97%",
        "Set ",
    ),
    (
        "average_hardly_moves",
        {f"{CAST}.teacher.weights": "ema", f"{CAST}.teacher.ema_decay": 0.99999},
        f"{CAST}.teacher.ema_decay=0.99999",
        "100000 training steps",
    ),
    (
        "teacher_pulls_back_to_the_start",
        {f"{CAST}.teacher.context": "same", f"{CAST}.teacher.weights": "initial"},
        f"{CAST}.teacher.context=same with weights=initial",
        "weights=snapshot",
    ),
    (
        "context_lacks_the_tools",
        {f"{ROLLOUT}.agent.default_agent_loop": "tool_agent"},
        f"{ROLLOUT}.agent.default_agent_loop=tool_agent",
        "context=same",
    ),
    (
        "noise_is_measured_once",
        {f"{CAST}.gap_deadzone": "noise"},
        f"{CAST}.gap_deadzone=noise with noise_floor_interval=0",
        "noise_floor_interval=50",
    ),
    (
        "overlong_penalty_turns_correct_into_wrong",
        {"reward.reward_kwargs.overlong_buffer_cfg": {"enable": True, "len": 512, "penalty_factor": 1.0}},
        "reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=1",
        "penalty_factor=0.4",
    ),
    ("rewards_come_from_a_model", {"reward.reward_model.enable": True}, "reward.reward_model.enable=True", "verdict"),
]


@pytest.mark.parametrize("function, settings, names, remedy", SENSELESS)
def test_a_senseless_setting_is_named_with_its_remedy(default_run, function, settings, names, remedy):
    config = changed(default_run, settings)
    [sentence] = warnings_beside_trust(config)
    assert names in sentence and remedy in sentence
    assert sentence == getattr(advice, function)(config, advice.cast_config(config))
    for trust in ("always", "measured"):
        try:
            config = changed(default_run, {**settings, f"{CAST}.trust": trust})
        except CastConfigError:
            assert trust == "measured"  # this teacher cannot be
            continue
        advise = getattr(advice, function)
        every_remedy_ends_it(config, advise, advise(config, advice.cast_config(config)))


def every_remedy_ends_it(config, advise, sentence):
    """Each group of words that the sentence offers is composed by hydra, reaches the run, and ends the warning."""
    groups = re.findall(r"\+\+\S+(?: \+\+\S+)*", sentence)
    assert groups
    for words in groups:
        words = words.rstrip(".,").split()
        composed, pasted = compose([*RUN, *words]), {}
        for word in OverridesParser.create().parse_overrides(words):
            pasted[word.key_or_group] = OmegaConf.select(composed, word.key_or_group, throw_on_missing=True)
            assert pasted[word.key_or_group] == word.value()
        remedied = changed(config, pasted)
        assert advise(remedied, advice.cast_config(remedied)) is None


MIXED_ONLY = {f"{CAST}.base_correct": 0, f"{CAST}.base_wrong": 0}
SNAPSHOT = "++algorithm.cast.teacher.weights=snapshot "


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, "Set ++"),
        ({f"{CAST}.flip": "none"}, "Set ++"),  # bases are on
        (MIXED_ONLY, "Set ++"),  # flips are on
        ({f"{CAST}.teacher.weights": "ema"}, f"Set {SNAPSHOT}++"),
        ({f"{CAST}.teacher.weights": "initial"}, f"Set {SNAPSHOT}++"),
        ({f"{CAST}.teacher.weights": "current"}, f"Set {SNAPSHOT}++"),
        ({f"{CAST}.trust": "measured"}, None),
        ({f"{CAST}.flip": "none"} | MIXED_ONLY, None),
        # There is no remedy: such a teacher cannot be measured.
        ({f"{CAST}.teacher.context": "same"}, None),
        ({f"{ROLLOUT}.name": "trtllm"}, None),
    ],
)
def test_a_teacher_that_is_always_trusted_is_warned_of_where_it_can_be_measured(default_run, settings, words):
    """The default run is warned of this and of nothing else."""
    config = changed(default_run, settings)
    found = advice.warnings_of(config)
    assert len(found) == (words is not None)
    for sentence in found:
        assert sentence.startswith(f"{CAST}.trust=always: ") and "destroys a policy" in sentence
        assert sentence.endswith(f"{words}algorithm.cast.trust=measured.")
        every_remedy_ends_it(config, advice.teacher_is_always_trusted, sentence)


@pytest.mark.parametrize(
    "settings",
    [
        {f"{CAST}.gap_weight": 0},  # the gap still acts through flips
        {f"{CAST}.flip": "none"},  # the gap still acts through weights
        {f"{CAST}.flip": "none", f"{CAST}.positive_clip": [1, 1]},  # the weights of one side still act
        {f"{CAST}.base_correct": 0, f"{CAST}.base_wrong": 0},  # mixed groups only, an ablation of the paper
        {
            "algorithm.norm_adv_by_std_in_grpo": False,
            f"{CAST}.base_correct": 0.5,
            f"{CAST}.base_wrong": 0.5,
        },
        {"trainer.total_training_steps": 11},
        {f"{CAST}.teacher.weights": "initial", "trainer.total_training_steps": 5},
        {f"{CAST}.teacher.weights": "ema", "trainer.total_training_steps": 300},
        {f"{CAST}.teacher.weights": "ema"},
        {f"{CAST}.teacher.weights": "current"},
        {f"{CAST}.teacher.context": "same"},
        {f"{CAST}.teacher.context": "same", f"{ROLLOUT}.agent.default_agent_loop": "tool_agent"},
        {f"{CAST}.gap_deadzone": "noise", f"{CAST}.noise_floor_interval": 50},
        {"reward.reward_kwargs.overlong_buffer_cfg": {"enable": True, "len": 512, "penalty_factor": 0.4}},
        {"reward.reward_kwargs.overlong_buffer_cfg": {"enable": False, "len": 512, "penalty_factor": 1.0}},
        {"reward.reward_model.enable": True, "reward.custom_reward_function.path": "verdict.py"},
    ],
)
def test_sensible_neighbours_are_warned_of_nothing(default_run, settings):
    assert warnings_beside_trust(changed(default_run, settings)) == []


@pytest.mark.parametrize("script", ["quickstart.sh", "run_gsm8k.sh"])
def test_runs_that_start_with_a_measured_teacher_are_not_warned_of_it(script):
    config = compose(overrides(script), "cast_trainer")
    assert not any("trust" in sentence for sentence in advice.warnings_of(config))


BF16 = {PRECISION: {"param_dtype": "bf16"}}
FUSED = {"actor_rollout_ref.model.use_fused_kernels": True}
TRITON = {"actor_rollout_ref.model.fused_kernel_options": {"impl_backend": "triton"}}


@pytest.mark.parametrize(
    "settings, decided_by",
    [
        ({}, None),
        (BF16, f"{PRECISION}.param_dtype=bf16"),
        ({PRECISION: None}, f"{PRECISION}.param_dtype=bf16"),  # verl's default
        ({PRECISION: {"param_dtype": "fp16"}}, f"{PRECISION}.param_dtype=fp16"),
        (BF16 | FUSED, f"{PRECISION}.param_dtype=bf16"),  # verl's torch backend divides logits in bf16
        (BF16 | FUSED | TRITON, None),
        (BF16 | {f"{CAST}.gap_deadzone": 0.05}, None),
        (BF16 | {f"{CAST}.gap_deadzone": "noise", f"{CAST}.noise_floor_interval": 50}, None),
        (BF16 | {f"{CAST}.flip": "none"}, None),
    ],
)
def test_the_type_of_the_logits_decides_whether_rounding_makes_signs(default_run, settings, decided_by):
    found = warnings_beside_trust(changed(default_run, settings))
    assert len(found) == (decided_by is not None)
    for text in found:
        assert decided_by in text and "the model's logits come" in text and "gap_deadzone=noise" in text
        every_remedy_ends_it(changed(default_run, settings), advice.rounding_decides_signs, text)


def test_on_a_cpu_the_remedy_is_float32(default_run, monkeypatch):
    config = changed(default_run, BF16)
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    [sentence] = warnings_beside_trust(config)
    assert "log-probs come in that type" in sentence and f"++{PRECISION}.param_dtype=fp32" in sentence
    monkeypatch.delenv("VERL_PLATFORM")  # the CPU platform refuses much else of this run
    every_remedy_ends_it(config, advice.rounding_decides_signs, sentence)


def test_megatrons_logits_are_as_precise_as_its_parameters():
    config = compose(["algorithm.adv_estimator=cast", f"{ROLLOUT}.n=8", "model_engine=megatron"])
    [sentence] = warnings_beside_trust(config)
    assert f"{ACTOR}.megatron.dtype=bf16" in sentence
    assert warnings_beside_trust(changed(config, {f"{ACTOR}.megatron.dtype": "float32"})) == []
    assert warnings_beside_trust(changed(config, FUSED)) == []


def test_advice_that_fails_keeps_no_run_from_starting(default_run, monkeypatch):
    def broken(config, method):
        raise KeyError("nobody thought of this")

    monkeypatch.setattr(advice, "ADVICE", (broken,))
    assert advice.warnings_of(default_run) == ["broken could not be looked at: KeyError: 'nobody thought of this'"]


def test_every_piece_of_advice_is_shown_here():
    elsewhere = {"rounding_decides_signs", "teacher_is_always_trusted"}
    assert {name for name, *_ in SENSELESS} | elsewhere == {function.__name__ for function in advice.ADVICE}


def test_importing_it_imports_neither_torch_nor_verl():
    code = "import sys, verl_cast.checks.advice; print({'torch', 'verl'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
