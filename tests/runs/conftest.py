"""What the tests of whole runs share."""

import pytest


@pytest.fixture
def ended(runs):
    """ended(name): a run of cast_runs.py, whose exit status must be `expected`."""

    def ended_(name, expected=0):
        run = runs(name)
        assert run.returncode == expected, run.output[-5000:]
        return run

    return ended_
