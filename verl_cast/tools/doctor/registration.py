"""Sections "Plugin" and "Ray workers": is CAST registered in this process, and in a fresh Ray worker on every node?

The same probe runs in both places. In a running cluster, a worker has its node's environment, not this shell's. Most
failures come from that: verl_cast is on the head node only, or VERL_USE_EXTERNAL_PLUGINS is set there.
"""

import contextlib
import importlib.metadata
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import verl_cast
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, ok, warning

GROUP, NAME, TARGET = "verl.plugins", "cast", "verl_cast.plugin"
_POLICY = "VERL_USE_EXTERNAL_PLUGINS"
_WORKER_SECONDS = 120


def probe() -> dict[str, Any]:
    """The state of a process after `import verl`. Ray workers get this function by value, so its imports are inside."""
    import os
    import socket
    import sys

    import verl
    from verl.trainer.ppo import core_algos

    plugin = sys.modules.get("verl_cast.plugin")
    return {
        "host": socket.gethostname(),
        "verl": verl.__version__,
        "policy": os.environ.get("VERL_USE_EXTERNAL_PLUGINS"),
        "loaded": plugin is not None,
        "verl_cast": None if plugin is None else sys.modules["verl_cast"].__version__,
        "problems": [] if plugin is None else list(plugin.problems),
        "steps_aside": plugin is not None and plugin.steps_aside,
        "registered": "cast" in core_algos.ADV_ESTIMATOR_REGISTRY and "cast" in core_algos.POLICY_LOSS_REGISTRY,
    }


def check_entry_point() -> list[Line]:
    """Whether verl will find the plugin, from installed metadata only."""
    offered = {
        distribution.metadata["Name"]: (distribution.version, entry_point.value)
        for distribution in importlib.metadata.distributions()
        for entry_point in distribution.entry_points.select(group=GROUP, name=NAME)
    }
    here, lines = Path(verl_cast.__file__).parent, []
    if not offered:
        nothing = f"no installed distribution offers `{GROUP}: {NAME}`, so verl never loads the plugin"
        return [error("entry point", f"{nothing}; pip install {here.parent}.")]
    for name, (version, value) in offered.items():
        if value != TARGET:
            lines.append(error("entry point", f"{name} {version} points at {value}, not at {TARGET}; uninstall it."))
        elif version != verl_cast.__version__:
            other = f"the metadata of {name} say {version}, but the package in {here} is {verl_cast.__version__}"
            lines.append(warning("entry point", f"{other}; install it again."))
        else:
            lines.append(ok("entry point", f"`{GROUP}: {NAME}` = {TARGET}, of {name} {version} in {here}"))
    if len(offered) > 1:
        lines.append(warning("entry point", f"{len(offered)} distributions offer it: {', '.join(offered)}; keep one."))
    return lines


def check_here(found: dict[str, Any]) -> list[Line]:
    """The verdict on this process's own probe."""
    problems = _problems(found)
    if problems:
        return [error("this process", problem) for problem in problems]
    if found["steps_aside"]:
        return [
            warning(
                "this process",
                "this verl trains CAST itself (verl.experimental.cast), and the plugin steps aside. The checks below "
                "are the plugin's; verl's own have no dump and no baselines.",
            )
        ]
    return [ok("this process", "`cast` is in verl's estimator and loss registries")]


def _problems(found: dict[str, Any]) -> list[str]:
    if not found["loaded"]:
        policy = found["policy"]
        if policy is not None and policy.strip().lower() != "auto":
            return [
                f"{_POLICY}={policy!r} keeps verl from loading the plugin `{NAME}`, and a run with "
                f"adv_estimator=cast fails with an unknown estimator; unset it, or add {NAME} to its list."
            ]
        return [f"verl imported no plugin `{NAME}`; install verl_cast in this verl's environment."]
    if found["problems"]:
        return list(found["problems"])
    if found["registered"] or found["steps_aside"]:
        return []
    return ["the plugin is loaded, but `cast` is not in verl's registries."]


@contextlib.contextmanager
def ray_workers(address: str | None, runtime_env: dict[str, Any] | None) -> Iterator[list[tuple[str, Any]]]:
    """Start a probe in a fresh worker on every live node of the cluster that verl's run would use.

    Yields:
        (node name, reference to the probe's result) per node; the workers run in the background.
        Afterwards this process is disconnected, and a cluster that it started is shut down.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    quiet = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": runtime_env or {}}
    if address not in (None, "local"):
        _check_reachable(address)
        ray.init(address=address, **quiet)
    else:
        try:
            ray.init(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20, include_dashboard=False, **quiet)
        except ValueError:  # a cluster exists (RAY_ADDRESS or `ray start`): its resources are fixed
            ray.init(**quiet)
    try:
        # By value: the probe must also run on a node without verl_cast, or with an older one.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        task = ray.remote(num_cpus=0, max_retries=0)(probe)
        workers = []
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                workers.append((node["NodeManagerHostname"], task.options(scheduling_strategy=there).remote()))
        yield workers
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Fail early where nothing answers: Ray itself tries an address for minutes.

    Raises:
        ConnectionError: nothing answers there within 5 seconds.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # auto, or a form that only Ray can parse
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as problem:
        raise ConnectionError(f"nothing answers at {address} ({problem.strerror or problem})") from None


def check_workers(workers: list[tuple[str, Any]], here: dict[str, Any]) -> list[Line]:
    """Wait for the workers' probes and compare them with this process."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    lines, good = [], []
    for node, reference in workers:
        try:
            found = ray.get(reference, timeout=_WORKER_SECONDS)
        except GetTimeoutError:
            lines.append(error(node, f"no answer in {_WORKER_SECONDS} s; see that node's Ray logs."))
            continue
        except RayError as problem:
            # A RayTaskError wraps the probe's own error; the others (such as a dead node) are Ray's.
            cause = problem.cause if isinstance(problem, RayTaskError) else problem
            text = f"{type(cause).__name__}: {first_line(cause)} Install verl and verl_cast on every node."
            lines.append(error(node, text))
            continue
        problems = _problems(found) + [
            f"{name} is {found[name]} there and {here[name]} here; install one version on every node."
            for name in ("verl", "verl_cast")
            if found["loaded"] and found[name] != here[name]
        ]
        lines += [error(node, problem) for problem in problems]
        if not problems:
            good.append(node)
    if good:
        nodes = good[0] if len(good) == 1 else f"{len(good)} nodes"
        found = f"verl {here['verl']}, verl_cast {here['verl_cast']}"
        registers = "steps aside" if here["steps_aside"] else "registers `cast`"
        lines.append(ok(nodes, f"the plugin {registers} in a fresh worker ({found})"))
    return lines
