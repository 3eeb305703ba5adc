"""The README's first command, with two steps: it trains a real pretrained model and ends with one screen of results.

A run that is there is never erased: it is kept, resumed, moved aside or refused. Stand-ins for python show this.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from queue_of_runs import job

from verl_cast.checks.run import check_run
from verl_cast.config.methods import cast_config
from verl_cast.tools import run_config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "quickstart.sh"
sys.path.insert(0, str(ROOT / "examples" / "quickstart"))

import watch  # noqa: E402
from reward import compute_score  # noqa: E402


@job("quickstart", seconds=300, memory_gb=14)
def quickstart(directory, runs):
    """Four prompts instead of the six of a user's step, half the responses of its measurement, no noise floor."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"VENV": sys.prefix, "OUT": str(directory), "STEPS": "2"}
    fewer = ["data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    fewer += ["++algorithm.cast.trust_responses=64", "++algorithm.cast.noise_floor_interval=null"]
    command = ["bash", str(SCRIPT), *fewer]
    return subprocess.run(command, env=environment, capture_output=True, text=True), directory


@pytest.mark.runs("quickstart")
def test_the_quick_start_trains_and_shows_one_screen(runs):
    done, out = runs("quickstart")
    log = out / "cast" / "train.log"
    assert done.returncode == 0, (
        done.stdout[-3000:] + done.stderr[-3000:] + (log.read_text()[-5000:] if log.exists() else "")
    )
    for words in (
        "[3/4] training (",
        "s/step  left",
        "CAST: 2 steps",
        "flipped, correct responses",
        "teacher trusted in 2 of 2 steps",
        "self-teacher",
        "checkpoint  " + str(out / "cast" / "checkpoints" / "global_step_2"),
        "Next:",
    ):
        assert words in done.stdout
    assert (out / "report.html").stat().st_size > 100_000
    assert (out / "cast" / "reward.png").stat().st_size > 10_000
    metrics = watch.read_metrics(out / "cast")
    assert len(metrics) == 2
    # The worked examples make the model better, by far, and the first step measures it.
    assert metrics[0][watch.TEACHER_SHARE] - metrics[0][watch.POLICY_SHARE] > 0.3
    assert [m[watch.TRUSTED] for m in metrics] == [1, 1] and watch.TEACHER_SHARE not in metrics[1]
    # The difficulty suits the model: at least a third of the groups are mixed in the first steps.
    assert all(m["cast/group/mixed_share"] >= 1 / 3 for m in metrics)


# -------------------------------------------------------------------------------------------------------------- dry run


def dry_run(*arguments, **environment):
    command = ["bash", str(SCRIPT), *arguments]
    environment = {**os.environ, "DRY_RUN": "1", "PATH": "/usr/bin:/bin", **environment}  # no python
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


@pytest.mark.parametrize(
    ("environment", "context"), [({}, "teacher.jinja"), ({"TEACHER": "plain"}, "plain"), ({"ADV": "grpo"}, None)]
)
def test_a_dry_run_prints_a_command_that_trains(tmp_path, environment, context, monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    words = dry_run("data.seed=2", OUT=str(tmp_path / "out"), **environment)
    assert words[0] == "env" and "VERL_PLATFORM=cpu" in words and not (tmp_path / "out").exists()
    config = run_config.compose(words[words.index("verl.trainer.main_ppo") + 1 :])
    check_run(config)
    assert config.data.seed == 2
    if context:
        method = cast_config(config)
        assert (method.trust, method.flip, Path(method.teacher.context).name) == ("measured", "both", context)


def test_the_twin_differs_in_the_method_and_in_names():
    cast, grpo = (set(dry_run(ADV=adv)) for adv in ("cast", "grpo"))
    differing = [word for word in cast ^ grpo if "algorithm." not in word]
    assert all("/cast" in word or "/grpo" in word or word.endswith(("=cast", "=grpo")) for word in differing)
    assert not any("algorithm.cast" in word for word in grpo)


# -------------------------------------------------------------------------------------------------- runs that are there

# In place of verl: trains from the newest checkpoint on, writes metrics and, at the end, a checkpoint.
TRAINING = """
import json, os, pathlib, sys
overrides = dict(word.split("=", 1) for word in sys.argv[1:])
checkpoints = pathlib.Path(overrides["trainer.default_local_dir"])
newest = checkpoints / "latest_checkpointed_iteration.txt"
with open(checkpoints.parent / "metrics.jsonl", "wb", buffering=0) as metrics:
    steps = int(overrides["trainer.total_training_steps"])
    for step in range(int(newest.read_text()) + 1 if newest.exists() else 1, steps + 1):
        if os.environ.get("FAILS_AT") == str(step):
            sys.exit("verl_cast.x.SomeError: the reason")
        data = {"critic/score/mean": 0.5, "response_length/mean": 4.0, "timing_s/step": 1.0}
        metrics.write((json.dumps({"step": step, "data": data}, separators=(",", ":")) + "\\n").encode())
checkpoints.mkdir(exist_ok=True)
newest.write_text(str(steps))
"""


@pytest.fixture
def start(tmp_path):
    """start("a.b=c", STEPS="4") runs the script with stand-ins for verl, prepare.py and the report."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (tmp_path / "training.py").write_text(TRAINING)
    programs = {
        "python": f"""case "$*" in
          *watch.py*) exec {sys.executable} "$@" ;;
          *main_ppo*) shift 2; exec {sys.executable} {tmp_path / "training.py"} "$@" ;;
        esac""",
        "verl-cast": 'echo "$@: $(wc -l <"$2/metrics.jsonl") steps"',
    }
    for name, body in programs.items():
        (venv / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (venv / "bin" / name).chmod(0o755)
    made_from = "cat examples/requirements-cpu.txt pyproject.toml examples/setup_cpu.sh | cksum; pwd"  # setup_cpu.sh's
    stamp = subprocess.run(["bash", "-c", made_from], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (venv / ".verl_cast_stamp").write_text(stamp)

    def start_(*arguments, **environment):
        environment = {**os.environ, "VENV": str(venv), "OUT": str(tmp_path / "out"), "ADV": "grpo", **environment}
        return subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)

    return start_


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_is_kept(start, tmp_path):
    run = tmp_path / "out" / "grpo"
    assert start(STEPS="3").returncode == 0 and steps_of(run) == [1, 2, 3]
    before = contents(run)
    for steps in ("3", "2"):
        done = start(STEPS=steps)
        assert done.returncode == 0 and contents(run) == before
        assert f"{run} is finished (3 steps) and is kept." in done.stdout and "training" not in done.stdout
        assert f"report {run} -o" in done.stdout
    # The remedy can be pasted.
    anew = done.stdout.split("Start anew with:   ")[1].split("   or   ")[0]
    again = subprocess.run(["bash", "-c", f"DRY_RUN=1 {anew}"], cwd=ROOT, capture_output=True, text=True)
    assert f"trainer.default_local_dir={tmp_path}/out/grpo_2/checkpoints" in shlex.split(again.stdout)


def test_more_steps_resume_a_finished_run(start, tmp_path):
    """Also after a failure: its steps after the checkpoint are made again."""
    run = tmp_path / "out" / "grpo"
    start(STEPS="2")
    failed = start(STEPS="5", FAILS_AT="4")
    assert "The run ended after 3 of 5 steps:\n  verl_cast.x.SomeError: the reason" in failed.stdout
    assert failed.returncode == 1 and steps_of(run) == [1, 2, 3]
    done = start(STEPS="5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{run} has a checkpoint of step 2: the run goes on from there." in done.stdout
    assert steps_of(run) == [1, 2, 3, 4, 5] and "GRPO: 5 steps" in done.stdout
    assert "report.html: 5 steps" in done.stdout
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "command.txt",
        "metrics.jsonl",
        "reward.png",
        "train.log",
    }


def test_an_unfinished_run_without_a_checkpoint_is_moved_aside(start, tmp_path):
    run = tmp_path / "out" / "grpo"
    assert start(STEPS="3", FAILS_AT="2").returncode == 1 and steps_of(run) == [1]
    before = contents(run)
    done = start(STEPS="3")
    assert done.returncode == 0 and steps_of(run) == [1, 2, 3]
    assert f"has no checkpoint: it is moved to {run.parent}/unfinished/." in done.stdout
    (moved,) = (run.parent / "unfinished").iterdir()
    assert contents(moved) == before


def test_another_command_in_a_runs_directory_is_refused(start, tmp_path):
    run = tmp_path / "out" / "grpo"
    start("data.seed=3", STEPS="1")
    before = contents(run)
    done = start("data.seed=4", STEPS="1")
    assert done.returncode == 2 and contents(run) == before and done.stdout == ""
    assert "  now: data.seed=4\n  then: data.seed=3\n" in done.stderr
    remedy = done.stderr.split("remove it:   ")[1].split("   or   ")
    assert shlex.split(remedy[0])[-1] == "data.seed=4" and shlex.split(remedy[1]) == ["rm", "-r", str(run)]
    (run / "command.txt").unlink()  # nobody knows whose run it is
    assert start("data.seed=3", STEPS="1").returncode == 2


def test_a_run_that_is_running_is_left_alone(start, tmp_path):
    run = tmp_path / "out" / "grpo"
    run.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()", "main_ppo"], stdin=subprocess.PIPE) as running:
        (run / "pid").write_text(str(running.pid))
        done = start()
        running.communicate(b"\n")
    assert done.returncode == 2 and f"process {running.pid} is writing {run}" in done.stderr


@pytest.mark.parametrize(
    ("toggle", "words"),
    [
        ("ADV=rloo", "ADV=rloo is unknown; use cast or grpo"),
        ("STEPS=0", "STEPS=0 is no number"),
        ("DRY_RUN=y", "DRY_RUN=y is"),
    ],
)
def test_a_wrong_toggle_is_refused_in_a_sentence(start, tmp_path, toggle, words):
    done = start(**dict([toggle.split("=")]))
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ verifier, environment


@pytest.mark.parametrize(
    "response, truth, score",
    [
        ("3 + 4 = 7", "7", 1.0),
        ("The answer is 7.", "7", 1.0),
        ("7 + 3 = 10", "7", 0.0),
        ("none", "7", 0.0),
        ("-7", "7", 0.0),
    ],
)
def test_the_verifier(response, truth, score):
    assert compute_score("", response, truth)["score"] == score


def python_of_version(path, version):
    """A program that runs the script's own check as Python of this version would, and then can do nothing else."""
    path.parent.mkdir(exist_ok=True)
    code = f'exec {sys.executable} -c "import sys; sys.version_info = ({version}, 1)\n$2"'
    path.write_text(f'#!/bin/bash\n[ "$1" = -c ] || exit 7\n{code}\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version, fits", [("3, 10", False), ("3, 11", True), ("3, 12", True), ("3, 13", False)])
@pytest.mark.parametrize("named", [True, False])
def test_the_environment_takes_python_3_11_and_3_12(tmp_path, version, fits, named):
    """The environment itself is not made here: the program ends when it is asked for one."""
    python = python_of_version(tmp_path / "bin" / ("mine" if named else "python3"), version)
    for name in [] if named else ["python3.11", "python3.12", "python"]:
        python_of_version(tmp_path / "bin" / name, "3, 10")  # this machine's own must not be found
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "VENV": str(tmp_path / "venv")}
    environment |= {"PYTHON": str(python)} if named else {}
    command = ["bash", str(ROOT / "examples" / "setup_cpu.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if fits:
        assert done.returncode == 7 and f"making {tmp_path / 'venv'} with {python} (" in done.stdout
    else:
        assert done.returncode == 1 and "none is Python 3.11 or 3.12; install one, or name it: PYTHON=" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_the_quick_start_says_first_what_it_needs(tmp_path):
    environment = {**os.environ, "PYTHON": "/no/python", "VENV": str(tmp_path / "venv"), "OUT": str(tmp_path / "out")}
    done = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "none is Python 3.11 or 3.12" in done.stderr
    needs, _ = done.stdout.split("[1/4] environment (0 min ")
    for words in ("2 cores, 16 GB of memory and 8 GB of disk", "11 to 20 minutes", "Equal runs differ: vLLM samples"):
        assert words in needs
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------- table, screen


def test_a_step_says_about_how_long_the_rest_takes():
    metrics = [{"timing_s/step": seconds} for seconds in (60.0, 20.0, 10.0, 12.0)]
    assert watch.left(metrics, 12) == "2 min"  # 8 steps of 14 s
    assert watch.left(metrics, 6) == "28 s" and watch.left(metrics, 4) == "0 s" and watch.left(metrics[:1], 2) == "60 s"


USUAL = {"critic/score/mean": 0.0, "response_length/mean": 12.0, "timing_s/step": 30.0}
CAST = USUAL | {
    f"cast/group/{kind}_share": float(kind == "all_wrong") for kind in ("mixed", "all_correct", "all_wrong")
}
GAP = {"cast/flip/wrong_share": 0.25, "cast/gap/mean": -0.5, "cast/gap/abs_mean": 0.5}


def test_the_table_says_whether_the_teacher_was_trusted():
    steps = [CAST | GAP | {watch.TRUSTED: 1.0}, CAST | {watch.TRUSTED: 0.0}, CAST | GAP, USUAL]
    rows = [watch.row(step, m) for step, m in enumerate(steps, start=1)]
    assert [text[14:23].strip() for text in rows] == ["trusted", "no: GRPO", "–", ""]
    assert watch.HEADER[14:23].split() == ["teacher"]
    assert len({len(text) for text in rows}) == 1 and len(watch.HEADER) == len(rows[0]) + len("  left")


def test_the_screen_shows_the_measurements(tmp_path):
    measured = {watch.TEACHER_SHARE: 0.91, watch.POLICY_SHARE: 0.31, "cast/trust/standard_errors": 9.5}
    metrics = [CAST | GAP | {watch.TRUSTED: 1.0} | measured, CAST | {watch.TRUSTED: 0.0}]
    run = tmp_path / "cast"
    run.mkdir()
    screen = watch.screen(run, metrics)
    assert "teacher trusted in 1 of 2 steps" in screen and "before step 1    teacher 0.91, policy 0.31: 9.5" in screen
    assert "trusted" not in watch.screen(run, [CAST | GAP])  # trust=always


def test_a_step_without_correct_responses_is_shown(tmp_path):
    """Metrics of an empty set are not logged; the quick start goes on, and its screen says CAST."""
    rows = [watch.row(1, CAST), watch.row(2, CAST | GAP)]
    assert ["– % / – %" in " ".join(text.split()) for text in rows] == [True, False]
    assert "– % / 25 %" in " ".join(rows[1].split())
    run = tmp_path / "cast"
    run.mkdir()
    assert "CAST: 2 steps" in watch.screen(run, [CAST, CAST | GAP]) and (run / "reward.png").stat().st_size > 1000


def test_a_half_written_line_of_metrics_waits(tmp_path):
    assert watch.read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "data": {"a": 1}}\n{"step": 2, "da')
    assert watch.read_metrics(tmp_path) == [{"a": 1}]


def test_the_reason_of_a_failed_run_is_the_drivers(tmp_path):
    (tmp_path / "train.log").write_text(
        "(Worker pid=1) ValueError: of a worker\nError executing job with overrides: []\nTraceback\n"
        "ray.exceptions.RayTaskError(KeyError): ray::run\nverl_cast.x.WeightTransferError: the reason\n"
        "BufferError: of the clean-up\n"
    )
    assert watch.failure(tmp_path) == "verl_cast.x.WeightTransferError: the reason"
