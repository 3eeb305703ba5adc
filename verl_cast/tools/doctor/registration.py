"""Sections "Plugin" and "Ray workers": is CAST registered in this process, and in a fresh Ray worker on every node?

The same probe runs in both places. In a running cluster, a worker has its node's environment, not this shell's. Most
failures come from that: verl_cast is on the head node only, or VERL_USE_EXTERNAL_PLUGINS is set there.
"""

import importlib.metadata
import os
import socket
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

import verl_cast
from verl_cast.tools.cli import cause_of, first_line
from verl_cast.tools.doctor.lines import Line, error, ok, warning

GROUP, NAME, TARGET = "verl.plugins", "cast", "verl_cast.plugin"
_WORKER_SECONDS = 120


def probe() -> dict[str, Any]:
    """The state of a process after `import verl`. Ray workers get this function by value, so its imports are inside."""
    import os
    import sys

    import verl
    from verl.trainer.ppo import core_algos

    plugin = sys.modules.get("verl_cast.plugin")
    return {
        "verl": verl.__version__,
        "policy": os.environ.get("VERL_USE_EXTERNAL_PLUGINS"),
        "verl_cast": None if plugin is None else sys.modules["verl_cast"].__version__,
        "problems": [] if plugin is None else list(plugin.problems),
        "steps_aside": plugin is not None and plugin.steps_aside,
        "registered": "cast" in core_algos.ADV_ESTIMATOR_REGISTRY and "cast" in core_algos.POLICY_LOSS_REGISTRY,
    }


def check_here(found: dict[str, Any]) -> list[Line]:
    """The plugin's entry point, and the verdict on this process's probe."""
    offered = {entry.value for entry in importlib.metadata.entry_points(group=GROUP, name=NAME)}
    if offered != {TARGET}:
        says = f"`{GROUP}: {NAME}` must be {TARGET}, and is {', '.join(sorted(offered)) or 'not offered'}"
        return [error("entry point", f"{says}; pip install verl_cast into verl's environment, and uninstall others.")]
    problems = _problems(found)
    if problems:
        return [error("this process", problem) for problem in problems]
    if found["steps_aside"]:
        aside = "this verl trains CAST itself (verl.experimental.cast), and the plugin steps aside"
        return [warning("this process", f"{aside}. The checks below are the plugin's.")]
    return [ok("this process", f"`{NAME}` is in verl's estimator and loss registries, of {verl_cast.__path__[0]}")]


def _problems(found: dict[str, Any]) -> list[str]:
    if found["verl_cast"] is None:
        if found["policy"] is not None:
            key = f"VERL_USE_EXTERNAL_PLUGINS={found['policy']!r}"
            return [f"{key} keeps verl from loading the plugin `{NAME}`; unset it, or add {NAME} to its list."]
        return [f"verl imported no plugin `{NAME}`; install verl_cast in this verl's environment."]
    if found["problems"] or found["registered"] or found["steps_aside"]:
        return found["problems"]
    return [f"the plugin is loaded, but `{NAME}` is not in verl's registries."]


def check_workers(config: DictConfig | None, here: dict[str, Any]) -> list[Line]:
    """Run the probe in a fresh worker on every node of the cluster that verl's run would use.

    Args:
        config: of the run, which may name a cluster and an environment; None: RAY_ADDRESS, or a new cluster.
        here: this process's probe.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    settings = None if config is None else OmegaConf.select(config, "ray_kwargs.ray_init")
    settings = OmegaConf.to_container(settings, resolve=True) if settings else {}
    address = settings.get("address") or os.environ.get("RAY_ADDRESS")
    try:
        _join(address, settings.get("runtime_env") or {})
    except Exception as problem:  # Ray's failures have many types; all mean the same here
        what = "a cluster cannot be started" if address is None else f"the cluster {address} cannot be joined"
        return [error("Ray", f"{what}: {first_line(cause_of(problem))}")]
    module = sys.modules[__name__]
    try:
        # By value: the probe must also run on a node without verl_cast, or with an older one.
        ray.cloudpickle.register_pickle_by_value(module)
        task, workers = ray.remote(num_cpus=0, max_retries=0)(probe), []
        for node in filter(lambda node: node["Alive"], ray.nodes()):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            workers.append((node["NodeManagerHostname"], task.options(scheduling_strategy=there).remote()))
        return [line for name, reference in workers for line in _lines(name, reference, here)]
    finally:
        ray.cloudpickle.unregister_pickle_by_value(module)
        ray.shutdown()  # disconnects, and stops a cluster that was started here


def _join(address: str | None, runtime_env: dict[str, Any]) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": runtime_env}
    if address not in (None, "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # Ray itself tries an address for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address=address, **quiet)
        return
    try:
        ray.init(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20, include_dashboard=False, **quiet)
    except ValueError:  # a cluster exists (`ray start`): its resources are fixed
        ray.init(**quiet)


def _lines(node: str, reference: Any, here: dict[str, Any]) -> list[Line]:
    """Wait for a worker's probe, and compare it with this process."""
    import ray

    try:
        found = ray.get(reference, timeout=_WORKER_SECONDS)
    except ray.exceptions.RayError as problem:  # of the probe, of the node, or no answer in time
        cause = getattr(problem, "cause", None) or problem
        text = f"{type(cause).__name__}: {first_line(cause)} Install verl and verl_cast on every node."
        return [error(node, text)]
    problems = _problems(found) or [
        f"{name} is {found[name]} there and {here[name]} here; install one version on every node."
        for name in ("verl", "verl_cast")
        if found[name] != here[name]
    ]
    versions = f"verl {here['verl']}, verl_cast {here['verl_cast']}"
    good = ok(node, f"the plugin registers `{NAME}` in a fresh worker ({versions})")
    return [error(node, problem) for problem in problems] or [good]
