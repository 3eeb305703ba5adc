"""Names the trainer of a run under verl's own key for it, which patches/verl/0003a adds. Cheap to import."""

from omegaconf import DictConfig, OmegaConf

from verl_cast.config.cast import CastConfigError

KEY = "trainer.v1.trainer_class"
# By verl's trainer mode.
CLASSES = {
    "sync": "SelfTeacherTrainerSync",
    "colocate_async": "SelfTeacherTrainerColocateAsync",
    "separate_async": "SelfTeacherTrainerSeparateAsync",
}


def name_trainer(config: DictConfig) -> None:
    """Name the trainer with a self-teacher for the run's mode, in place.

    Raises:
        CastConfigError: the run names a trainer without a self-teacher.
    """
    named, mode = OmegaConf.select(config, KEY), OmegaConf.select(config, "trainer.v1.trainer_mode")
    own = f"{__package__}.classes.{CLASSES.get(mode, 'SelfTeacherTrainerSync')}"
    if named is None:
        OmegaConf.update(config, KEY, own)
    elif named != own and not _has_self_teacher(named):
        raise CastConfigError(KEY, named, f"this trainer has no self-teacher; derive it from {own}, or leave it out.")


def _has_self_teacher(named: str) -> bool:
    from verl.utils.import_utils import load_class_from_fqn

    from verl_cast.training.trainer import SelfTeacherTrainerMixin

    return issubclass(load_class_from_fqn(named, KEY), SelfTeacherTrainerMixin)
