"""Law: a setting that a message recommends is a whole word, which can be pasted and reaches the method's config."""

import operator
import re

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_module

from verl_cast.checks.advice import warnings_of
from verl_cast.checks.run import check_run
from verl_cast.config.cast import CastConfigError
from verl_cast.config.methods import METHODS, settings
from verl_cast.config.words import command_words
from verl_cast.tools.cli import UserError
from verl_cast.tools.run_config import compose

CAST = ("algorithm.adv_estimator=cast", "actor_rollout_ref.rollout.n=8")
MEGATRON = ("model_engine=megatron", "actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size=2")
ASYNC = ("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=4")
WORD = re.compile(r"\+\+algorithm\.[\w.]+=\S+")
BAD = {
    "group": ["+algorithm.cast=both"],
    "order of bounds": ["++algorithm.cast.positive_clip=[1.05,0.8]"],
    "decay": ["++algorithm.cast.teacher.ema_decay=1"],
    "noise that is never measured": [
        "++algorithm.cast.gap_deadzone=noise",
        "++algorithm.cast.noise_floor_interval=null",
    ],
    "same weights and prompt": ["++algorithm.cast.teacher.context=same", "++algorithm.cast.teacher.weights=current"],
    "filter": ["algorithm.filter_groups.enable=True"],
    "virtual pipeline": [*MEGATRON, "++algorithm.cast.noise_floor_interval=5"],
    "live weights": [*ASYNC, "++algorithm.cast.teacher.weights=current"],
    "live weights of a baseline": [*ASYNC, "algorithm.adv_estimator=rlsd", "++algorithm.rlsd.teacher.weights=current"],
    "top level": ["+base_correct=0"],
    "top-level group": ["+teacher.context=same", "+cast.flip_groups=zero_variance"],
    "under algorithm": [
        "+algorithm.gap_deadzone=noise",
        "+algorithm.positive_clip=[0.9,1.1]",
        "+algorithm.advantage_clip=null",
    ],
    "without a plus": ["flip=none"],
    "without a plus, whole": ["algorithm.cast.teacher.context=same"],
    "noise decides signs": [],
}


def messages(overrides):
    """Everything that is said about the run."""
    try:
        config = compose([*CAST, *overrides])
    except UserError as problem:
        return str(problem)
    try:
        check_run(config)
    except CastConfigError as problem:
        return str(problem)
    return " ".join(warnings_of(config))


def words_of(text):
    return {word.rstrip(".,;:)") for word in WORD.findall(text)}


def test_recommended_words_can_be_pasted_and_arrive():
    words = {name: words_of(messages(overrides)) for name, overrides in BAD.items()}
    assert all(words.values()), words
    for word in set().union(*words.values()):
        key = word.removeprefix("++").partition("=")[0]
        method = METHODS[key.split(".")[1]]
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = hydra_compose("ppo_trainer", overrides=[f"algorithm.adv_estimator={method.NAME}", word])
        name = key.removeprefix(f"{method.key()}.")
        arrived = operator.attrgetter(name)(settings(config, method))
        assert command_words({name: arrived}, method) == word


@pytest.mark.parametrize(
    "override, key, right",
    [
        ("+base_correct=0", "base_correct=0", "++algorithm.cast.base_correct=0"),
        (
            "+algorithm.flip_groups=zero_variance",
            "algorithm.flip_groups='zero_variance'",
            "++algorithm.cast.flip_groups=",
        ),
        ("+teacher.context=same", "teacher.context='same'", "++algorithm.cast.teacher.context=same"),
        (
            "+algorithm.teacher={weights: ema}",
            "algorithm.teacher.weights='ema'",
            "++algorithm.cast.teacher.weights=ema",
        ),
        ("+cast.flip=none", "cast.flip='none'", "++algorithm.cast.flip=none"),
    ],
)
def test_a_setting_where_nothing_reads_it_is_refused_with_the_right_word(override, key, right):
    with pytest.raises(CastConfigError) as problem:
        check_run(compose([*CAST, override]))
    assert str(problem.value).startswith(f"{key}: nothing reads this key; write {right}")


def test_keys_of_the_users_own_are_left_alone():
    check_run(compose([*CAST, "+mine.flip=none", "+algorithm.mine=3", "+teacher.name=x", "+dump=3"]))
    check_run(compose(["algorithm.adv_estimator=gae", "+flip=none"]))
