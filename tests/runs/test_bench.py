"""One round of the step benchmark, on the tiny model: its overrides fit the training, and its table has every arm."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from queue_of_runs import job

ROOT = Path(__file__).parents[2]
ARMS = ["grpo", "one_pass", "two_pass"]


@job("bench", seconds=150)
def bench(directory, runs):
    out = directory / "bench.jsonl"
    command = [sys.executable, "tests/benchmarks/bench_steps.py", "--rounds", "1", "--out", str(out), "base"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True), out


@pytest.mark.runs("bench")
def test_a_round_of_the_benchmark_ends_with_a_table_of_all_arms(runs):
    done, out = runs("bench")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    title, *rows = re.search(r"^seconds .*(?:\n.+)+", done.stdout, re.MULTILINE).group().splitlines()
    assert title.split() == ["seconds", *ARMS]
    cells = {row[:18].strip(): row[18:] for row in rows}
    grpo, one_pass, two_pass = map(float, cells["update_actor"].split())
    assert min(grpo, one_pass, two_pass) > 0
    teacher = [float(cell) for cell in cells["cast_teacher"].split()]
    assert teacher[0] == 0 and min(teacher[1:]) > 0, "only CAST's arms run the teacher's pass"
    assert len(re.findall(r"\(worst \d", cells["ratio to GRPO"])) == 3
    assert len(json.loads(out.read_text())["steps"]) == 6, "two rounds of three arms, the first as warm-up"
