"""Composes verl's config of a run from a command line's overrides, as verl's own command does; starts nothing."""

import argparse
import difflib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_cast.launch.check import apply_method_defaults
from verl_cast.tools.cli import UserError

VERL_CONFIG_MODULE = "verl.trainer.config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every subcommand that reads a verl command line."""
    parser.add_argument("--config-name", default="ppo_trainer", help="as in verl's command (default: ppo_trainer)")
    parser.add_argument(
        "--config-path",
        default=None,
        help="directory of that config, as in verl's command: absolute, or relative to verl/trainer",
    )
    parser.add_argument("overrides", nargs="*", help="the overrides of your verl command: key=value +key=value ...")


def compose(overrides: list[str], config_name: str = "ppo_trainer", config_path: str | None = None) -> DictConfig:
    """The composed config. A CAST run also gets the method's defaults for keys outside `algorithm.cast`.

    Raises:
        UserError: hydra cannot compose it (an unknown key, a missing file, ...).
    """
    import hydra
    import verl  # noqa: F401  its plugins add the config `cast_trainer`
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    if config_path is None:
        initialized = hydra.initialize_config_module(VERL_CONFIG_MODULE, version_base=None)
    else:
        # As in hydra.main: relative to the directory of verl's main; an absolute path stays as it is.
        trainer = Path(importlib.util.find_spec("verl.trainer").origin).parent
        initialized = hydra.initialize_config_dir(str((trainer / config_path).resolve()), version_base=None)
    with initialized:
        try:
            config = hydra.compose(config_name, overrides=overrides)
        except HydraException as error:
            raise UserError(f"hydra cannot compose this command: {_explained(error, config_name)}") from error
    apply_method_defaults(config, overrides)
    return config


def _explained(error: Exception, config_name: str) -> str:
    """hydra's message on one line; for an unknown key, with the config's nearest key."""
    import hydra

    cause = error.__cause__
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        return " ".join(str(cause or error).split())
    if cause.full_key == "algorithm.cast":
        return (
            "CAST's keys are not in verl's config, so each needs a + before it, as in +algorithm.cast.flip=both; "
            "or use --config-name=cast_trainer, which has them all"
        )
    keys = list(_keys(OmegaConf.to_container(hydra.compose(config_name)), ""))
    near = difflib.get_close_matches(cause.full_key, keys, n=1, cutoff=0.8)
    hint = f"did you mean {near[0]}?" if near else f"to add it as a new key, write +{cause.full_key}=..."
    return f"verl's config has no key {cause.full_key}; {hint}"


def _keys(group: dict, prefix: str) -> Iterator[str]:
    """Every key of a config, by its full name."""
    for key, value in group.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
