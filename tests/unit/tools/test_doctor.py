"""Laws of `verl-cast doctor`: a good set-up passes; a bad one is reported with a remedy and exit status 1.

One set-up runs the real command with a real Ray worker. Most others compose verl's config here and check the sections,
because importing verl in a new process takes seconds.
"""

import copy
import json
import math
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import large_models
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scripts
import tiny
import torch
from omegaconf import OmegaConf
from records import fitness_record
from transformers import AutoConfig
from verl_run import command_and_environment

import verl_cast.seams
from verl_cast import CastConfig, TeacherConfig
from verl_cast.checks import fitness
from verl_cast.teacher.weights import build_teacher
from verl_cast.tools import cli
from verl_cast.tools.cli import UserError
from verl_cast.tools.doctor import estimate, registration, rewards, run, seams, versions
from verl_cast.tools.doctor.lines import WIDTH, error, formatted, note
from verl_cast.tools.run_config import compose, without_program

# These tests do not check the warnings that verl and Megatron emit on import.
pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]
CAST, ROLLOUT, ACTOR = "algorithm.cast", "actor_rollout_ref.rollout", "actor_rollout_ref.actor"


@pytest.fixture(scope="module")
def command(tiny_directory, tmp_path_factory):
    """The overrides of a good command, and its environment."""
    arguments, environment = command_and_environment(
        tmp_path_factory.mktemp("run"),
        tiny_directory,
        "algorithm.adv_estimator=cast",
        "trainer.total_training_steps=30",
        tools=False,
    )
    return arguments[3:], environment


@pytest.fixture(scope="module")
def good_run(command):
    return compose(command[0])


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("VERL_CAST_CACHE", str(tmp_path / "cache"))


def changed(config, **settings):
    """The run with other settings. Keys contain dots, so callers pass them as `**{...}`."""
    config = copy.deepcopy(config)
    for key, value in settings.items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


def look(config):
    """The doctor's sections for a run: {title: lines}."""
    return dict(run.sections(config))


def texts(sections, mark):
    return [line.text for lines in sections.values() for line in lines if line.mark == mark]


def doctor(*arguments, environment=None):
    command = [sys.executable, "-m", "verl_cast", "doctor", *arguments]
    return subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=170
    )


# ------------------------------------------------------------------------------------------------ the real command


def test_a_good_setup_is_ready(command):
    """The whole command, as a user calls it. It starts its own Ray with one worker."""
    overrides, environment = command
    result = doctor(*overrides, environment=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == "", "libraries' noise stays off the screen"
    lines = result.stdout.splitlines()
    assert lines[-1] == "Ready: this command can train CAST, no warnings."
    assert not any("ERROR" in line or "warning  " in line for line in lines)
    assert "\033" not in result.stdout, "no colours outside a terminal"
    for heading in (
        "Versions",
        "Plugin",
        "Seams",
        "Ray workers",
        "Command",
        "What CAST will do",
        "Data and verifier",
        "Teacher",
    ):
        assert heading in lines
    assert "the plugin registers `cast` in a fresh worker (verl 0.9." in result.stdout
    assert "departures in" in result.stdout, "the CPU platform's seams too"
    assert "| What is 0 + 0?" in result.stdout, "an example prompt"


def test_a_plugin_that_is_switched_off_is_named():
    result = doctor("--no-ray", environment={"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_PLUGINS": "none"})
    assert result.returncode == 1 and result.stderr == ""
    folded = " ".join(result.stdout.split())
    assert "ERROR this process VERL_USE_EXTERNAL_PLUGINS='none' keeps verl from loading the plugin `cast`" in folded
    assert "Not ready: 1 error, no warnings." in folded


CLUSTER = """
import sys, ray
context = ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
LOOK = """
from verl_cast.tools.doctor import registration
with registration.ray_workers(None, None) as workers:
    here = registration.probe()
    lines = registration.check_here(here) + registration.check_workers(workers, here)
print(*(f"{line.mark}: {line.text}" for line in lines), sep="\\n")
"""


def test_a_cluster_that_does_not_answer_is_said_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=f"nothing answers at {address}"):
        with registration.ray_workers(address, None):
            pass
    assert time.monotonic() - started < 60, "Ray's own patience is two minutes"


def test_a_node_whose_environment_is_another_is_named():
    """The cluster was started earlier. Its workers have their node's environment, not that of this shell."""
    shell = {**os.environ, "RAY_AUTH_MODE": "disabled"}  # otherwise Ray creates a token and requires it
    environment = {**shell, "VERL_USE_EXTERNAL_PLUGINS": "other"}
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        address = next(line for line in cluster.stdout if ":" in line).strip()
        environment = {**shell, "RAY_ADDRESS": address}
        output = subprocess.check_output([sys.executable, "-c", LOOK], env=environment, text=True, timeout=170)
        here, there = output.splitlines()[-2:]
        assert here.startswith("ok: `cast` is in verl's estimator and loss registries")
        assert there.startswith("error: ") and "VERL_USE_EXTERNAL_PLUGINS='other' keeps verl from" in there
    finally:
        cluster.communicate("", timeout=60)  # the cluster stops at the end of its input


@pytest.mark.parametrize("version", ["0.8.0", "0.10.1"])
def test_another_verl_is_named_and_nothing_of_it_imported(tmp_path, version):
    package = tmp_path / "verl"
    (package / "version").mkdir(parents=True)
    (package / "version" / "version").write_text(version)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    result = doctor("algorithm.adv_estimator=cast", environment={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1, result.stderr
    assert f"{version}: verl_cast supports 0.9.x." in result.stdout
    assert "Not ready: 1 error" in result.stdout


def test_a_verl_that_cannot_be_imported_says_why(tmp_path):
    (tmp_path / "tensordict").mkdir()
    (tmp_path / "tensordict" / "__init__.py").write_text("raise RuntimeError('made for another torch')")
    result = doctor("algorithm.adv_estimator=cast", environment={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1 and result.stderr == ""
    assert "import verl fails: RuntimeError: made for another torch." in result.stdout


# ------------------------------------------------------------------------------------------------ bad set-ups


def test_the_good_run_has_no_error_and_no_warning(good_run):
    sections = look(good_run)
    assert texts(sections, "error") == texts(sections, "warning") == []


def test_another_estimator_is_named(good_run):
    assert texts(look(changed(good_run, **{"algorithm.adv_estimator": "grpo"})), "error") == [
        "this command would train grpo, not CAST: add algorithm.adv_estimator=cast."
    ]


@pytest.mark.parametrize("method", ["opsd", "rlsd", "rlrt"])
def test_a_baseline_is_checked_under_its_own_name(command, method):
    baseline = compose([*command[0], f"algorithm.adv_estimator={method}"])
    sections = look(baseline)
    assert texts(sections, "error") == [] and not any("What CAST will do" in title for title in sections)
    assert any("(a baseline, not CAST) is active" in text and "PRIVILEGED" in text for text in texts(sections, "note"))
    assert sections["Data and verifier"]
    asked = changed(baseline, **{f"algorithm.{method}.teacher.context": "plain"})
    assert any(f"algorithm.{method}.teacher.context='plain'" in text for text in texts(look(asked), "error"))


BAD = {
    "unknown key of ours": ({f"{CAST}.flipp": "both"}, f"{CAST}.flipp='both': unknown key; did you mean {CAST}.flip?"),
    "group of one": ({f"{ROLLOUT}.n": 1}, f"{ROLLOUT}.n=1: CAST compares the responses of a group"),
    "refused by verl": (
        {f"{ACTOR}.ppo_mini_batch_size": 8},
        "verl refuses this command: train_batch_size (4) must be >=",
    ),
    "refused by verl's dataclass": (
        {f"{ACTOR}.loss_agg_mode": "median"},
        "verl refuses this command: Invalid loss_agg",
    ),
    "no training data": (
        {"data.train_files": "/nowhere/t.parquet"},
        "data.train_files: /nowhere/t.parquet does not exist",
    ),
    "no validation data": (
        {"data.val_files": ["/nowhere/v.parquet"]},
        "data.val_files: /nowhere/v.parquet does not exist",
    ),
    "no such column": (
        {"data.prompt_key": "question"},
        "data.prompt_key=question: the training data have no such column",
    ),
    "no such reward function": ({"reward.custom_reward_function.name": "grade"}, "grade of "),
    "no reward file": ({"reward.custom_reward_function.path": "/nowhere/r.py"}, "/nowhere/r.py does not load"),
    "no rollout": ({f"{ROLLOUT}.name": "???"}, f"{ROLLOUT}.name is not set"),
    "too few rows": ({"data.train_max_samples": 3}, "3 training rows are fewer than data.train_batch_size=4"),
    "no model": ({"actor_rollout_ref.model.path": "/nowhere/model"}, "there is no such directory"),
    "too long": (
        {"data.max_response_length": 480},
        "max_position_embeddings allows 512, and a longer sequence ends the run",
    ),
}


@pytest.mark.parametrize("settings, says", BAD.values(), ids=BAD)
def test_a_bad_command_is_named(good_run, settings, says):
    errors = texts(look(changed(good_run, **settings)), "error")
    assert len(errors) == 1 and says in errors[0], errors


def test_all_that_is_wrong_is_said_at_once(good_run):
    """Ours, verl's and the data's; the missing rollout hides none of them."""
    settings = {
        f"{ROLLOUT}.name": "???",
        f"{ROLLOUT}.n": 1,
        f"{ROLLOUT}.temperature": 0,
        f"{ACTOR}.ppo_mini_batch_size": 8,
        f"{ACTOR}.policy_loss.loss_mode": "nope",
        CAST: {"flip": "sideways", "gap_weight": "abc"},
        "algorithm.cats": {"flip": "none"},
        "data.train_files": "/nowhere/t.parquet",
    }
    errors = texts(look(changed(good_run, **settings)), "error")
    for says in (
        f"{ROLLOUT}.name is not set",
        f"{ROLLOUT}.n=1:",
        f"{ROLLOUT}.temperature=0:",
        "train_batch_size (4) must be >=",
        f"{ACTOR}.policy_loss.loss_mode='nope': verl has no such loss",
        f"{CAST}.flip='sideways'",
        f"{CAST}.gap_weight='abc'",
        "algorithm.cats.flip='none'",
        "/nowhere/t.parquet does not exist",
    ):
        assert sum(says in text for text in errors) == 1, (says, errors)
    assert len(errors) == 9


@pytest.mark.parametrize("template", ["Think about it.", "{% if problem %}Think about it.{% endif %}"])
def test_a_template_that_never_shows_the_question_is_refused(good_run, tmp_path, template):
    path = tmp_path / "teacher.jinja"
    path.write_text(template)
    [text] = texts(look(changed(good_run, **{f"{CAST}.teacher.context": str(path)})), "error")
    assert "teacher.jinja" in text and "write {{ problem }} where it belongs" in text


def test_a_dump_directory_that_cannot_be_written_is_refused(good_run, tmp_path):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "dump", "/proc/dump"):
        dump = {"interval": 1, "directory": str(directory)}
        [text] = texts(look(changed(good_run, **{f"{CAST}.dump": dump})), "error")
        assert text.startswith(f"{CAST}.dump.directory={directory}: ") and "name another directory" in text
        assert texts(look(changed(good_run, **{f"{CAST}.dump": {**dump, "interval": 0}})), "error") == []
    new = {"interval": 1, "directory": str(tmp_path / "new" / "dump")}
    assert texts(look(changed(good_run, **{f"{CAST}.dump": new})), "error") == []
    assert not (tmp_path / "new").exists(), "the doctor makes nothing"


def test_a_template_that_asks_for_the_answer_is_refused(good_run, tmp_path):
    template = tmp_path / "teacher.jinja"
    template.write_text("{{ problem }} The answer is {{ ground_truth }}.")
    sections = look(changed(good_run, **{f"{CAST}.teacher.context": str(template)}))
    [text] = texts(sections, "error")
    assert "the template uses ground_truth" in text and "answer-free" in text


def test_a_config_of_ones_own_is_found_where_hydra_finds_it(tmp_path):
    """`--config-path` of verl's command: relative to verl/trainer, or absolute."""
    assert compose([], "ppo_trainer.yaml", "config") == compose([], "ppo_trainer")
    (tmp_path / "mine.yaml").write_text(
        "hydra:\n  searchpath:\n    - pkg://verl.trainer.config\n"
        "defaults:\n  - ppo_trainer\n  - _self_\nalgorithm:\n  adv_estimator: cast\n  cast:\n    flip: none\n"
    )
    config = compose([f"{ROLLOUT}.n=8"], "mine", str(tmp_path))
    assert config.algorithm.cast.flip == "none" and config.actor_rollout_ref.actor.clip_ratio_high == 0.28
    with pytest.raises(UserError, match="/nowhere"):
        compose([], "mine", "/nowhere")


COMMAND = ["python", "-m", "verl.trainer.main_ppo"]


@pytest.mark.parametrize(
    "words, plain",
    [
        (["a=1", "+b=[c, d]"], ["a=1", "+b=[c, d]"]),
        (["--no-ray", "--config-name=mine", "a=1"], ["--no-ray", "--config-name=mine", "a=1"]),
        (["--no-ray", *COMMAND, "a=1", "--config-name=mine"], ["--no-ray", "--config-name=mine", "a=1"]),
        (
            ["/opt/bin/python3.11", *COMMAND[1:], "-cn", "mine", "a=1", "--config-path", "/p"],
            ["--config-name=mine", "--config-path=/p", "a=1"],
        ),
        # as $(DRY_RUN=1 bash ...) splits it: at every blank, with the quotes
        ([*COMMAND, "'+a=[b,", "c]'", "d=e"], ["+a=[b, c]", "d=e"]),
        # as the shell passes it: hydra's own quotes stay
        ([*COMMAND, 'a="b,c"'], ['a="b,c"']),
    ],
)
def test_a_whole_command_is_as_good_as_its_overrides(words, plain):
    assert without_program(words) == plain


def test_variables_before_a_command_hold_for_the_checks(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert without_program(["env", "VERL_PLATFORM=nvidia", "EMPTY=", *COMMAND, "a=1"]) == ["a=1"]
    assert (os.environ["VERL_PLATFORM"], os.environ.pop("EMPTY")) == ("nvidia", "")


def test_a_script_is_asked_for_its_command():
    """The scripts of examples/, by their dry run; the shell's way gives the same."""
    words = without_program(["--no-ray", "--", "SIZE=8b", "bash", str(scripts.EXAMPLES / scripts.FSDP), "a='b  c'"])
    os.environ.pop("SIZE")
    assert words[:2] == ["--no-ray", "--config-name=cast_trainer"] and words[-1] == "a='b  c'"
    assert "actor_rollout_ref.model.path=Qwen/Qwen3-8B" in words
    printed = scripts.dry_run(scripts.FSDP, "SIZE=8b", arguments=["a='b c'"]).stdout.split()
    assert without_program(["--no-ray", *printed]) == [*words[:-1], "a='b c'"]


@pytest.mark.parametrize(
    "text, says",
    [
        ("touch started", "does not mention DRY_RUN, so running it would start the training"),
        ("echo no such size >&2; exit 3 # DRY_RUN", "(status 3): no such size"),
        ("echo DRY_RUN", "does not print one command of"),
        (None, "there is no such script"),
    ],
)
def test_a_script_that_cannot_be_asked_is_named(tmp_path, text, says):
    script = tmp_path / "run.sh"
    if text is not None:
        script.write_text(text)
    with pytest.raises(UserError) as problem:
        without_program(["--", "bash", str(script)])
    assert says in str(problem.value)
    assert not (tmp_path / "started").exists()


def test_another_program_is_named():
    with pytest.raises(UserError, match="python -m recipe.main: only commands of `python -m verl.trainer.main_ppo`"):
        without_program(["python", "-m", "recipe.main", "a=1"])


def test_the_command_line_says_its_version_and_names_users_errors(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0 and capsys.readouterr().out == f"verl-cast {verl_cast.__version__}\n"
    assert cli.main(["doctor", "python", "train.py"]) == 1
    assert capsys.readouterr().err.startswith("verl-cast doctor: python train.py: only commands of")


def test_advice_knows_how_many_steps_the_data_give(good_run):
    """64 rows in batches of 4: 16 steps an epoch."""
    settings = {"trainer.total_training_steps": None, f"{CAST}.teacher.refresh_interval": 16}
    [text] = texts(look(changed(good_run, **settings)), "warning")
    assert "refresh_interval=16 in a run of 16 training steps" in text
    assert texts(look(changed(good_run, **{**settings, "trainer.total_epochs": 2})), "warning") == []


def test_keys_that_verl_does_not_have_are_explained():
    for override, says in (
        ("data.train_batchsize=3", "no key data.train_batchsize; did you mean data.train_batch_size?"),
        ("algorithm.cast.flip=none", "each needs a + before it, as in +algorithm.cast.flip=both"),
        ("frobnicate=1", "to add it as a new key, write +frobnicate=..."),
        ("model_engine=tpu", "Available options in 'model_engine'"),
    ):
        with pytest.raises(UserError) as problem:
            compose([override])
        assert says in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "damage, says", [("truncated", "cannot be read"), ("empty", "holds no row"), ("text", "is neither")]
)
def test_damaged_data_are_named(good_run, tiny_directory, tmp_path, damage, says):
    path = tmp_path / ("train.txt" if damage == "text" else "train.parquet")
    whole = (tiny_directory / "train.parquet").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    if damage == "empty":
        pq.write_table(pq.read_table(tiny_directory / "train.parquet").slice(0, 0), path)
    [text] = texts(look(changed(good_run, **{"data.train_files": str(path)})), "error")
    assert text.startswith(f"data.train_files: {path} {says}")


def test_rows_without_what_the_reward_manager_reads_are_named(good_run, tmp_path):
    path = tmp_path / "train.jsonl"
    row = {"prompt": [{"role": "user", "content": "?"}], "reward_model": {"style": "rule"}}
    path.write_text(4 * (json.dumps(row) + "\n"))
    errors = texts(look(changed(good_run, **{"data.train_files": str(path)})), "error")
    assert [text.split(";")[0] for text in errors] == [
        "verl's reward manager needs a column data_source",
        "verl's reward manager needs a column reward_model with ground_truth",
    ]
    path.write_text(path.read_text() + '{"prompt": [{"ro')
    errors = texts(look(changed(good_run, **{"data.train_files": str(path)})), "error")
    assert len(errors) == 1 and "train.jsonl cannot be read" in errors[0]


def graded(config, tmp_path, body, sources=("tiny",)):
    """The run with a reward function of this body, and a row of every source."""
    row = {"prompt": [{"role": "user", "content": "?"}], "reward_model": {"ground_truth": "72"}}
    rows = [{**row, "data_source": source} for source in sources] + 3 * [{**row, "data_source": sources[0]}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data.train_files": str(tmp_path / "train.jsonl")}
    if body is None:
        settings["reward.custom_reward_function.path"] = None
    else:
        path = tmp_path / f"reward_{len(list(tmp_path.iterdir()))}.py"  # verl keeps a module by its path
        path.write_text(body)
        settings["reward.custom_reward_function.path"] = str(path)
    return changed(config, **settings, **{"data.val_files": settings["data.train_files"]})


SCORE = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs): "
BAD_REWARDS = {
    "other arguments": (
        "def compute_score(answer, truth): return 1.0",
        "verl calls compute_score(data_source, solution_str, ground_truth, extra_info)",
    ),
    "does not load": ("import a_package_that_is_not_there", "a_package_that_is_not_there"),
    "ends the process at loading": ("import os; os._exit(3)", "loading the reward function ends its process"),
    "raises": (f"{SCORE}return {{}}[data_source]", "fails for data_source tiny: KeyError: 'tiny'"),
    "leaves": (f"{SCORE}raise SystemExit(9)", "fails for data_source tiny: SystemExit: 9"),
    "crashes": (f"import os\n{SCORE}os._exit(3)", "called for data_source tiny, ends its process"),
    "no number": (f"{SCORE}return 'correct'", "fails for data_source tiny: ValueError: could not convert"),
    "not finite": (f"{SCORE}return float('nan')", "is nan, not a finite number"),
    "no score": (f"{SCORE}return {{'acc': 1.0}}", "fails for data_source tiny: KeyError: 'score'"),
    "verl's own, which does not know it": (None, "verl has no reward function for data_source tiny"),
}


@pytest.mark.parametrize("body, says", BAD_REWARDS.values(), ids=BAD_REWARDS)
def test_a_reward_that_cannot_work_is_an_error_with_a_remedy(good_run, tmp_path, body, says):
    [text] = texts(look(graded(good_run, tmp_path, body)), "error")
    assert says in text, text
    assert "verl calls" in text or "does not load" in text or "reward.custom_reward_function.path" in text


@pytest.mark.parametrize("body", ["import time; time.sleep(99)", f"import time\n{SCORE}time.sleep(99)"])
def test_a_reward_that_hangs_does_not_hang_the_doctor(good_run, tmp_path, monkeypatch, body):
    monkeypatch.setattr(rewards, "SECONDS", 1)
    config = graded(good_run, tmp_path, body)
    started, others = time.monotonic(), set(multiprocessing.active_children())  # of the verifier's pool
    [text] = texts(look(config), "error")
    assert "takes longer than 1 s" in text and time.monotonic() - started < 30
    assert set(multiprocessing.active_children()) <= others


@pytest.mark.parametrize(
    "source, right",
    [
        ("openai/gsm8k", "#### 72"),
        ("math_dapo", "\\\\boxed{72}"),
        ("lighteval/MATH", "\\\\boxed{72}"),
    ],
)
def test_verls_own_rewards_find_their_answers(good_run, tmp_path, source, right):
    sections = look(graded(good_run, tmp_path, None, [source]))
    assert texts(sections, "error") == texts(sections, "warning") == []
    assert any(f"data_source {source}: reward 1 for '{right}'" in text for text in texts(sections, "ok"))


def test_one_row_of_every_data_source_is_scored(good_run, tmp_path):
    """Also of sources behind the rows that are read otherwise, and of the validation files."""
    body = f"{SCORE}return float(solution_str == ground_truth and data_source != 'b')"
    config = graded(good_run, tmp_path, body, ["a"] * 70 + ["b", "c"])
    table = pa.Table.from_pylist([{"data_source": s, "reward_model": {"ground_truth": ["7"]}} for s in "dddde"])
    pq.write_table(table, tmp_path / "val.parquet")
    sections = look(changed(config, **{"data.val_files": str(tmp_path / "val.parquet")}))
    right = [text for text in texts(sections, "ok") if text.startswith("data_source")]
    assert [text.split(":")[0][-1] for text in right] == ["a", "c"] and "reward 1 for '72'" in right[0]
    warnings = texts(sections, "warning")
    assert [text.split(":")[0][-1] for text in warnings] == ["b", "d", "e"]
    assert all("its own answer has reward 0 at most" in text for text in warnings)


def test_a_reward_that_calls_everything_correct_is_said(good_run, tmp_path):
    [text] = texts(look(graded(good_run, tmp_path, f"{SCORE}return 1.0")), "warning")
    assert "'I do not know.' has reward 1 and counts as correct" in text


def test_the_old_key_of_the_reward_function_is_named(good_run):
    """With the old key, verl's V1 trainer silently uses its own reward function."""
    settings = {"reward.custom_reward_function.path": None, "custom_reward_function.path": "reward.py"}
    [text] = texts(look(changed(good_run, **settings)), "warning")
    assert "custom_reward_function.path is verl's old key" in text


def test_a_checkpoint_without_a_teacher_is_found_before_the_run(good_run, tmp_path):
    config = changed(good_run, **{"trainer.resume_mode": "auto", "trainer.default_local_dir": str(tmp_path)})
    assert texts(look(config), "error") == []
    actor = tmp_path / "global_step_20" / "actor"
    actor.mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    (actor / "cast_self_teacher_world_size_2_rank_0.pt").touch()
    [text] = texts(look(config), "error")
    assert "global_step_20, which holds no self-teacher of 1 rank(s)" in text and "missing_state=snapshot" in text
    anew = changed(config, **{f"{CAST}.teacher.missing_state": "snapshot"})
    assert "a new one starts" in texts(look(anew), "warning")[0] and texts(look(anew), "error") == []
    current = changed(config, **{f"{CAST}.teacher.weights": "current"})
    assert texts(look(current), "error") == [], "it has no state"
    (actor / "cast_self_teacher_world_size_1_rank_0.pt").touch()
    assert texts(look(config), "error") == []


def test_a_context_that_hides_part_of_the_prompt_is_said(good_run, tmp_path):
    row = {
        "data_source": "tiny",
        "prompt": [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "x" * 90}],
        "reward_model": {"ground_truth": "1"},
    }
    path = tmp_path / "train.jsonl"
    path.write_text(4 * (json.dumps(row) + "\n"))
    config = changed(good_run, **{"data.train_files": str(path)})
    system, length = texts(look(config), "warning")
    assert "shows the teacher only the last user message" in system
    assert "longer than data.max_prompt_length=96" in length
    same = changed(config, **{f"{CAST}.teacher.context": "same", "data.max_prompt_length": 300})
    assert texts(look(same), "warning") == []


def test_a_broken_seam_is_named(monkeypatch):
    broken = {
        **verl_cast.seams.SEAMS["verl.utils.config"],
        "check_everything": ("config",),
        "omega_conf_to_dataclass": (),
    }
    monkeypatch.setitem(verl_cast.seams.SEAMS, "verl.utils.config", broken)
    monkeypatch.setitem(verl_cast.seams.SEAMS, "verl.no_such_module", {"f": ()})
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    lines = seams.check(with_megatron=False)
    assert [line.label for line in lines] == ["check_everything", "omega_conf_to_dataclass", "no_such_module"]
    assert all(line.mark == "error" for line in lines)
    assert "(config, dataclass_type) here" in lines[1].text


# ------------------------------------------------------------------------------------------------ the installation


def test_a_package_is_an_error_only_where_it_is_needed(monkeypatch):
    missing = versions.Package("no-such-engine", "1.0", needed_for="megatron")
    monkeypatch.setattr(versions, "PACKAGES", (missing,))

    def mark(asked_for):
        [line] = [line for line in versions.check(asked_for) if line.label == "no-such-engine"]
        return line.mark

    assert (mark(set()), mark({"fsdp2", "vllm"}), mark({"megatron", "vllm"})) == ("note", "note", "error")


def test_flash_attention_is_missed_on_accelerators_only(monkeypatch):
    if versions.installed("flash-attn") is not None:
        pytest.skip("flash-attn is installed here")
    marks = {}
    for platform in ("cpu", "nvidia"):
        monkeypatch.setenv("VERL_PLATFORM", platform)
        marks[platform] = versions.check(set())[-1].mark
    assert marks == {"cpu": "note", "nvidia": "warning"}


def test_a_second_distribution_with_the_entry_point_is_said(monkeypatch, tmp_path):
    assert [line.mark for line in registration.check_entry_point()] == ["ok"]
    other = tmp_path / "cast_fork-0.3.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: cast-fork\nVersion: 0.3\n")
    (other / "entry_points.txt").write_text("[verl.plugins]\ncast = cast_fork.plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    lines = registration.check_entry_point()
    assert sorted(line.mark for line in lines) == ["error", "ok", "warning"]
    assert any("cast-fork 0.3 points at cast_fork.plugin" in line.text for line in lines)


def test_a_worker_with_another_version_or_a_problem_is_named():
    here = {"verl": "0.9.1", "verl_cast": "0.1.0", "loaded": True, "registered": True, "problems": [], "policy": None}
    here |= {"steps_aside": False}
    assert [line.mark for line in registration.check_here(here)] == ["ok"]
    aside = registration.check_here({**here, "registered": False, "steps_aside": True})
    assert [line.mark for line in aside] == ["warning"]
    for difference, says in (
        ({"problems": ["verl_cast relies on f"]}, "verl_cast relies on f"),
        ({"registered": False}, "not in verl's registries"),
        ({"loaded": False, "policy": "other"}, "VERL_USE_EXTERNAL_PLUGINS='other'"),
        ({"loaded": False}, "imported no plugin"),
    ):
        [line] = registration.check_here({**here, **difference})
        assert line.mark == "error" and says in line.text


# --------------------------------------------------------------------------------------------------- cost estimates


def test_large_models_by_hand():
    """The table in training/README.md: parameters counted by hand, bytes and files from the layout of ranks."""
    lora, full, moe = (large_models.row(name) for name in large_models.RUNS)
    # LoRA: (inputs + outputs) x rank of q, k, v, o, gate, up, down; float32, sharded over 8.
    widths = (2560 + 4096) + 2 * (2560 + 1024) + (4096 + 2560) + 2 * (2560 + 9728) + (9728 + 2560)
    assert lora.memory.trained == 36 * 32 * widths
    assert lora.node_bytes == lora.memory.checkpoint_bytes == 4 * lora.memory.trained
    # All parameters: embedding and head, 36 layers of attention, MLP and norms, the last norm.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    assert full.memory.trained == 2 * 151936 * 4096 + 36 * layer + 4096
    assert full.memory.host_bytes == pytest.approx(4 * full.memory.trained / 8, rel=1e-3)
    assert full.memory.swap_seconds == pytest.approx(4 * full.memory.host_bytes / 25e9)
    # Experts over 8 ranks, the rest over 2; bf16. Of 16 ranks 8 hold distinct shards.
    experts = 48 * 128 * 3 * 2048 * 768
    rest = 2 * 151936 * 2048 + 48 * (2 * 2048 * 4096 + 2 * 2048 * 512 + 2048 * 128 + 2 * 2048 + 2 * 128) + 2048
    assert moe.memory.trained == experts + rest
    assert moe.memory.host_bytes == pytest.approx(2 * (experts / 8 + rest / 2), rel=1e-6)
    assert (moe.memory.shards, moe.memory.checkpoint_bytes) == (8, 8 * moe.memory.host_bytes)
    # One update with gradient checkpointing: old log-probs, forward, backward (twice), forward again.
    assert full.two_passes == pytest.approx((200 + 8192) / (256 + 8192) / 5)
    assert full.one_pass == pytest.approx(((200 + 8192) / (256 + 8192) - 1) / 5)


def told(config):
    return {line.label: line.text for line in look(config)["Teacher"]}


def test_the_copy_on_host_and_disk_is_told(good_run):
    config = changed(good_run, **{"trainer.save_freq": 5, f"{CAST}.teacher.weights": "snapshot"})
    lines = told(config)
    assert "in 1 file(s)" in lines["checkpoints"] and "saves none" not in lines["checkpoints"]
    assert "teacher.pin_memory=auto" in lines["page-locked"] and "none of its own" in lines["page-locked"]
    config = changed(config, **{"trainer.save_freq": -1, f"{CAST}.teacher.pin_memory": False})
    lines = told(config)
    assert "this run saves none" in lines["checkpoints"] and "teacher.pin_memory=False" in lines["page-locked"]


def estimated(config, teacher=TeacherConfig()):  # noqa: B008 (frozen)
    return estimate.memory(config, teacher, AutoConfig.from_pretrained(config.actor_rollout_ref.model.path))


def host_bytes(config, model, **teacher):
    """Host bytes by the doctor's estimate, and those of the real teacher of this model."""
    teacher = TeacherConfig(**teacher)
    has_adapter = estimate.lora_rank(config) > 0
    real = build_teacher(teacher, model, has_adapter, adapter_is_new=True)
    if real.refresh_due(0):
        real.refresh(0)
    if not estimate.needs_copy(config, teacher):
        return 0, real.host_bytes
    return estimated(config, teacher).host_bytes, real.host_bytes


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("weights", ["snapshot", "ema", "initial", "current"])
@pytest.mark.parametrize("rank", [0, 8])
def test_host_memory_is_what_the_teacher_takes(good_run, dtype, weights, rank):
    from peft import LoraConfig, get_peft_model

    config = changed(
        good_run,
        **{"actor_rollout_ref.model.lora_rank": rank, f"{ACTOR}.fsdp_config.model_dtype": dtype},
    )
    model = tiny.model()
    if rank:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"))
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    expected, found = host_bytes(config, model, weights=weights)
    assert expected == found
    assert (found == 0) == (weights == "current" or (weights == "initial" and rank > 0))


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_host_memory_follows_fsdp2s_shards(good_run, num_ranks):
    """FSDP2 splits the first dimension into chunks. The first rank has the largest one."""
    config = changed(good_run, **{"trainer.n_gpus_per_node": num_ranks})
    found = estimated(config)
    first = [parameter.chunk(num_ranks)[0].numel() for parameter in tiny.model().parameters()]
    assert found.exact and found.host_bytes == 4 * sum(first) and found.ranks == num_ranks
    one_of_two_replicas = changed(config, **{f"{ACTOR}.fsdp_config.fsdp_size": 1})
    assert estimated(one_of_two_replicas).host_bytes == 4 * sum(
        parameter.numel() for parameter in tiny.model().parameters()
    )


def test_host_memory_under_megatron_follows_model_parallelism(good_run):
    """Data parallelism shards only the optimizer state, so the teacher's copy stays whole."""
    model = good_run.actor_rollout_ref.model.path
    config = compose(["model_engine=megatron", "trainer.n_gpus_per_node=8", f"actor_rollout_ref.model.path={model}"])
    total = 2 * sum(parameter.numel() for parameter in tiny.model().parameters())

    def found(**settings):
        settings = {f"{ACTOR}.megatron.{key}": value for key, value in settings.items()}
        memory = estimated(changed(config, **settings))
        assert not memory.exact
        return memory.host_bytes

    assert found() == total
    assert found(tensor_model_parallel_size=2, pipeline_model_parallel_size=2) == total // 4


def test_extra_compute_in_forwards(good_run):
    method = CastConfig(one_pass=False)
    plain = estimate.compute(good_run, method, student_tokens=100, teacher_tokens=100)
    assert (plain.training, plain.teacher, plain.saved, plain.share) == (4, 1, 0, 0.25)
    assert estimate.compute(good_run, method, 100, 150).teacher == 1.5
    on_policy = changed(
        good_run, **{"data.train_batch_size": 8, f"{ACTOR}.ppo_mini_batch_size": 8, f"{ACTOR}.ppo_epochs": 1}
    )
    one_pass = estimate.compute(on_policy, CastConfig(), 100, 110)
    assert one_pass.saved == 1 and math.isclose(one_pass.share, 0.1 / 4), "the teacher's pass replaces another"
    checkpointed = changed(good_run, **{"actor_rollout_ref.model.enable_gradient_checkpointing": True})
    assert estimate.compute(checkpointed, method, 100, 100).training == 5
    with_kl = changed(checkpointed, **{f"{ACTOR}.use_kl_loss": True, f"{ACTOR}.ppo_epochs": 2})
    assert estimate.compute(with_kl, method, 100, 100).training == 10
    adapter = changed(good_run, **{"actor_rollout_ref.model.lora_rank": 8})
    assert estimate.compute(adapter, method, 100, 100).training == 3
    same = CastConfig(teacher=TeacherConfig(context="same", refresh_interval=10))
    assert math.isclose(estimate.compute(good_run, same, 100, 100).teacher, 0.9), "none right after a snapshot"


def test_contexts_are_shown_with_their_lengths(good_run, tmp_path):
    """The tiny tokenizer has one token per byte."""
    shown = {line.label: line for line in look(good_run)["Teacher"]}
    student, teacher = shown["student reads"], shown["teacher reads"]
    assert student.block == "<|im_start|>user\nWhat is 0 + 0?<|im_end|>\n<|im_start|>assistant\n"
    assert student.text.startswith(f"{len('.user.What is 0 + 0?..') + len('.assistant.')} tokens")
    assert teacher.block.startswith("What is 0 + 0?\n\nPlease reason") and "<|im_start|>" not in teacher.block
    assert teacher.text.startswith(f"{len(teacher.block)} tokens")
    template = tmp_path / "teacher.jinja"
    template.write_text("{{ apply_chat_template(messages + [{'role': 'user', 'content': 'Think first.'}]) }}")
    shown = {
        line.label: line for line in look(changed(good_run, **{f"{CAST}.teacher.context": str(template)}))["Teacher"]
    }
    assert "Think first.<|im_end|>" in shown["teacher reads"].block
    template.write_text("{{ student_prompt }}")
    [text] = texts(look(changed(good_run, **{f"{CAST}.teacher.context": str(template)})), "warning")
    assert "use algorithm.cast.teacher.context=same" in text
    template.write_text("{{ messages[7].content }}")
    errors = texts(look(changed(good_run, **{f"{CAST}.teacher.context": str(template)})), "error")
    assert len(errors) == 1 and "an example prompt cannot be rendered" in errors[0]
    assert f"{CAST}.teacher.context={template}: line 1 of the template fails" in errors[0]


def test_a_dataset_class_of_ones_own_gives_the_examples(good_run, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from verl.utils.dataset.rl_dataset import RLHFDataset\n"
        "class Mine(RLHFDataset):\n"
        "    def _build_messages(self, example, key):\n"
        "        return [{'role': 'user', 'content': 'Mine: ' + example[key][0]['content']}]\n"
    )
    settings = {"data.custom_cls.path": str(path), "data.custom_cls.name": "Mine"}
    sections = look(changed(good_run, **settings))
    assert texts(sections, "error") == []
    shown = {line.label: line for line in sections["Teacher"]}
    assert shown["teacher reads"].block.startswith("Mine: What is 0 + 0?")
    [text] = texts(look(changed(good_run, **{**settings, "data.custom_cls.name": "Yours"})), "error")
    assert "data.custom_cls: Yours gives no rows" in text


def test_what_was_measured_of_the_context_is_shown(good_run):
    def fitness_line():
        sections = look(good_run)
        [line] = [line for line in sections["Teacher"] if line.label == "fitness"]
        return line, texts(sections, "warning")

    line, warnings = fitness_line()
    assert "not measured yet" in line.text and "verl-cast diagnose" in line.text
    record = fitness_record(student=(35, 100), teacher=(91, 100), interval=(0.5, 0.62), problems=40)
    fitness.save(good_run, record)
    line, warnings = fitness_line()
    assert line.mark == "ok" and not warnings
    assert (
        line.text.startswith("better: ") and "0.91" in line.text and "0.35" in line.text and "40 problems" in line.text
    )
    record["difference"] = {"value": -0.56, "interval": [-0.62, -0.5]}
    fitness.save(good_run, record)
    line, warnings = fitness_line()
    assert line.mark == "note" and line.text.startswith("worse: ") and len(warnings) == 1


# ------------------------------------------------------------------------------------------------ on the screen


def test_lines_fit_the_terminal_and_cannot_command_it():
    lines = [
        error("a label", "word " * 60),
        note("prompt", "as it is", "x" * 250 + "\n\x1b[2Jcleared\tend"),
    ]
    rows = formatted(lines, colours=False).splitlines()
    assert max(map(len, rows)) <= WIDTH
    assert rows[0].startswith("  ERROR   a label ") and rows[1].startswith(" " * 32 + "word")
    rows = formatted([note("node-17.cluster.example.org", "text")], colours=False).splitlines()
    assert rows == [" " * 10 + "node-17.cluster.example.org", " " * 32 + "text"]
    rows = formatted(lines, colours=False).splitlines()
    assert "\x1b" not in "".join(rows) and any("\\x1b[2Jcleared" in row for row in rows)
    assert "\033[1;31mERROR" in formatted(lines, colours=True)
