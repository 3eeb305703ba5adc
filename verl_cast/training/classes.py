"""verl's trainers with a self-teacher, one for each of its modes: what `trainer.v1.trainer_class` can name.

patches/verl/0003a adds that key. On a verl without it attach.py makes these classes. Derive an actor worker of your own
from `actor_worker_cls` of one of these.
"""

from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.import_utils import load_class_from_fqn

from verl_cast.config.cast import CastConfigError
from verl_cast.training.trainer import SelfTeacherTrainerMixin
from verl_cast.training.worker import with_self_teacher

KEY = "trainer.v1.trainer_class"
_sync, _colocate_async, _separate_async = map(get_trainer_cls, ("sync", "colocate_async", "separate_async"))


class SelfTeacherTrainerSync(SelfTeacherTrainerMixin, _sync):
    actor_worker_cls = with_self_teacher(_sync.actor_worker_cls)


class SelfTeacherTrainerColocateAsync(SelfTeacherTrainerMixin, _colocate_async):
    actor_worker_cls = with_self_teacher(_colocate_async.actor_worker_cls)


class SelfTeacherTrainerSeparateAsync(SelfTeacherTrainerMixin, _separate_async):
    actor_worker_cls = with_self_teacher(_separate_async.actor_worker_cls)


# By verl's trainer mode.
CLASSES = {
    "sync": SelfTeacherTrainerSync,
    "colocate_async": SelfTeacherTrainerColocateAsync,
    "separate_async": SelfTeacherTrainerSeparateAsync,
}


def name_trainer(config: DictConfig) -> None:
    """Name the trainer with a self-teacher for the run's mode, in place.

    Raises:
        CastConfigError: the run names a trainer without a self-teacher, or a mode that has none.
    """
    named, mode = OmegaConf.select(config, KEY), OmegaConf.select(config, "trainer.v1.trainer_mode")
    if named is None and mode in CLASSES:
        OmegaConf.update(config, KEY, f"{__name__}.{CLASSES[mode].__name__}", force_add=True)
    elif named is None:
        remedy = f"there is no trainer with a self-teacher for this mode; name one under {KEY}."
        raise CastConfigError("trainer.v1.trainer_mode", mode, remedy)
    elif not issubclass(load_class_from_fqn(named, KEY), SelfTeacherTrainerMixin):
        remedy = f"this trainer has no self-teacher; derive it from one of {__name__}, or leave it out."
        raise CastConfigError(KEY, named, remedy)
