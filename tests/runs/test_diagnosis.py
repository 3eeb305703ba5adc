"""The whole `verl-cast diagnose`, once: vLLM samples, verl's reward manager grades, transformers scores."""

import json
import subprocess
import sys

import numpy as np
import pytest
from queue_of_runs import job
from verl_run import command_and_environment

from verl_cast.tools import stats


@job("diagnosis", after=["tiny"])
def diagnosis(directory, runs):
    """The real command, with the whole command of a run."""
    template, out = directory / "shown.jinja", directory / "out"
    options = ["--problems", "6", "--samples", "3", "--contexts", str(template), "--out", str(out)]
    command, environment = command_and_environment(
        directory,
        runs("tiny"),
        "algorithm.adv_estimator=cast",
        "actor_rollout_ref.rollout.temperature=0.7",
        tools=False,
        env={"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    template.write_text("2 + 2 = 4\n{{ problem }}\n")
    command = [sys.executable, "-m", "verl_cast", "diagnose", *options, *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True), out, template


@pytest.mark.runs("diagnosis")
def test_the_whole_diagnosis(runs):
    done, out, template = runs("diagnosis")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    result = json.loads((out / "diagnosis.json").read_text())
    assert [one["context"] for one in result["accuracy"]] == ["student", "plain", str(template)]
    for one in result["accuracy"]:
        by_problem = np.array(one["accuracy_by_problem"])
        assert len(by_problem) == 6 and set(by_problem * 3) <= {0, 1, 2, 3} and 1 <= one["length_mean"] <= 16
        assert one["interval"] == list(stats.accuracy_interval(by_problem, 3))
    assert result["correct"] == round(18 * result["accuracy"][0]["accuracy"])
    gaps = {one["teacher"]: one["gap"]["all"] for one in result["gaps"]["teachers"]}
    assert list(gaps) == ["plain", str(template), "privileged"]
    assert len({one["tokens"] for one in gaps.values()}) == 1 and len({one["mean"] for one in gaps.values()}) == 3
    assert round(18 * result["accuracy"][0]["length_mean"]) == gaps["plain"]["tokens"]
    assert done.stdout.startswith("Accuracy: 6 problems x 3 samples"), "libraries' noise stays off the screen"
    assert "shown.jinja: undecided" in done.stdout, "6 problems decide nothing"
    assert (out / "diagnosis.html").read_text().count('class="plotly-graph-div"') == 3
