"""Settings that would not arrive: of a method that the run does not train, in a group or a place that nothing reads.

verl's config takes keys of any name in `algorithm`, and hydra takes them at the top level. Such a run would train with
the defaults, without a word.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cast.config.cast import CastConfigError, Complaints, MethodConfig
from verl_cast.config.methods import ESTIMATOR_KEY, METHODS, is_cast_run
from verl_cast.config.words import command_words

LOSS_KEY = "actor_rollout_ref.actor.policy_loss.loss_mode"
TWIN = "grpo"  # the run that a CAST run is compared with: the same command with another estimator


def check_nothing_else_is_asked_for(config: DictConfig) -> None:
    """Refuse settings of a method that the estimator does not train: the run would name one and train another.

    A twin may keep them (`settings_of_a_twin`). The packaged config (`cast_trainer`) holds the settings of every
    method. A group that is whole, with all defaults, asks for nothing.
    """
    estimator = str(OmegaConf.select(config, ESTIMATOR_KEY))
    complaints = Complaints()

    def complain(name: str, key: str, value: Any) -> None:
        with complaints:
            remedy = f"set {ESTIMATOR_KEY}={name}, or leave out this key: {ESTIMATOR_KEY} is {estimator}."
            raise CastConfigError(key, value, remedy)

    if estimator not in METHODS and estimator.lower() in METHODS:
        with complaints:
            remedy = f"verl's names of estimators are lower case; use {ESTIMATOR_KEY}={estimator.lower()}."
            raise CastConfigError(ESTIMATOR_KEY, estimator, remedy)
    elif estimator != TWIN:
        for name, key, value in _asked_for(config):
            if name != estimator:
                complain(name, key, value)
    if OmegaConf.select(config, LOSS_KEY) == "cast" and not is_cast_run(config):
        complain("cast", LOSS_KEY, "cast")
    complaints.raise_if_any()


def settings_of_a_twin(config: DictConfig) -> list[str]:
    """A sentence for every group of settings that a GRPO twin has and does not read; empty for other runs."""
    if OmegaConf.select(config, ESTIMATOR_KEY) != TWIN:
        return []
    return [
        f"{ESTIMATOR_KEY}={TWIN} trains verl's GRPO: algorithm.{name} ({key}={value!r}) is not read"
        for name, key, value in _asked_for(config)
    ]


def check_no_group_is_misspelt(config: DictConfig) -> None:
    """Refuse `algorithm.cats.flip`.

    A group of the user's own may have a similar name, so one of its keys must look like a key of ours, too.
    """
    known = {*METHODS, *_keys_of_verl()}
    complaints = Complaints()
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
            with complaints:
                raise CastConfigError(key, value, remedy)
    complaints.raise_if_any()


def check_settings_arrive(config: DictConfig, method: type[MethodConfig]) -> None:
    """Refuse a setting of the method at the top level or under `algorithm`, where nothing reads it."""
    complaints, defaults = Complaints(), packaged_defaults(method)
    for place in ("", method.NAME, "algorithm"):
        group = OmegaConf.select(config, place) if place else config
        if not OmegaConf.is_dict(group):
            continue
        taken = _keys_of_verl() if place == "algorithm" else ()
        names = [name for name in defaults if name in group and name not in taken]
        for key, value in flat(OmegaConf.to_container(OmegaConf.masked_copy(group, names))):
            if key in dict(flat(defaults)):
                with complaints:
                    remedy = f"nothing reads this key; write {command_words({key: value}, method)} in its place."
                    raise CastConfigError(f"{place}.{key}".lstrip("."), value, remedy)
    complaints.raise_if_any()


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
