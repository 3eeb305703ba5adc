"""verl's config of a run, composed from a command line's overrides as verl's own command would, without starting it."""

import argparse
from pathlib import Path

from omegaconf import DictConfig

from verl_cast.check import apply_method_defaults, is_cast_run
from verl_cast.cli import UserError

VERL_CONFIG_MODULE = "verl.trainer.config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command takes that looks at a verl command line."""
    parser.add_argument("--config-name", default="ppo_trainer", help="as in verl's command (default: ppo_trainer)")
    parser.add_argument("--config-path", default=None, help="directory of that config (default: verl's own)")
    parser.add_argument("overrides", nargs="*", help="the overrides of your verl command: key=value +key=value ...")


def compose(overrides: list[str], config_name: str = "ppo_trainer", config_path: str | None = None) -> DictConfig:
    """The composed config; in a CAST run with what the method fixes outside `algorithm.cast`.

    Raises:
        UserError: hydra cannot compose it (an unknown key, a missing file, ...).
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    if config_path is None:
        initialized = hydra.initialize_config_module(VERL_CONFIG_MODULE, version_base=None)
    else:
        initialized = hydra.initialize_config_dir(str(Path(config_path).resolve()), version_base=None)
    try:
        with initialized:
            config = hydra.compose(config_name, overrides=overrides)
    except HydraException as error:
        cause = error.__cause__ or error
        raise UserError(f"hydra cannot compose this command: {str(cause).strip()}") from error
    if is_cast_run(config):
        apply_method_defaults(config, overrides)
    return config
