"""Laws of `verl-cast doctor` as a command: a good set-up is ready, and what is wrong with an installation is named.

Two tests start a real Ray worker.
"""

import os
import socket
import subprocess
import sys
import time

import pytest
from doctor_runs import doctor, good_command
from queue_of_runs import job

import verl_cast.seams
from verl_cast.tools import cli
from verl_cast.tools.doctor import installation, registration
from verl_cast.tools.doctor.lines import WIDTH, error, note


@job("doctor", seconds=30, memory_gb=2, after=["tiny"])
def doctor_of_a_good_setup(directory, runs):
    overrides, environment = good_command(directory, runs("tiny"))
    return doctor(*overrides, environment=environment)


@pytest.mark.runs("doctor")
def test_a_good_setup_is_ready(runs):
    """The whole command, as a user calls it. It starts its own Ray with one worker."""
    result = runs("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == "", "libraries' noise stays off the screen"
    lines = result.stdout.splitlines()
    assert lines[-1] == "Ready: this command can train CAST, no warnings."
    assert not any("ERROR" in line or "warning  " in line for line in lines)
    headings = "Versions, Plugin, Seams, Ray workers, Command, Data and verifier, What CAST will do, Prompts, Memory"
    assert {*headings.split(", "), "Warnings"} <= {*lines}
    assert "the plugin registers `cast` in a fresh worker (verl 0.9." in result.stdout
    assert "departures of the CPU" in " ".join(result.stdout.split()), "the CPU platform's seams too"
    assert "| What is 0 + 0?" in result.stdout, "an example prompt"
    assert "from step 0; there is no checkpoint" in result.stdout


def test_a_plugin_that_is_switched_off_is_named():
    result = doctor("--no-ray", environment={"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_PLUGINS": "none"})
    assert result.returncode == 1 and result.stderr == ""
    folded = " ".join(result.stdout.split())
    assert "ERROR this process VERL_USE_EXTERNAL_PLUGINS='none' keeps verl from loading the plugin `cast`" in folded
    assert "Not ready: 1 error, no warnings." in folded


def test_a_cluster_that_does_not_answer_is_said_at_once(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    [line] = registration.check_workers(None, {})
    assert line.mark == "error" and f"the cluster {address} cannot be joined" in line.text
    assert time.monotonic() - started < 60, "Ray's own patience is two minutes"


CLUSTER = """
import sys, ray
context = ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@job("doctor_of_a_cluster", seconds=30, memory_gb=2)
def doctor_of_a_cluster(directory, runs):
    """The cluster was started earlier. Its workers have their node's environment, not that of this shell."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}  # otherwise Ray creates a token and requires it
    of_cluster = {**environment, "VERL_USE_EXTERNAL_PLUGINS": "other"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    cluster = subprocess.Popen([sys.executable, "-c", CLUSTER], env=of_cluster, text=True, **pipes)
    try:
        address = next(line for line in cluster.stdout if ":" in line).strip()
        return doctor(environment={**environment, "RAY_ADDRESS": address})
    finally:
        cluster.communicate("", timeout=60)  # the cluster stops at the end of its input


@pytest.mark.runs("doctor_of_a_cluster")
def test_a_node_whose_environment_is_another_is_named(runs):
    said = " ".join(runs("doctor_of_a_cluster").stdout.split())
    assert "ok this process `cast` is in verl's estimator and loss registries" in said
    assert "VERL_USE_EXTERNAL_PLUGINS='other' keeps verl from" in said and "Not ready: 1 error" in said


def test_a_verl_that_is_too_old_is_named_and_nothing_of_it_imported(tmp_path):
    package = tmp_path / "verl"
    (package / "version").mkdir(parents=True)
    (package / "version" / "version").write_text("0.8.0")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    result = doctor("algorithm.adv_estimator=cast", environment={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1, result.stderr
    assert "verl 0.8.0 is installed, and verl_cast needs 0.9.0 or newer." in " ".join(result.stdout.split())
    assert "Not ready: 1 error" in result.stdout


def test_a_verl_that_cannot_be_imported_says_why(tmp_path):
    (tmp_path / "tensordict").mkdir()
    (tmp_path / "tensordict" / "__init__.py").write_text("raise RuntimeError('made for another torch')")
    result = doctor("algorithm.adv_estimator=cast", environment={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1 and result.stderr == ""
    assert "import verl fails: RuntimeError: made for another torch." in result.stdout


def test_the_command_line_says_its_version_and_names_users_errors(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0 and capsys.readouterr().out == f"verl-cast {verl_cast.__version__}\n"
    assert cli.main(["doctor", "python", "train.py"]) == 1
    assert capsys.readouterr().err.startswith("verl-cast doctor: python train.py: only commands of")


def test_a_broken_seam_is_named(monkeypatch):
    broken = {
        **verl_cast.seams.SEAMS["verl.utils.config"],
        "check_everything": "config",
        "omega_conf_to_dataclass": "config, other",
    }
    monkeypatch.setitem(verl_cast.seams.SEAMS, "verl.utils.config", broken)
    monkeypatch.setitem(verl_cast.seams.SEAMS, "verl.no_such_module", {"f": ""})
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    lines = installation.check_seams(with_megatron=False)
    assert [line.label for line in lines] == ["check_everything", "omega_conf_to_dataclass", "no_such_module"]
    assert all(line.mark == "error" for line in lines)
    assert "takes (config, dataclass_type) here" in lines[1].text


def test_a_package_is_an_error_only_where_it_is_needed(monkeypatch):
    monkeypatch.setattr(installation, "PACKAGES", (("engine", "1.0", "megatron", ("no-such-engine",)),))

    def mark(asked_for):
        [line] = [line for line in installation.check_packages(asked_for) if line.label == "engine"]
        return line.mark

    assert (mark(set()), mark({"fsdp2", "vllm"}), mark({"megatron", "vllm"})) == ("note", "note", "error")
    monkeypatch.setattr(installation, "installed", lambda *names: None)
    for platform, missed in (("cpu", []), ("nvidia", ["warning"])):
        monkeypatch.setenv("VERL_PLATFORM", platform)
        marks = [line.mark for line in installation.check_packages(set()) if line.label == "flash-attn"]
        assert marks == missed, "missed on accelerators only"


def test_what_is_wrong_with_a_plugin_is_named(monkeypatch, tmp_path):
    """Of this process and of a worker, whose probe is looked at in the same way; and of its entry point."""
    here = {"verl": "0.9.1", "verl_cast": "0.2.0", "registered": True, "problems": [], "policy": None}
    here |= {"steps_aside": False}
    assert [line.mark for line in registration.check_here(here)] == ["ok"]
    aside = registration.check_here({**here, "registered": False, "steps_aside": True})
    assert [line.mark for line in aside] == ["warning"]
    for difference, says in (
        ({"problems": ["verl_cast relies on f"]}, "verl_cast relies on f"),
        ({"registered": False}, "not in verl's registries"),
        ({"verl_cast": None, "policy": "other"}, "VERL_USE_EXTERNAL_PLUGINS='other'"),
        ({"verl_cast": None}, "imported no plugin"),
    ):
        [line] = registration.check_here({**here, **difference})
        assert line.mark == "error" and says in line.text
    other = tmp_path / "cast_fork-0.3.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: cast-fork\nVersion: 0.3\n")
    (other / "entry_points.txt").write_text("[verl.plugins]\ncast = cast_fork.plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    [line] = registration.check_here(here)
    assert line.mark == "error" and "must be verl_cast.plugin, and is cast_fork.plugin, verl_cast.plugin" in line.text


def test_lines_fit_the_terminal_and_cannot_command_it():
    lines = [error("a label", "word " * 60), note("prompt", "as it is", "x" * 250 + "\n\x1b[2Jcleared\tend")]
    rows = "\n".join(map(str, lines)).splitlines()
    assert max(map(len, rows)) <= WIDTH
    assert rows[0].startswith("  ERROR   a label ") and rows[1].startswith(" " * 32 + "word")
    assert "\x1b" not in "".join(rows) and any("\\x1b[2Jcleared" in row for row in rows)
    assert "".join(row[12:] for row in rows if set(row[12:]) == {"x"}) == "x" * 250


def test_an_untested_verl_is_a_warning(monkeypatch):
    monkeypatch.setattr(installation, "verl_version", lambda: "0.10.2")
    line = installation.check_verl()
    assert line.mark == "warning" and "0.10.2" in line.text and "pip install verl==0.9.1" in line.text
