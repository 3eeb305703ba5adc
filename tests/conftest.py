"""Shared by all tests: verl's own config, composed as its command line composes it."""

import os
import sys

import pytest

# Hugging Face code must never look for a hub here.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests of real runs are slow and wait for the queue (before pytest's own hook selects by -m)."""
    for item in items:
        if item.get_closest_marker("runs"):
            item.add_marker("slow")
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture
def compose():
    """compose("key=value", ...) -> the config that `python -m verl.trainer.main_ppo key=value ...` would run."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    def compose_(*overrides):
        with initialize_config_module("verl.trainer.config", version_base=None):
            return hydra_compose("ppo_trainer", overrides=list(overrides))

    return compose_


@pytest.fixture(scope="session")
def warm_process():
    """Forks ranks of verl's actor worker (ranks.py)."""
    from ranks import WarmProcess

    with WarmProcess() as warm:
        yield warm


@pytest.fixture(scope="session")
def runs(request, tmp_path_factory):
    """Name of a real run -> its result. Those that the selected tests name are started here (queue_of_runs.py)."""
    from queue_of_runs import Queue

    named = {name for item in request.session.items for mark in item.iter_markers("runs") for name in mark.args}
    return Queue(
        sorted(named), tmp_path_factory.mktemp, lambda line: print(f"\n{line}", file=sys.__stdout__, flush=True)
    )


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    """The tiny model, its data and its reward function (tiny.py); to be read only."""
    import tiny

    directory = tmp_path_factory.mktemp("tiny")
    tiny.write(directory)
    return directory
