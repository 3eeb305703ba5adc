"""Settings as words: what differs from the defaults is named, and a recommendation can be pasted."""

import contextlib
import dataclasses

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_module

from verl_cast.config.cast import CastConfigError
from verl_cast.config.methods import METHODS, cast_config
from verl_cast.config.words import command_words, differing, narration

# Values to try for settings whose neighbours are no values.
OTHER_VALUES = {
    "positive_clip": [(0.5, 1.5)],
    "negative_clip": [(0.5, 1.5)],
    "flip": ["none"],
    "flip_groups": ["zero_variance"],
    "noise_floor_interval": [7],
    "weights": ["current", "initial"],
    "context": ["file.jinja", "reference", "reference_chat"],
    "missing_state": ["snapshot"],
    "pin_memory": [False],
    "directory": ["/somewhere"],
    "ema_decay": [0.5],
    "reference_key": ["extra_info.solution"],
    "trust": ["measured"],
}


def built_with_another_value(method, group, key, default):
    """The method's settings with one valid value that is not the default."""
    neighbours = [not default] if isinstance(default, bool) else OTHER_VALUES.get(key) or [default + 1, default / 2]
    for value in neighbours:
        with contextlib.suppress(CastConfigError):
            if value != default:
                return method.from_dict({key: value} if group is None else {group: {key: value}})
    raise AssertionError(f"no other value of {key} is valid; name one in OTHER_VALUES")


def every_setting(method):
    for field in dataclasses.fields(method):
        if field.name in method.parts():
            group = method.parts()[field.name]
            yield from ((field.name, key.name, getattr(group(), key.name)) for key in dataclasses.fields(group))
        else:
            yield None, field.name, getattr(method(), field.name)


CASES = [(method, *setting) for method in METHODS.values() for setting in every_setting(method)]


@pytest.mark.parametrize("method,group,key,default", CASES, ids=lambda value: str(getattr(value, "NAME", value)))
def test_every_setting_that_differs_is_named(method, group, key, default):
    built = built_with_another_value(method, group, key, default)
    name = key if group is None else f"{group}.{key}"
    assert list(differing(built)) == [name] and narration(built).startswith(f"{name}=")


def test_defaults_are_named_as_such():
    assert {narration(method()) for method in METHODS.values()} == {"all defaults"}


@pytest.mark.parametrize("name", ["ppo_trainer", "cast_trainer"])
def test_words_can_be_pasted(name):
    settings = {"flip_groups": "zero_variance", "base_wrong": 0.1, "positive_clip": (0.9, 1.1), "advantage_clip": None}
    settings |= {"teacher.context": "same", "gap_deadzone": "noise"}
    words = command_words(settings).split()
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra_compose(name, overrides=["algorithm.adv_estimator=cast", *words])
    assert differing(cast_config(config)) == settings
