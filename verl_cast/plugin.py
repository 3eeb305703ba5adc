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
from verl_cast.seams import UnsupportedVerl, check_seams, check_version, has_cast, has_hooks

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
    """Driver: check the run before Ray starts."""
    check_seams(module.__name__)
    from verl_cast.training.attach import check_before_run

    check_before_run(module, problems)


@_hook
def _install_estimator_and_loss(module: ModuleType) -> None:
    """Processes that compute advantages or losses: our estimators and the loss `cast` in verl's two registries."""
    check_seams(module.__name__)
    from verl_cast.training.attach import register

    register(module)


@_hook
def _install_trainer(module: ModuleType) -> None:
    """Trainer process: verl's V1 trainers, with a self-teacher mixed in where the run asks for one."""
    check_seams(module.__name__)
    if not has_hooks():
        from verl_cast.training.attach import choose_trainers

        choose_trainers(module)


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
    try:
        check_version(verl.__version__)
    except UnsupportedVerl as error:
        _report(f"{error} Nothing is registered, and algorithm.adv_estimator=cast is unknown.")
        return
    if is_cpu():
        from verl_cast.platform import cpu

        cpu.install()
    if has_cast():
        _step_aside()
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
