"""What verl's entry-point group `verl.plugins` imports, in every process that imports verl.

Importing this module is the registration, and importing it again does nothing. It must stay cheap, so what lies in
modules of verl that are not loaded yet is done when they are (wrapt's post-import hooks). verl hides an exception of a
plugin at DEBUG; here every failure is logged as an error, kept in `problems`, and ends a run that asks for CAST.
"""

import functools
import logging
import os
from pathlib import Path
from types import ModuleType

import verl
import wrapt

from verl_cast.seams import SUPPORTED_VERL, check_seams

logger = logging.getLogger("verl_cast")

# Why CAST is not available in this process; empty when all is well.
problems: list[str] = []


def _hook(install):
    """A post-import hook that runs once per module, and records a failure instead of breaking runs without CAST."""

    @functools.wraps(install)
    def guarded(module: ModuleType) -> None:
        if "_verl_cast_installed" in vars(module):
            return
        module._verl_cast_installed = True
        try:
            install(module)
        except Exception as error:
            _report(f"CAST is not available in process {os.getpid()}: {error}")

    return guarded


def _report(problem: str) -> None:
    problems.append(problem)
    logger.error("[verl_cast] %s", problem)


@_hook
def _install_config_check(module: ModuleType) -> None:
    """Driver: check the run before Ray starts. verl's main calls validate_config first thing."""
    check_seams(module.__name__)
    stock = module.validate_config

    @functools.wraps(stock)
    def validate_config(config, *args, **kwargs):
        from verl_cast.advice import warnings_of
        from verl_cast.check import apply_method_defaults, check_run, summary
        from verl_cast.methods import is_cast_run, method_class

        method = method_class(config)
        if method is not None:
            if problems:
                raise RuntimeError(f"algorithm.adv_estimator={method.NAME}: {problems[0]}")
            for change in apply_method_defaults(config, _command_line_overrides()):
                print(f"[verl_cast] {change}")
        check_run(config)
        result = stock(config, *args, **kwargs)
        if method is not None:
            print(summary(config))
        if is_cast_run(config):
            for warning in warnings_of(config):
                print(f"[verl_cast] warning: {warning}")
        return result

    module.validate_config = validate_config


def _command_line_overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


@_hook
def _install_estimator_and_loss(module: ModuleType) -> None:
    """Wherever advantages or losses are computed: our estimators and the loss `cast` in verl's two registries."""
    check_seams(module.__name__)
    from verl_cast.estimator import ESTIMATORS
    from verl_cast.policy_loss import compute_policy_loss_cast

    for name, estimator in ESTIMATORS.items():
        module.register_adv_est(name)(estimator)
    module.register_policy_loss("cast")(compute_policy_loss_cast)


@_hook
def _install_trainer(module: ModuleType) -> None:
    """Trainer process: verl's V1 trainers with a self-teacher mixed in, where the run asks for one."""
    check_seams(module.__name__)
    from verl_cast import trainer

    trainer.install(module)


@_hook
def _install_packaged_config(module: ModuleType) -> None:
    """Wherever hydra composes: `cast_trainer` beside verl's own configs (--config-name, or in a defaults list)."""
    from omegaconf import OmegaConf

    packaged = OmegaConf.load(Path(__file__).parent / "hydra_config" / "cast_trainer.yaml")
    module.ConfigStore.instance().store("cast_trainer", packaged, provider="verl_cast")


def _register() -> None:
    if not verl.__version__.startswith(f"{SUPPORTED_VERL}."):
        _report(
            f"verl {verl.__version__} is installed, verl_cast supports {SUPPORTED_VERL}.x; nothing is registered, and "
            f"algorithm.adv_estimator=cast is unknown. Install verl {SUPPORTED_VERL}.x, or a verl_cast for this verl."
        )
        return
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        from verl_cast.platform import cpu

        cpu.install()
    wrapt.register_post_import_hook(_install_packaged_config, "hydra.core.config_store")
    wrapt.register_post_import_hook(_install_config_check, "verl.utils.config")
    wrapt.register_post_import_hook(_install_estimator_and_loss, "verl.trainer.ppo.core_algos")
    wrapt.register_post_import_hook(_install_trainer, "verl.trainer.ppo.v1.trainer_base")


try:
    _register()
except Exception as error:
    _report(f"CAST is not available in process {os.getpid()}: {error}")
    raise
