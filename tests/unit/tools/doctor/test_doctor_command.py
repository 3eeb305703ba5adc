"""Laws of `verl-cast doctor` as a command: a good set-up is ready, and what is wrong with an installation is named.

One test starts a real Ray worker. Importing verl in a new process takes seconds.
"""

import os
import socket
import subprocess
import sys
import time

import pytest
from doctor_runs import doctor

import verl_cast.seams
from verl_cast.tools import cli
from verl_cast.tools.doctor import registration, seams, versions
from verl_cast.tools.doctor.lines import WIDTH, error, formatted, note

# These tests do not check the warnings that verl and Megatron emit on import.
pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]


def test_a_good_setup_is_ready(good_command):
    """The whole command, as a user calls it. It starts its own Ray with one worker."""
    overrides, environment = good_command
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
        "Prompts",
        "Memory",
        "Warnings",
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


@pytest.mark.parametrize("version", ["0.8.0", "unknown"])
def test_a_verl_that_is_too_old_is_named_and_nothing_of_it_imported(tmp_path, version):
    package = tmp_path / "verl"
    (package / "version").mkdir(parents=True)
    (package / "version" / "version").write_text(version)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    result = doctor("algorithm.adv_estimator=cast", environment={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1, result.stderr
    assert f"verl {version} is installed, and verl_cast needs 0.9.0 or newer." in " ".join(result.stdout.split())
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
        "check_everything": ("config",),
        "omega_conf_to_dataclass": (),
    }
    monkeypatch.setitem(verl_cast.seams.SEAMS, "verl.utils.config", broken)
    monkeypatch.setitem(verl_cast.seams.SEAMS, "verl.no_such_module", {"f": ()})
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    lines = seams.check(with_megatron=False)
    assert [line.label for line in lines] == ["check_everything", "omega_conf_to_dataclass", "no_such_module"]
    assert all(line.mark == "error" for line in lines)
    assert "takes (config, dataclass_type) here" in lines[1].text


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


@pytest.mark.parametrize(
    "version, mark", [("0.8.3", "error"), ("0.9.0", "warning"), ("0.9.1", "ok"), ("0.10.2", "warning")]
)
def test_an_untested_verl_is_a_warning_and_an_old_one_an_error(monkeypatch, version, mark):
    monkeypatch.setattr(versions, "verl_version", lambda: version)
    [line] = [line for line in versions.check(set()) if line.label == "verl"]
    assert line.mark == mark and version in line.text
    assert ("pip install verl==0.9.1" in line.text) == (mark != "ok")
