"""A good command of verl, and its composed config."""

from pathlib import Path

import doctor_runs
import pytest

from verl_cast.tools.run_config import compose


def pytest_collection_modifyitems(items):
    """A tool that hangs is stopped. What verl and Megatron warn of on import is not looked at."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            if not item.get_closest_marker("runs"):  # they wait for the queue
                item.add_marker(pytest.mark.timeout(180))
            item.add_marker(pytest.mark.filterwarnings("ignore::UserWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture(scope="session")
def good_command(tiny_directory, tmp_path_factory):
    """The overrides of a good command, and its environment."""
    return doctor_runs.good_command(tmp_path_factory.mktemp("run"), tiny_directory)


@pytest.fixture(scope="session")
def good_run(good_command):
    return compose(good_command[0])
