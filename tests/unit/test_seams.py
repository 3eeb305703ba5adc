"""Laws of the contract with verl: the installed verl has every seam that the plugin relies on.

A changed seam is reported by name.
"""

import importlib
import inspect
import types

import pytest
import verl
from verl.trainer.ppo import core_algos

import verl_cast.seams as seams
from verl_cast.advantage.base import GRPO_EPSILON
from verl_cast.seams import SEAMS, TESTED_VERL, SeamChanged, UnsupportedVerl, check_seams, check_version


def test_the_tested_version_is_the_installed_one():
    assert verl.__version__ == TESTED_VERL and check_version(TESTED_VERL) is None


@pytest.mark.parametrize("version", ["0.9.0", "0.9.2", "0.9.1.post1", "0.10.0.dev3", "1.2"])
def test_other_versions_from_the_oldest_on_are_tried_with_a_warning(version):
    assert check_version(version).startswith(f"verl {version}: verl_cast was tested with verl {TESTED_VERL}.")


@pytest.mark.parametrize("version", ["0.8.9", "0.9.0.dev1", "unknown"])
def test_older_versions_are_refused(version):
    with pytest.raises(UnsupportedVerl, match=f"verl {version} is installed, and verl_cast needs 0.9.0 or newer"):
        check_version(version)


@pytest.mark.parametrize("module_name", sorted(SEAMS))
def test_every_seam_by_name_and_signature(module_name):
    check_seams(module_name)


CHANGES = {
    "gone": (None, False),
    "renamed": (lambda loss_matrix, loss_mask: None, False),
    "one more that is needed": (lambda loss_mat, loss_mask, mode: None, False),
    "optional, but before the others": (lambda mode="mean", loss_mat=None, loss_mask=None: None, False),
    "shorter": (lambda loss_mat: None, False),
    # As patches/verl/0001 adds one to verl's registries.
    "an optional one added": (lambda loss_mat, loss_mask, mode="mean": None, True),
    "more by keyword": (lambda loss_mat, loss_mask, **kw: None, True),
}


@pytest.mark.parametrize("function, holds", CHANGES.values(), ids=CHANGES)
def test_a_changed_seam_is_named(monkeypatch, function, holds):
    module = types.ModuleType("verl.fake")
    if function is not None:
        module.agg_loss = function
    monkeypatch.setitem(seams.SEAMS, "verl.fake", {"agg_loss": "loss_mat, loss_mask"})
    monkeypatch.setattr(seams.importlib, "import_module", lambda name: module)
    if holds:
        return check_seams("verl.fake")
    with pytest.raises(SeamChanged, match=r"verl\.fake\.agg_loss"):
        check_seams("verl.fake")


def test_grpo_epsilon_is_verls():
    parameters = inspect.signature(core_algos.compute_grpo_outcome_advantage).parameters
    assert parameters["epsilon"].default == GRPO_EPSILON


def test_a_registered_estimator_gets_what_ours_takes():
    """verl calls estimators by keyword. Ours accepts every keyword that verl sends, and requires no other."""
    from verl_cast.training.estimator import ESTIMATORS

    required = [
        name
        for name, p in inspect.signature(ESTIMATORS["cast"]).parameters.items()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    source = inspect.getsource(importlib.import_module("verl.trainer.ppo.ray_trainer").compute_advantage)
    for name in (*required, "config"):
        assert f'"{name}"' in source, name


def test_every_trainer_mode_takes_the_mixin():
    """The mixin fits the three trainer modes of verl 0.9. Hooks that it does not override stay the mode's."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, get_trainer_cls

    from verl_cast.config.methods import METHODS
    from verl_cast.training.attach import StockStages, stock_trainer
    from verl_cast.training.measurement import TrustMixin
    from verl_cast.training.trainer import SelfTeacherTrainerMixin

    importlib.import_module("verl.trainer.ppo.v1")
    assert {"sync", "colocate_async", "separate_async"} <= set(TRAINER_REGISTRY)
    for mode in TRAINER_REGISTRY:
        trainer_cls = get_trainer_cls(mode)
        assert not issubclass(trainer_cls, SelfTeacherTrainerMixin), "verl's registry is as verl left it"
        for method in METHODS.values():
            mixed = stock_trainer(trainer_cls, method)
            assert not inspect.isabstract(mixed) and mixed is stock_trainer(trainer_cls, method)
            assert mixed.__mro__[1:5] == (SelfTeacherTrainerMixin, TrustMixin, StockStages, trainer_cls)


def test_the_worker_mixin_fits_both_worker_classes():
    from verl.experimental.separation.engine_workers import DetachActorWorker
    from verl.single_controller.base.decorator import MAGIC_ATTR
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from verl_cast.training.attach import stock_worker

    for worker_cls in (ActorRolloutRefWorker, DetachActorWorker):
        mixed = stock_worker(worker_cls)
        for name in (
            "init_self_teacher",
            "prepare_self_teacher",
            "compute_teacher_log_probs",
            "compute_log_probs_again",
            "self_teacher_cost",
        ):
            assert hasattr(getattr(mixed, name), MAGIC_ATTR), "a remote method"
        for name in ("compute_log_prob", "update_actor", "save_checkpoint", "load_checkpoint"):
            ours, verls = getattr(mixed, name), getattr(worker_cls, name)
            assert inspect.signature(ours).parameters.keys() == inspect.signature(verls).parameters.keys()
            assert str(getattr(ours, MAGIC_ATTR)) == str(getattr(verls, MAGIC_ATTR)), f"{name} is dispatched alike"
