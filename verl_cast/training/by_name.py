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
        CastConfigError: the run names a trainer without a self-teacher, or a mode that has none.
    """
    named, mode = OmegaConf.select(config, KEY), OmegaConf.select(config, "trainer.v1.trainer_mode")
    if named is None and mode in CLASSES:
        OmegaConf.update(config, KEY, f"{__package__}.classes.{CLASSES[mode]}", force_add=True)
    elif named is None:
        remedy = f"there is no trainer with a self-teacher for this mode; name one under {KEY}."
        raise CastConfigError("trainer.v1.trainer_mode", mode, remedy)
    elif not _has_self_teacher(named):
        remedy = f"this trainer has no self-teacher; derive it from one of {__package__}.classes, or leave it out."
        raise CastConfigError(KEY, named, remedy)


def _has_self_teacher(named: str) -> bool:
    from verl.utils.import_utils import load_class_from_fqn

    from verl_cast.training.trainer import SelfTeacherTrainerMixin

    return issubclass(load_class_from_fqn(named, KEY), SelfTeacherTrainerMixin)
