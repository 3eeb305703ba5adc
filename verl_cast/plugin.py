"""What verl imports through its entry-point group `verl.plugins`, in every process that imports verl.

Importing this module registers CAST; importing it again does nothing. On a verl that has CAST itself it steps aside. It
stays cheap: what concerns a module of verl that is not loaded yet waits until it is (wrapt's post-import hooks). verl
logs an exception of a plugin at DEBUG only. Here every failure is logged as an error, kept in `problems`, and ends a
run that asks for CAST.
"""

import functools
import importlib
import logging
import os
from pathlib import Path
from types import ModuleType

import verl
import wrapt

from verl_cast.platform import is_cpu
from verl_cast.seams import SUPPORTED_VERL, check_seams, has_cast, has_hooks

logger = logging.getLogger("verl_cast")

_STEPPED_ASIDE = "VERL_CAST_STEPPED_ASIDE"

# Why CAST is not available in this process; empty where it is.
problems: list[str] = []
# This verl trains CAST itself, and nothing is registered.
steps_aside = False


def _hook(install):
    """A post-import hook that runs once per module. It records a failure, and breaks no run without CAST."""

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
    """Driver: check the run before Ray starts. verl's main calls validate_config first."""
    check_seams(module.__name__)
    stock = module.validate_config

    @functools.wraps(stock)
    def validate_config(config, *args, **kwargs):
        from verl_cast.checks.advice import warnings_of
        from verl_cast.checks.run import apply_method_defaults, check_run, summary
        from verl_cast.config.methods import is_cast_run, method_class

        method = method_class(config)
        if method is not None:
            if problems:
                raise RuntimeError(f"algorithm.adv_estimator={method.NAME}: {problems[0]}")
            for change in apply_method_defaults(config):
                print(f"[verl_cast] {change}")
        check_run(config)
        if method is not None and has_hooks():
            from verl_cast.training.by_name import name_trainer

            name_trainer(config)
        result = stock(config, *args, **kwargs)
        if method is not None:
            print(summary(config))
        if is_cast_run(config):
            for warning in warnings_of(config):
                print(f"[verl_cast] warning: {warning}")
        return result

    module.validate_config = validate_config


@_hook
def _install_estimator_and_loss(module: ModuleType) -> None:
    """Processes that compute advantages or losses: our estimators and the loss `cast` in verl's two registries."""
    check_seams(module.__name__)
    from verl_cast.training.estimator import BATCH_FIELDS, ESTIMATORS
    from verl_cast.training.policy_loss import compute_policy_loss_cast
    from verl_cast.training.stock_verl.batch_fields import with_fields_laid_out

    hooked = has_hooks()
    for name, estimator in ESTIMATORS.items():
        if hooked:
            module.register_adv_est(name, batch_fields=BATCH_FIELDS)(estimator)
        else:
            module.register_adv_est(name)(with_fields_laid_out(estimator))
    module.register_policy_loss("cast")(compute_policy_loss_cast)


@_hook
def _install_trainer(module: ModuleType) -> None:
    """Trainer process: verl's V1 trainers, with a self-teacher mixed in where the run asks for one."""
    check_seams(module.__name__)
    if not has_hooks():
        from verl_cast.training.stock_verl import classes

        classes.install(module)


@_hook
def _install_agent_loop(module: ModuleType) -> None:
    """Processes that run agent loops: the one that measures the teacher (trust=measured), in verl's registry."""
    check_seams(module.__name__)
    importlib.import_module("verl_cast.training.teacher_rollout")


@_hook
def _install_packaged_config(module: ModuleType) -> None:
    """Processes that compose configs: `cast_trainer` beside verl's own (--config-name, or in a defaults list)."""
    from omegaconf import OmegaConf

    packaged = OmegaConf.load(Path(__file__).parent / "config" / "cast_trainer.yaml")
    module.ConfigStore.instance().store("cast_trainer", packaged, provider="verl_cast")


def _register() -> None:
    is_supported = verl.__version__.startswith(f"{SUPPORTED_VERL}.")
    if is_supported and is_cpu():
        from verl_cast.platform import cpu

        cpu.install()
    if has_cast():
        _step_aside()
        return
    if not is_supported:
        _report(
            f"verl {verl.__version__} is installed, verl_cast supports {SUPPORTED_VERL}.x; nothing is registered, and "
            f"algorithm.adv_estimator=cast is unknown. Install verl {SUPPORTED_VERL}.x, or a verl_cast for this verl."
        )
        return
    wrapt.register_post_import_hook(_install_packaged_config, "hydra.core.config_store")
    wrapt.register_post_import_hook(_install_config_check, "verl.utils.config")
    wrapt.register_post_import_hook(_install_estimator_and_loss, "verl.trainer.ppo.core_algos")
    wrapt.register_post_import_hook(_install_agent_loop, "verl.experimental.agent_loop.agent_loop")
    wrapt.register_post_import_hook(_install_trainer, "verl.trainer.ppo.v1.trainer_base")


def _step_aside() -> None:
    """Says so once in a tree of processes: those that this one starts inherit the mark."""
    global steps_aside
    steps_aside = True
    if os.environ.setdefault(_STEPPED_ASIDE, str(os.getpid())) == str(os.getpid()):
        logger.warning(
            "[verl_cast] this verl trains CAST itself (verl.experimental.cast). verl_cast steps aside: it registers "
            "neither CAST nor the baselines (opsd, grpo_opsd, rlsd, rlrt). Its CPU platform and the tools that read a "
            "run work on; its scripts are for stock verl."
        )


try:
    _register()
except Exception as error:
    _report(f"CAST is not available in process {os.getpid()}: {error}")
    raise
