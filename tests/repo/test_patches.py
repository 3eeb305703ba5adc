"""Laws of patches/: they apply in order and alone, fix what they say, and 0004 is what the plugin's files make.

verl's source distribution comes from the package index; VERL_SDIST names one that is already there. Whole runs on a
patched verl are in tests/runs/test_patched_verl.py.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import warm_python
from patched_verl import GENERAL, PATCHES, ROOT, patched_tree, run_apply

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
def stock(sdist, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("stock")
    shutil.unpack_archive(sdist, directory)
    return directory / "verl-0.9.1"


@pytest.fixture(scope="module")
def patched(sdist, tmp_path_factory) -> Path:
    # Inside a repository, as ./verl-patched in a checkout is.
    repository = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "--quiet", repository], check=True)
    return patched_tree(repository / "verl-patched", VERL_SDIST=sdist)


@pytest.fixture(scope="module")
def hooked(sdist, tmp_path_factory) -> Path:
    """Without CAST inside verl."""
    return patched_tree(tmp_path_factory.mktemp("hooked") / "verl", GENERAL, VERL_SDIST=sdist)


def new_files(patch: Path) -> list[str]:
    return re.findall(r"^--- /dev/null\n\+\+\+ b/(.+)$", patch.read_text(), re.MULTILINE)


def touched_files(patch: Path) -> list[str]:
    return re.findall(r"^\+\+\+ b/(.+)$", patch.read_text(), re.MULTILINE)


def shipped_tests(patch: Path) -> list[str]:
    return [name for name in new_files(patch) if name.startswith("tests/")]


@pytest.mark.parametrize("patch", GENERAL, ids=lambda patch: patch.stem)
def test_a_general_patch_is_neutral_and_in_verls_form(patch):
    text = patch.read_text()
    assert not re.search(r"\bCAST\b|self.teacher|verl_cast(?! authors|@)", text), "of use without CAST"
    assert re.search(r"^Subject: \[PATCH\] \[[a-z, ]+\] (feat|fix): ", text, re.MULTILINE)
    tests = shipped_tests(patch)
    assert tests and all(re.fullmatch(r"tests/\w+(/\w+)*/test_\w+_on_cpu\.py", name) for name in tests)


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


def test_generated_configs_follow_the_yaml(patched):
    """As verl's scripts/generate_trainer_config.sh, which its source distribution lacks."""
    code = """
        from hydra import compose, initialize_config_module
        from omegaconf import OmegaConf
        for engine in ("dp", "megatron", "torchtitan", "veomni"):
            name = "" if engine == "dp" else f"{engine}_"
            with initialize_config_module("verl.trainer.config", version_base=None):
                config = compose("ppo_trainer", overrides=[f"model_engine={engine}"])
            text = OmegaConf.to_yaml(config)
            expected = open(f"verl/trainer/config/_generated_ppo_{name}trainer.yaml").read()
            assert expected.endswith("\\n" + text[text.index("actor_rollout_ref") :]), engine
    """
    done = python(code, patched, cwd=patched, VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode == 0, done.stderr[-3000:]


def verl_environment(tree: Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("VERL_", "PYTEST_"))}
    return environment | {"PYTHONPATH": str(tree), "VERL_USE_EXTERNAL_PLUGINS": "none", "OMP_NUM_THREADS": "1"}


def start_tests(tree: Path, tests: list[str]) -> subprocess.Popen:
    pytest_ = [warm_python.program(), "-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"]
    return subprocess.Popen(
        [*pytest_, "-q", "-p", "no:cacheprovider", f"--junitxml={tree}/results.xml", *tests],
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
    of_cast = ["tests/experimental/cast"]
    runs = [start_tests(patched, tests + OWN_TESTS + of_cast), start_tests(stock, tests)]
    outputs = [run.communicate(timeout=600)[0] for run in runs]
    assert runs[0].returncode == 0, outputs[0][-5000:]

    with_patches, without = results(patched), results(stock)
    for name in tests:
        assert set(without[name]) == set(with_patches[name]), outputs[1][-5000:]
        hold = {test for test, passed in without[name].items() if passed}
        assert hold <= HOLD_BEFORE, f"{name}: passes without the patch: {hold}"
        assert len(hold) < len(without[name])


def test_cast_inside_verl_is_what_the_plugins_files_make(sdist, tmp_path):
    """0004 is generated, never edited: `bash patches/build.sh` writes it anew."""
    done = subprocess.run(
        ["bash", ROOT / "patches" / "build.sh", tmp_path / "made.patch"],
        env={**os.environ, "PYTHON": sys.executable, "VERL_SDIST": str(sdist)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made.patch").read_text() == PATCHES[-1].read_text(), "run patches/build.sh, and commit it"


def test_cast_inside_verl_is_in_verls_form(patched):
    new = new_files(PATCHES[-1])
    for name in new:
        text = (patched / name).read_text()
        if name.endswith(".py"):
            assert text.startswith(LICENCE), name
            assert "verl_cast" not in text, f"{name} speaks of the plugin"
        assert not re.search(r"\b(README\.md|patches/)", text), f"{name} names a page that upstream has not"
    # Of verl's own files: the config group, what is generated from it, one call, and the agent loop's registration.
    engines = ("", "megatron_", "torchtitan_", "veomni_")
    assert set(touched_files(PATCHES[-1])) - set(new) == {
        "verl/experimental/agent_loop/__init__.py",
        "verl/trainer/config/algorithm.py",
        "verl/trainer/config/ppo_trainer.yaml",
        "verl/trainer/main_ppo.py",
        *(f"verl/trainer/config/_generated_ppo_{engine}trainer.yaml" for engine in engines),
    }


def test_the_run_script_asks_for_runs_that_verl_accepts(patched, tmp_path):
    (tmp_path / "python3").write_text('#!/bin/sh\nshift 2\nprintf "%s\\n" "$@" >"$ARGUMENTS"\n')
    (tmp_path / "python3").chmod(0o755)
    script = patched / "examples" / "cast_trainer" / "run_qwen3_8b_fsdp.sh"
    environment = verl_environment(patched)
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    knobs = {"cast": {}, "grpo": {"ADV_ESTIMATOR": "grpo"}, "lora": {"LORA_RANK": "8", "TEACHER_WEIGHTS": "initial"}}
    for name, toggles in knobs.items():
        env = environment | toggles | {"ARGUMENTS": name}
        subprocess.run(["bash", script], cwd=tmp_path, env=env, check=True, capture_output=True)
    code = """
        from hydra import compose, initialize_config_module
        from verl.experimental.cast.prepare import prepare_run
        from verl.utils.config import validate_config
        for name in ("cast", "grpo", "lora"):
            with initialize_config_module("verl.trainer.config", version_base=None):
                config = compose("ppo_trainer", overrides=open(name).read().splitlines())
            prepare_run(config)
            validate_config(config, False, False)
            print(config.trainer.v1.trainer_class, config.actor_rollout_ref.actor.policy_loss.loss_mode)
    """
    done = python(code, patched, cwd=tmp_path, VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode == 0, done.stderr
    classes = "verl.experimental.cast.training.classes"
    cast = f"{classes}.SelfTeacherTrainerSync cast"
    assert re.findall(r"^.* (?:cast|vanilla)$", done.stdout, re.M) == [cast, "None vanilla", cast]


def python(code: str, tree: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """A process that first imports verl from this tree, with the plugin unless `environment` says otherwise."""
    return subprocess.run(
        [warm_python.program(), "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=verl_environment(tree) | {"VERL_USE_EXTERNAL_PLUGINS": "auto"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_on_a_verl_with_the_hooks_the_plugin_uses_them(hooked, tmp_path):
    """In every trainer mode, by the classes that verl looks up; a trainer without self-teacher is refused."""
    code = """
        import verl.trainer.ppo.v1 as v1
        from verl.trainer.ppo import core_algos
        from verl.trainer.ppo.v1.trainer_base import PPOTrainer
        from verl_cast import CastConfigError, plugin
        from verl_cast.tools.run_config import compose
        from verl_cast.training.classes import name_trainer
        from verl_cast.training.estimator import BATCH_FIELDS, ESTIMATORS

        for name, estimator in ESTIMATORS.items():
            assert core_algos.get_adv_estimator_fn(name) is estimator
            assert core_algos.ADV_ESTIMATOR_BATCH_FIELDS[name] == BATCH_FIELDS
        assert "__new__" not in vars(PPOTrainer), "verl builds its trainers as ever"
        for mode in ("sync", "colocate_async", "separate_async"):
            config = compose(["algorithm.adv_estimator=rlrt", f"trainer.v1.trainer_mode={mode}"])
            name_trainer(config)
            cls = v1.get_trainer_cls(mode, config.trainer.v1.trainer_class)
            assert hasattr(cls.actor_worker_cls, "init_self_teacher")
            assert issubclass(cls.actor_worker_cls, v1.get_trainer_cls(mode).actor_worker_cls)
        try:
            config.trainer.v1.trainer_class = "verl.trainer.ppo.v1.PPOTrainerSync"
            name_trainer(config)
        except CastConfigError as error:
            print(error)
        assert plugin.problems == []
    """
    done = python(code, hooked, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trainer_class='verl.trainer.ppo.v1.PPOTrainerSync': this trainer has no self-teacher" in done.stdout


def test_on_a_verl_that_has_cast_the_plugin_steps_aside(patched, tmp_path):
    code = """
        import os, subprocess, sys
        import verl.utils.config
        from verl.trainer.ppo import core_algos
        from verl_cast import plugin
        assert plugin.steps_aside and not {"cast", "opsd"} & set(core_algos.ADV_ESTIMATOR_REGISTRY)
        assert verl.utils.config.validate_config.__module__ == "verl.utils.config"
        assert not hasattr(verl.utils.config.validate_config, "__wrapped__") and plugin.problems == []
        import verl.experimental.cast.training.estimator
        assert core_algos.ADV_ESTIMATOR_REGISTRY["cast"].func.__module__ == "verl.experimental.cast.training.estimator"
        child = subprocess.run([sys.executable, "-c", "import verl"], capture_output=True, text=True)
        assert "steps aside" not in child.stderr, "said once, not in every process of a run"
    """
    done = python(code, patched, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    sentence = "this verl trains CAST itself (verl.experimental.cast). verl_cast steps aside"
    assert done.stderr.count(sentence) == 1


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


def test_the_recipe_brings_a_folder_of_its_own(tmp_path):
    patch = ROOT / "patches" / "recipe" / "0001-cast.patch"
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    subprocess.run(["git", "apply", patch], cwd=tmp_path, check=True)
    recipe = tmp_path / "cast"
    assert sorted(path.name for path in recipe.iterdir()) == [
        "README.md",
        "REQUIRED_VERL.txt",
        "requirements.txt",
        "run_qwen3_8b_fsdp.sh",
    ]
    version = re.search(r"^VERSION=(.+)$", (ROOT / "patches" / "apply.sh").read_text(), re.MULTILINE)[1]
    assert version in (recipe / "REQUIRED_VERL.txt").read_text()
    subprocess.run(["shellcheck", recipe / "run_qwen3_8b_fsdp.sh"], check=True)
