"""The tour: the advantages on the screen are verl_cast's, the ones by hand are equal, and the picture shows them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("B", [-2.0, -1.0, -0.4, 0.7, 1.0, 3.0])
def test_the_formula_by_hand_is_the_method(B):
    """In a group without contrast, B is a setting."""
    config = CastConfig.from_dict({"base_correct": abs(B), "base_wrong": abs(B)})
    gaps = torch.tensor([[-3.0, -0.1, 0.0, 0.02, 0.3, 4.0]] * 2, dtype=torch.float64)
    rewards = torch.zeros_like(gaps)
    rewards[:, -1] = float(B > 0)
    found, _ = compute_cast_advantage(rewards, torch.ones_like(gaps), [0, 0], torch.zeros_like(gaps), gaps, config)
    hand = [tour.by_hand(B, g, config) for g in gaps[0].tolist()]
    assert [one[-1] for one in hand] == pytest.approx(found[0].tolist())
    assert [one[0] for one in hand] == [a * B < 0 for a in found[0].tolist()]


def test_the_picture_shows_the_same_tokens(shown):
    text, directory = shown
    assert f"open {directory / 'report.html'} in a browser" in text
    rows, _ = trajectories.read(trajectories.files(directory / trajectories.DIRECTORY)[1])
    assert [a for row in rows for a in row["advantages"]] == pytest.approx(advantages(tour.RESPONSES))
    page = (directory / "report.html").read_text()
    assert tour.PROBLEM in page and '" 32"' in page


def test_without_the_package_it_says_what_to_do(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/usr/bin/env bash\nexit 1\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "examples/tour.sh"], env={**os.environ, "VENV": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "has no verl_cast; run bash examples/setup_cpu.sh first" in done.stderr
