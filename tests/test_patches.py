"""Laws of patches/: they apply in order, stay small, and fix what they say.

verl's source distribution comes from the package index; VERL_SDIST names one that is already there.
"""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from queue_of_runs import job
from test_end_to_end import assert_same_batches, assert_same_parameters
from verl_run import run_verl

ROOT = Path(__file__).resolve().parents[1]
PATCHES = sorted((ROOT / "patches" / "verl").glob("*.patch"))
GENERAL = [patch for patch in PATCHES if patch.name < "0004"]
# Changed lines, tests and licence headers among them.
BUDGETS = {"0001": 120, "0002": 60, "0003": 130}
# Tests of a patch that hold without it: they say what it must leave alone.
HOLD_BEFORE = {"test_fsdp2_and_forward_only_are_allowed"}
# verl's own CPU tests of the files that the patches touch, as far as its source distribution has them.
OWN_TESTS = [
    "tests/plugin/test_platform_abstraction.py",
    "tests/trainer/ppo/test_core_algos_on_cpu.py",
    "tests/trainer/ppo/test_dynamic_policy_losses_on_cpu.py",
    "tests/trainer/ppo/test_loss_aggregation_on_cpu.py",
    "tests/trainer/ppo/test_reinforce_pp_multiturn_on_cpu.py",
    "tests/trainer/ppo/test_value_loss_normalization_on_cpu.py",
    "tests/trainer/test_multi_trajectories_advantage_on_cpu.py",
]
# From tests/special_sanity/check_license.py of verl.
LICENCE = "# Copyright 2026 Bytedance Ltd. and/or its affiliates\n#\n# Licensed under the Apache License, Version 2.0"


def run_apply(target: Path, **environment: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", ROOT / "patches" / "apply.sh", target],
        env={**os.environ, "PYTHON": sys.executable} | {key: str(value) for key, value in environment.items()},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    if "VERL_SDIST" in os.environ:
        return Path(os.environ["VERL_SDIST"])
    directory = tmp_path_factory.mktemp("sdist")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "verl", "--dest", directory]
    done = subprocess.run([*pip, "verl==0.9.1"], capture_output=True, text=True)
    assert done.returncode == 0, f"verl's source distribution could not be downloaded:\n{done.stderr}"
    return directory / "verl-0.9.1.tar.gz"


@pytest.fixture(scope="module")
def patched(sdist, tmp_path_factory) -> Path:
    # Inside a repository, as ./verl-patched in a checkout is.
    repository = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "--quiet", repository], check=True)
    done = run_apply(repository / "verl-patched", VERL_SDIST=sdist)
    assert done.returncode == 0, done.stderr
    assert [f"applied {patch.name}" for patch in PATCHES] == done.stdout.splitlines()[:-1]
    return repository / "verl-patched"


@pytest.fixture(scope="module")
def stock(sdist, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("stock")
    shutil.unpack_archive(sdist, directory)
    return directory / "verl-0.9.1"


def changed_lines(patch: Path) -> int:
    return sum(bool(re.match(r"[+-](?!\+\+ |-- )", line)) for line in patch.read_text().splitlines())


def new_files(patch: Path) -> list[str]:
    return re.findall(r"^--- /dev/null\n\+\+\+ b/(.+)$", patch.read_text(), re.MULTILINE)


def touched_files(patch: Path) -> list[str]:
    return re.findall(r"^\+\+\+ b/(.+)$", patch.read_text(), re.MULTILINE)


def shipped_tests(patch: Path) -> list[str]:
    return [name for name in new_files(patch) if name.startswith("tests/")]


@pytest.mark.parametrize("patch", GENERAL, ids=lambda patch: patch.stem)
def test_a_general_patch_is_small_neutral_and_in_verls_form(patch):
    text = patch.read_text()
    assert changed_lines(patch) <= BUDGETS[patch.name[:4]]
    assert not re.search(r"\bCAST\b|self.teacher|verl_cast(?! authors|@)", text), (
        "of use without CAST, and not about it"
    )
    assert re.search(r"^Subject: \[PATCH\] \[[a-z, ]+\] (feat|fix): ", text, re.MULTILINE)
    tests = shipped_tests(patch)
    assert tests and all(re.fullmatch(r"tests/\w+(/\w+)*/test_\w+_on_cpu\.py", name) for name in tests)
    for new in new_files(patch):
        body = text.split(f"+++ b/{new}\n")[1]
        lines = [line[1:] for line in body.splitlines() if line.startswith("+")]
        assert "\n".join(lines).startswith(LICENCE)


@pytest.mark.parametrize("patch", GENERAL, ids=lambda patch: patch.stem)
def test_a_general_patch_applies_alone(patch, stock):
    done = subprocess.run(
        ["git", "apply", "--check", patch],
        cwd=stock,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(stock.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_patched_files_keep_verls_style(patched):
    files = {name for patch in PATCHES for name in touched_files(patch) if name.endswith(".py")}
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            ["ruff", *command, "--no-cache", "--config", "pyproject.toml", *sorted(files)],
            cwd=patched,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_generated_configs_follow_the_yaml(patched):
    """As verl's scripts/generate_trainer_config.sh, which its source distribution lacks."""
    for engine, generated in (("dp", "ppo_trainer"), ("megatron", "ppo_megatron_trainer")):
        printed = subprocess.run(
            [sys.executable, "scripts/print_cfg.py", "--cfg", "job", f"model_engine={engine}"],
            cwd=patched,
            env=verl_environment(patched),
            capture_output=True,
            text=True,
        ).stdout
        expected = (patched / "verl" / "trainer" / "config" / f"_generated_{generated}.yaml").read_text()
        assert expected.endswith("\n" + printed[printed.index("actor_rollout_ref") :])


def verl_environment(tree: Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("VERL_", "PYTEST_"))}
    return environment | {"PYTHONPATH": str(tree), "VERL_USE_EXTERNAL_PLUGINS": "none", "OMP_NUM_THREADS": "1"}


def start_tests(tree: Path, tests: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={tree}/results.xml", *tests]
    return subprocess.Popen(
        command,
        cwd=tree,
        env=verl_environment(tree),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(tree: Path) -> dict[str, dict[str, bool]]:
    """Whether each test passed, by its file and its name."""
    passed: dict[str, dict[str, bool]] = {}
    for case in ElementTree.parse(tree / "results.xml").iter("testcase"):
        file = f"{case.get('classname').replace('.', '/')}.py"
        passed.setdefault(file, {})[case.get("name")] = case.find("failure") is None and case.find("error") is None
    return passed


def test_every_patch_does_what_its_tests_say(stock, patched):
    """The tests that the patches bring fail on stock verl and pass on patched verl, which keeps its own tests."""
    tests = [name for patch in GENERAL for name in shipped_tests(patch)]
    for name in tests:
        (stock / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(patched / name, stock / name)
    runs = [start_tests(patched, tests + OWN_TESTS), start_tests(stock, tests)]
    outputs = [run.communicate(timeout=600)[0] for run in runs]
    assert runs[0].returncode == 0, outputs[0][-5000:]

    with_patches, without = results(patched), results(stock)
    for name in tests:
        assert set(without[name]) == set(with_patches[name]), outputs[1][-5000:]
        hold = {test for test, passed in without[name].items() if passed}
        assert hold <= HOLD_BEFORE, f"{name}: passes without the patch: {hold}"
        assert len(hold) < len(without[name])


def test_apply_says_what_is_wrong(sdist, tmp_path):
    done = run_apply(tmp_path, VERL_SDIST=sdist)
    assert done.returncode == 1 and f"{tmp_path} exists" in done.stderr
    done = run_apply(tmp_path / "verl", VERL_SDIST=__file__)
    assert done.returncode == 1 and "its SHA-256 differs" in done.stderr
    patches = tmp_path / "patches"
    patches.mkdir()
    broken = GENERAL[0].read_text().replace("\n ADV_ESTIMATOR_REGISTRY", "\n ANOTHER_REGISTRY")
    (patches / "0001-broken.patch").write_text(broken)
    done = run_apply(tmp_path / "verl", VERL_SDIST=sdist, PATCHES=patches)
    assert done.returncode == 1 and "0001-broken.patch does not apply to verl 0.9.1" in done.stderr
    assert not (tmp_path / "verl").exists()


# GRPO through every hook: an estimator and a loss that name batch fields, a trainer and a worker by name, and logits.
USER_HOOKS = """
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.workers.engine_workers import ActorRolloutRefWorker


def grpo_again(token_level_rewards, response_mask, index, config, old_log_probs, raw_prompt):
    assert old_log_probs.shape == response_mask.shape and raw_prompt.shape == index.shape
    print("USER estimator")
    return core_algos.compute_grpo_outcome_advantage(token_level_rewards, response_mask, index)


def vanilla_again(log_prob, entropy, **kwargs):
    assert entropy.shape == log_prob.shape
    print("USER loss")
    return core_algos.get_policy_loss_fn("vanilla")(log_prob=log_prob, **kwargs)


core_algos.register_adv_est("grpo_again", batch_fields=["old_log_probs", "raw_prompt"])(grpo_again)
core_algos.register_policy_loss("vanilla_again", batch_fields=["entropy"])(vanilla_again)


class UserTrainer(get_trainer_cls("sync")):
    def _setup(self):
        super()._setup()
        print(f"USER trainer, worker {self.actor_rollout_wg.own_name()}")


class LossWithLogits:
    def __init__(self, loss):
        self.loss = loss

    def process_logits(self, logits, data, data_format=None):
        return {"top": logits.detach().max(dim=-1).values}

    def __call__(self, model_output, data, dp_group=None):
        assert model_output["top"].shape[0] == model_output["log_probs"].shape[0]
        print("USER logits")
        return self.loss(model_output=model_output, data=data, dp_group=dp_group)


class UserWorker(ActorRolloutRefWorker):
    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self):
        super().init_model()
        self.actor.set_loss_fn(LossWithLogits(self.loss_fn))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def own_name(self):
        return type(self).__name__
"""
THROUGH_HOOKS = (
    "algorithm.adv_estimator=grpo_again",
    "actor_rollout_ref.actor.policy_loss.loss_mode=vanilla_again",
    "trainer.v1.trainer_class=user_hooks.UserTrainer",
    "trainer.v1.actor_worker_class=user_hooks.UserWorker",
)


@job("patched_verl", after=("tiny",))
def patched_verl(directory, runs):
    done = run_apply(directory / "verl-patched")
    assert done.returncode == 0, done.stderr
    (directory / "user_hooks.py").write_text(USER_HOOKS)
    path = os.pathsep.join(map(str, (directory / "verl-patched", directory, ROOT / "tests" / "support")))
    environment = {"PYTHONPATH": path}
    return run_verl(directory, runs("tiny"), *THROUGH_HOOKS, timeout=900, plugin=False, env=environment)


@pytest.mark.runs("patched_verl", "grpo_without_plugin")
def test_grpo_through_the_hooks_of_patched_verl_is_stock_verls_grpo(runs):
    """Three real steps (FSDP2, vLLM) give the same batches and weights, bit for bit."""
    run, stock_run = runs("patched_verl"), runs("grpo_without_plugin")
    assert run.returncode == 0, run.output[-5000:]
    for used in ("estimator", "loss", "logits", "trainer, worker ['UserWorker']"):
        assert f"USER {used}" in run.output
    for step in (1, 2, 3):
        assert_same_batches(run, stock_run, step)
    assert_same_parameters(run, stock_run, 3)
    assert [set(m) for m in run.metrics] == [set(m) for m in stock_run.metrics]


def test_readme_names_every_patch():
    readme = (ROOT / "patches" / "README.md").read_text()
    for patch in PATCHES:
        assert patch.name.partition("-")[0] in readme
    for number in re.findall(r"^\| (\d{4}[a-z]?) ", readme, re.MULTILINE):
        assert any(patch.name.startswith(f"{number}-") for patch in PATCHES), number
    assert len(readme.splitlines()) <= 80
