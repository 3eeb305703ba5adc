"""A good command of verl, and its composed config."""

from pathlib import Path

import pytest
from verl_run import command_and_environment

from verl_cast.tools.run_config import compose


def pytest_collection_modifyitems(items):
    """A tool that hangs is stopped. What verl and Megatron warn of on import is not looked at."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(180))
            item.add_marker(pytest.mark.filterwarnings("ignore::UserWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture(scope="session")
def good_command(tiny_directory, tmp_path_factory):
    """The overrides of a good command, and its environment."""
    arguments, environment = command_and_environment(
        tmp_path_factory.mktemp("run"),
        tiny_directory,
        "algorithm.adv_estimator=cast",
        "+algorithm.cast.trust=measured",  # a run that is warned of nothing
        "trainer.total_training_steps=30",
        "trainer.total_epochs=2",
        tools=False,
    )
    return arguments[3:], environment


@pytest.fixture(scope="session")
def good_run(good_command):
    return compose(good_command[0])
