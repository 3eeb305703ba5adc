"""The tour: the advantages on the screen are verl_cast's, the ones by hand are equal, and the picture shows them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from verl_cast import CastConfig, trajectories
from verl_cast.advantage import compute_cast_advantage

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import tour  # noqa: E402

ROW = re.compile(
    r"^   (.{7})  +([\d.]+) +([\d.]+) +(\S+) +([+-]) +([\d.]+) +([\d.]+) +(\S+) +(\S+)(   flipped)?$", re.M
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What the script prints, and its directory."""
    directory = tmp_path_factory.mktemp("tour")
    environment = {**os.environ, "VENV": sys.prefix, "OUT": str(directory)}
    done = subprocess.run(["bash", ROOT / "examples/tour.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout, directory


def advantages(responses) -> list[float]:
    """verl_cast's advantages of these responses' tokens, one after the other."""
    rewards, mask, old, teacher = tour.tensors(responses)
    found, _ = compute_cast_advantage(rewards, mask, [0] * len(responses), old, teacher, CastConfig())
    return found[mask.bool()].tolist()


def test_the_printed_advantages_are_verl_casts(shown):
    all_wrong = advantages([(0, tokens) for _, tokens in tour.RESPONSES])
    before = sum(len(tokens) for _, tokens in tour.RESPONSES[:2])
    expected = advantages(tour.RESPONSES) + all_wrong[before : before + len(tour.RESPONSES[2][1])]
    rows = ROW.findall(shown[0])
    assert [float(row[8]) for row in rows] == pytest.approx(expected, abs=5e-4)
    assert [row[7] for row in rows] == [row[8] for row in rows], "by hand"
    assert 0 < sum(bool(row[9]) for row in rows) < len(rows)
    for row in rows:  # in every line: s is the sign of the advantage, and w lies within the bounds that the text names
        assert row[4] == row[8][0] and (0.8 <= float(row[6]) <= 1.05 if row[4] == "+" else 0.95 <= float(row[6]) <= 1.2)
    assert "kept in [0.8, 1.05] for s = +, in [0.95, 1.2] for s = -." in shown[0]


def test_the_picture_shows_the_same_tokens(shown):
    text, directory = shown
    assert f"open {directory / 'report.html'} in a browser" in text
    rows, _ = trajectories.read(trajectories.files(directory / trajectories.DIRECTORY)[1])
    assert [a for row in rows for a in row["advantages"]] == pytest.approx(advantages(tour.RESPONSES))
    page = (directory / "report.html").read_text()
    assert tour.PROBLEM in page and '" 32"' in page
