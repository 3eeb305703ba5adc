"""Settings that would not arrive: of a method that the run does not train, in a group or a place that nothing reads.

verl's config takes keys of any name in `algorithm`, and hydra takes them at the top level. Such a run would train with
the defaults, without a word.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cast.config.cast import CastConfigError, MethodConfig
from verl_cast.config.methods import ESTIMATOR_KEY, METHODS, is_cast_run
from verl_cast.config.words import command_words

LOSS_KEY = "actor_rollout_ref.actor.policy_loss.loss_mode"
TWIN = "grpo"  # the run that a CAST run is compared with: the same command with another estimator


def settings_of_other_methods(config: DictConfig) -> Iterator[CastConfigError]:
    """Settings of a method that the estimator does not train: the run would name one and train another.

    A twin may keep them (`settings_of_a_twin`). The packaged config (`cast_trainer`) holds the settings of every
    method. A group that is whole, with all defaults, asks for nothing.
    """
    estimator = str(OmegaConf.select(config, ESTIMATOR_KEY))
    if estimator not in METHODS and estimator.lower() in METHODS:
        remedy = f"verl's names of estimators are lower case; use {ESTIMATOR_KEY}={estimator.lower()}."
        yield CastConfigError(ESTIMATOR_KEY, estimator, remedy)
        asked = []
    else:
        asked = [] if estimator == TWIN else [found for found in _asked_for(config) if found[0] != estimator]
    if OmegaConf.select(config, LOSS_KEY) == "cast" and not is_cast_run(config):
        asked.append(("cast", LOSS_KEY, "cast"))
    for name, key, value in asked:
        remedy = f"set {ESTIMATOR_KEY}={name}, or leave out this key: {ESTIMATOR_KEY} is {estimator}."
        yield CastConfigError(key, value, remedy)


def settings_of_a_twin(config: DictConfig) -> list[str]:
    """A sentence for every group of settings that a GRPO twin has and does not read; empty for other runs."""
    if OmegaConf.select(config, ESTIMATOR_KEY) != TWIN:
        return []
    return [
        f"{ESTIMATOR_KEY}={TWIN} trains verl's GRPO: algorithm.{name} ({key}={value!r}) is not read"
        for name, key, value in _asked_for(config)
    ]


def misspelt_groups(config: DictConfig) -> Iterator[CastConfigError]:
    """`algorithm.cats.flip`: a group with a name like a method's, which nothing reads.

    A group of the user's own may have a similar name, so one of its keys must look like a key of ours, too.
    """
    known = {*METHODS, *_keys_of_verl()}
    for name, values in OmegaConf.to_container(config.algorithm).items():
        near = difflib.get_close_matches(str(name).lower(), METHODS, n=1, cutoff=0.7)
        if name in known or not near or not isinstance(values, Mapping):
            continue
        ours = [field.name for field in dataclasses.fields(METHODS[near[0]])]
        in_capitals = str(name).lower() in METHODS
        if in_capitals or any(difflib.get_close_matches(str(key), ours, n=1, cutoff=0.8) for key in values):
            key, value = _first_asked_for(values, {}, f"algorithm.{name}")
            remedy = (
                f"nothing reads a group algorithm.{name}; did you mean algorithm.{near[0]}? Write that, or leave out "
                "this key."
            )
            yield CastConfigError(key, value, remedy)


def settings_out_of_place(config: DictConfig, method: type[MethodConfig]) -> Iterator[CastConfigError]:
    """Settings of the method at the top level or under `algorithm`, where nothing reads them."""
    defaults = packaged_defaults(method)
    for place in ("", method.NAME, "algorithm"):
        group = OmegaConf.select(config, place) if place else config
        if not OmegaConf.is_dict(group):
            continue
        taken = _keys_of_verl() if place == "algorithm" else ()
        names = [name for name in defaults if name in group and name not in taken]
        for key, value in flat(OmegaConf.to_container(OmegaConf.masked_copy(group, names))):
            if key in dict(flat(defaults)):
                remedy = f"nothing reads this key; write {command_words({key: value}, method)} in its place."
                yield CastConfigError(f"{place}.{key}".lstrip("."), value, remedy)


def packaged_defaults(method: type[MethodConfig]) -> dict:
    """A method's settings with all defaults, as the packaged config has them."""
    return OmegaConf.to_container(OmegaConf.create(dataclasses.asdict(method())))


def setting_of(key: str) -> str | None:
    """The name below `algorithm.cast` of a key that lacks the group's name, or has it without `algorithm`."""
    name = key.removeprefix("algorithm.").removeprefix("cast.")
    return name if name in dict(flat(packaged_defaults(METHODS["cast"]))) else None


def _keys_of_verl() -> set[str]:
    from verl.trainer.config import AlgoConfig

    return {field.name for field in dataclasses.fields(AlgoConfig)}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested groups, by its full key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _asked_for(config: DictConfig) -> Iterator[tuple[str, str, Any]]:
    """Name, first changed key and its value, of every method whose group differs from its defaults."""
    for name, method in METHODS.items():
        values = OmegaConf.select(config, method.key())
        if values is None:
            continue
        values, defaults = OmegaConf.to_container(OmegaConf.create(values)), packaged_defaults(method)
        if values != defaults:
            yield name, *_first_asked_for(values, defaults, method.key())


def _first_asked_for(values: Any, defaults: Any, prefix: str) -> tuple[str, Any]:
    """The first key that differs from the defaults, with its value; where none does, the first key of all."""
    if not isinstance(values, dict) or not values:
        return prefix, values
    changed = [key for key in values if not isinstance(defaults, dict) or values[key] != defaults.get(key)]
    key = next(iter(changed or values))
    return _first_asked_for(values[key], defaults.get(key) if isinstance(defaults, dict) else None, f"{prefix}.{key}")
