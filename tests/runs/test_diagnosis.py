"""The whole `verl-cast diagnose`, once: vLLM samples, verl's reward manager grades, transformers scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from queue_of_runs import job

from verl_cast.tools import stats


@job("diagnosis", after=["tiny"])
def diagnosis(directory, runs):
    """The real command."""
    template, tiny = directory / "shown.jinja", runs("tiny")
    template.write_text("2 + 2 = 4\n{{ problem }}\n")
    command = [str(Path(sys.executable).with_name("verl-cast")), "diagnose", "--problems", "6", "--samples", "3"]
    command += ["--contexts", str(template), "--out", str(directory / "out")]
    command += [
        "algorithm.adv_estimator=cast",
        f"data.train_files={tiny}/train.parquet",
        f"data.val_files={tiny}/train.parquet",
        "data.max_prompt_length=64",
        "data.max_response_length=12",
        f"actor_rollout_ref.model.path={tiny}/model",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.temperature=0.7",
        "actor_rollout_ref.rollout.dtype=float32",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.rollout.enforce_eager=True",
        f"reward.custom_reward_function.path={tiny}/reward.py",
    ]
    environment = {
        **os.environ,
        "VERL_PLATFORM": "cpu",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done, directory / "out", template


@pytest.mark.runs("diagnosis")
def test_the_whole_diagnosis(runs):
    done, out, template = runs("diagnosis")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    result = json.loads((out / "diagnosis.json").read_text())
    assert [one["context"] for one in result["accuracy"]] == ["student", "plain", str(template)]
    for one in result["accuracy"]:
        by_problem = np.array(one["accuracy_by_problem"])
        assert len(by_problem) == 6 and set(by_problem * 3) <= {0, 1, 2, 3} and 1 <= one["length_mean"] <= 12
        assert one["interval"] == list(stats.accuracy_interval(by_problem, 3))
    assert result["correct"] == round(18 * result["accuracy"][0]["accuracy"])
    gaps = {one["teacher"]: one["gap"]["all"] for one in result["gaps"]["teachers"]}
    assert list(gaps) == ["plain", str(template), "privileged"]
    assert len({one["tokens"] for one in gaps.values()}) == 1 and len({one["mean"] for one in gaps.values()}) == 3
    assert round(18 * result["accuracy"][0]["length_mean"]) == gaps["plain"]["tokens"]
    assert "teacher (shown.jinja)" in done.stdout and "undecided" in done.stdout  # 6 problems decide nothing
    assert (out / "diagnosis.html").read_text().count('class="plotly-graph-div"') == 4
