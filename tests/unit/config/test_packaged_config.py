"""`--config-name=cast_trainer` gives verl's own config and every key of this package, wherever verl is imported."""

import dataclasses
import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import verl
import yaml
from omegaconf import OmegaConf

from verl_cast.config.baselines import BASELINES
from verl_cast.config.cast import CastConfig
from verl_cast.tools import run_config
from verl_cast.tools.cli import UserError

ROOT = Path(__file__).parents[3]
PACKAGED = ROOT / "verl_cast" / "config" / "cast_trainer.yaml"
METHODS = {method.NAME: method for method in (CastConfig, *BASELINES)}


def plain(config):
    return OmegaConf.to_container(config, resolve=False)


def verls_command(*arguments: str, directory: Path, python=(sys.executable,)) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*python, "-m", "verl.trainer.main_ppo", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_packaged_values_are_the_defaults_of_the_classes():
    algorithm = yaml.safe_load(PACKAGED.read_text())["algorithm"]
    assert algorithm.pop("adv_estimator") == "cast"
    assert list(algorithm) == list(METHODS), "a group for every method, and nothing else"
    for name, method in METHODS.items():
        defaults = dataclasses.asdict(method())
        bounds = {key: list(value) for key, value in defaults.items() if isinstance(value, tuple)}
        assert algorithm[name] == {**defaults, **bounds}, name
        assert method.from_dict(algorithm[name]) == method()


@pytest.mark.parametrize("engine", ["dp", "megatron"])
def test_it_is_verls_config_and_nothing_of_verls_changes(engine):
    overrides = [f"model_engine={engine}", "actor_rollout_ref.rollout.n=8"]
    packaged = plain(run_config.compose(overrides, "cast_trainer"))
    own = plain(run_config.compose([*overrides, "algorithm.adv_estimator=cast"]))
    for name in METHODS:
        packaged["algorithm"].pop(name)
    assert packaged == own


def test_a_key_needs_no_plus_and_a_wrong_one_is_named():
    config = run_config.compose(["algorithm.cast.flip=none", "algorithm.rlsd.gap_weight=0.1"], "cast_trainer")
    assert config.algorithm.cast.flip == "none" and config.algorithm.rlsd.gap_weight == 0.1
    with pytest.raises(UserError, match="no key algorithm.cast.flipp; did you mean algorithm.cast.flip?"):
        run_config.compose(["algorithm.cast.flipp=none"], "cast_trainer")


def test_a_config_of_ones_own_begins_with_it(tmp_path):
    """verl's own command accepts a config file in any directory. The file lists verl's config in hydra's searchpath."""
    (tmp_path / "mine.yaml").write_text(
        "hydra: {searchpath: ['pkg://verl.trainer.config']}\n"
        "defaults: [cast_trainer, _self_]\n"
        "algorithm: {cast: {flip: wrong}}\n"
    )
    flags = (f"--config-path={tmp_path}", "--config-name=mine", "--cfg=job")
    done = verls_command(*flags, "model_engine=megatron", "algorithm.cast.gap_deadzone=0.1", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert config.actor_rollout_ref.actor.strategy == "megatron"
    assert config.algorithm.cast.flip == "wrong" and config.algorithm.cast.gap_deadzone == 0.1
    assert config.algorithm.cast.base_correct == 1.0


@pytest.fixture(scope="module")
def installed_wheel(tmp_path_factory):
    """The python of a fresh environment with the wheel installed. Dependencies come from this environment.

    Its flag -E ignores PYTHONPATH, which could name another copy of the package.
    """
    directory = tmp_path_factory.mktemp("wheel")
    pip, quiet = [sys.executable, "-m", "pip"], ["--quiet", "--no-deps"]
    build = [*pip, "wheel", *quiet, "--no-build-isolation", "-w", directory, ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    python = directory / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "venv"], check=True)
    wheel = next(directory.glob("verl_cast-*.whl"))
    install = [*pip, "--python", python, "install", *quiet, "--no-index", "--ignore-installed", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    # Python reads no .pth files in a directory that a .pth file adds, so the editable install is not found.
    site = next((directory / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return python, "-E"


def test_a_built_wheel_holds_the_package_and_its_entry_points(installed_wheel):
    (site,) = installed_wheel[0].parents[1].glob("lib/python*/site-packages")

    def files(root):
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc"}

    assert files(site / "verl_cast") == files(ROOT / "verl_cast")
    (distribution,) = importlib.metadata.distributions(path=[str(site)])
    assert {entry.group: (entry.name, entry.value) for entry in distribution.entry_points} == {
        "verl.plugins": ("cast", "verl_cast.plugin"),
        "console_scripts": ("verl-cast", "verl_cast.tools.cli:main"),
    }


def test_a_built_wheel_brings_it_to_verls_command(installed_wheel, tmp_path):
    """In the wheel's environment, `--cfg job` of verl's command shows every key with its default."""
    where = [*installed_wheel, "-c", "import verl_cast; print(verl_cast.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True).stdout
    assert found.startswith(str(installed_wheel[0].parents[1])), found
    job = verls_command("--config-name=cast_trainer", "--cfg=job", directory=tmp_path, python=installed_wheel)
    assert job.returncode == 0, job.stderr
    shown = OmegaConf.create(job.stdout)
    assert shown.algorithm.adv_estimator == "cast"
    packaged = yaml.safe_load(PACKAGED.read_text())["algorithm"]
    assert {name: plain(shown.algorithm[name]) for name in METHODS} == {name: packaged[name] for name in METHODS}
    assert shown.trainer == OmegaConf.load(Path(verl.__file__).parent / "trainer/config/ppo_trainer.yaml").trainer
