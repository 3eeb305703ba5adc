"""verl's trainers with a self-teacher, one for each of its modes: what `trainer.v1.trainer_class` can name.

patches/verl/0003a adds that key. A verl without it gets its classes from stock_verl. Derive an actor worker of your own
from `actor_worker_cls` of one of these.
"""

from verl.trainer.ppo.v1 import get_trainer_cls

from verl_cast.training.trainer import SelfTeacherTrainerMixin
from verl_cast.training.worker import with_self_teacher

_sync, _colocate_async, _separate_async = map(get_trainer_cls, ("sync", "colocate_async", "separate_async"))


class SelfTeacherTrainerSync(SelfTeacherTrainerMixin, _sync):
    actor_worker_cls = with_self_teacher(_sync.actor_worker_cls)


class SelfTeacherTrainerColocateAsync(SelfTeacherTrainerMixin, _colocate_async):
    actor_worker_cls = with_self_teacher(_colocate_async.actor_worker_cls)


class SelfTeacherTrainerSeparateAsync(SelfTeacherTrainerMixin, _separate_async):
    actor_worker_cls = with_self_teacher(_separate_async.actor_worker_cls)
