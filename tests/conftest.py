"""Fixtures for all tests: verl's config, warm ranks, real runs, and the tiny model."""

import copy
import functools
import os
import runpy
import sys
from pathlib import Path

import pytest
import yaml

# Tests must not contact the Hugging Face hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Collects garbage rarely, here and in the processes that tests start.
STARTUP = Path(__file__).parent / "support" / "startup"
runpy.run_path(str(STARTUP / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))

# hydra reads thirty YAML files for each config. libyaml makes the same objects in a third less time.
yaml.SafeLoader = yaml.CSafeLoader


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks tests of real runs as slow, with time to wait for the queue. Runs before pytest's hook selects by -m."""
    for item in items:
        if item.get_closest_marker("runs"):
            item.add_marker("slow")
            item.add_marker(pytest.mark.timeout(1800))


@functools.cache
def _composed(*overrides):
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return hydra_compose("ppo_trainer", overrides=list(overrides))


@pytest.fixture(scope="session")
def compose():
    """compose("key=value", ...) -> the config that `python -m verl.trainer.main_ppo key=value ...` would run."""
    return lambda *overrides: copy.deepcopy(_composed(*overrides))


@pytest.fixture(scope="session")
def runs(request, tmp_path_factory):
    """runs(name) -> the result of a real run. Starts the runs that the selected tests name (queue_of_runs.py)."""
    from queue_of_runs import Queue

    named = {name for item in request.session.items for mark in item.iter_markers("runs") for name in mark.args}
    return Queue(
        sorted(named), tmp_path_factory.mktemp, lambda line: print(f"\n{line}", file=sys.__stdout__, flush=True)
    )


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    """The tiny model, its data and its reward function (tiny.py). Tests must not change them."""
    import tiny

    directory = tmp_path_factory.mktemp("tiny")
    tiny.write(directory)
    return directory
