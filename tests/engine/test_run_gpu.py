"""Laws of `tests/run_gpu.sh`, as far as a CPU can show them: every part runs, and what fails or is skipped is told."""

import json
import subprocess
from pathlib import Path

import first_gpu
import pytest
import torch
from engine_laws import LAWS
from queue_of_runs import job

ROOT = Path(__file__).parents[2]


@job("run_gpu", seconds=40)
def run_gpu(directory, runs):
    layouts = ("fsdp2, bf16", "fsdp2, bf16, flash-attn")
    command = ["bash", "tests/run_gpu.sh", "--device", "cpu", "--out", directory / "gpu.json", "--layouts", *layouts]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True), directory / "gpu.json"


@pytest.mark.runs("run_gpu")
def test_one_command_gives_one_table(runs):
    done, out = runs("run_gpu")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["laws"] == {"fsdp2, bf16": True} and found["failed"] == {}
    assert found["skipped"].keys() == {"laws: fsdp2, bf16, flash-attn", "peak memory"}
    table = done.stdout[done.stdout.index("| what | found |") :]
    assert f"| laws: fsdp2, bf16 | {len(LAWS)} hold |" in table and "| peak memory | skipped" in table
    # The engine's own noise is far below the gap, and a swap moves four shards: it cannot be faster than the copies.
    assert 0 <= found["noise_p99_same"] < found["gap_abs_mean"] and found["swap_pinned_ratio"] > 0.5
    assert found["gap_one_pass_minus_two_abs_mean"] == 0 and found["weights_one_pass_minus_two_abs_max"] == 0
    assert found["weights_step_abs_max"] > 0
    for name in ("step_one_pass_ratio", "step_two_passes_ratio", "refresh_pageable_seconds", "to_host_gbs"):
        assert found[name] > 0 and name in table


def test_a_part_that_fails_is_told(tmp_path):
    arguments = ["--part", "no such part", "tiny", str(tmp_path)]
    found, problem = first_gpu.run_part(arguments, first_gpu.environment_of("cpu"), tmp_path / "log")
    assert found is None and "KeyError: 'no such part'" in problem and str(tmp_path / "log") in problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_stops_at_once():
    done = subprocess.run(["bash", "tests/run_gpu.sh"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no NVIDIA GPU is visible" in done.stderr and "--device cpu" in done.stderr
