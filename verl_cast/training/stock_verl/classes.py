"""verl's trainers and actor workers with a self-teacher, on a verl that takes no classes of its users by name."""

import functools
from types import ModuleType
from typing import Any

import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.utils import tensordict_utils as tu

from verl_cast.advantage.rule import Rule
from verl_cast.config import MethodConfig
from verl_cast.config.methods import method_class
from verl_cast.training.estimator import BATCH_FIELDS
from verl_cast.training.one_pass_loss import OnePassLoss, OnePassLossOnLogits
from verl_cast.training.stock_verl.batch_fields import batch_fields_laid_out
from verl_cast.training.trainer import SelfTeacherTrainerMixin
from verl_cast.training.worker import SelfTeacherWorkerMixin, with_self_teacher

_ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


class LogitsByFlag:
    """A loss as verl 0.9 calls it where the data say `distillation_use_topk`: first with the logits, then as a loss."""

    def __init__(self, loss: OnePassLossOnLogits):
        self._loss = loss
        self.outputs = loss.outputs

    def __call__(
        self,
        model_output: dict[str, torch.Tensor] | None = None,
        data: TensorDict | None = None,
        dp_group: Any = None,
        student_logits: torch.Tensor | None = None,
        data_format: str | None = None,
    ) -> Any:
        if student_logits is not None:
            return self._loss.process_logits(student_logits, data, data_format)
        return self._loss(model_output=model_output, data=data, dp_group=dp_group)


class StockWorkerMixin(SelfTeacherWorkerMixin):
    """Goes before a worker class of verl."""

    def _one_pass_loss(self, data: TensorDict, rule: Rule) -> OnePassLoss | LogitsByFlag:
        loss = super()._one_pass_loss(data, rule)
        if not isinstance(loss, OnePassLossOnLogits):
            return loss
        # (Megatron's engine then also empties the allocator's cache before its optimizer step.)
        tu.assign_non_tensor(data, distillation_use_topk=True)
        return LogitsByFlag(loss)


class StockStages:
    """Goes between SelfTeacherTrainerMixin and a trainer class of verl: what its stages would do with the hooks."""

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        for role in _ACTOR_ROLES:
            if role in self.role_worker_mapping:
                worker_cls = self.role_worker_mapping[role].__ray_metadata__.modified_class.__ray_actor_class__
                self.role_worker_mapping[role] = ray.remote(with_self_teacher(worker_cls, StockWorkerMixin))

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(BATCH_FIELDS))
        missing = [name for name in BATCH_FIELDS if name not in data]
        if missing:
            raise RuntimeError(
                f"CAST: the actor workers returned no {', '.join(missing)}. Stopping: without them the run would be "
                "GRPO."
            )
        data = data.to_padded_tensor()
        with batch_fields_laid_out({name: data[name] for name in BATCH_FIELDS}):
            return super()._compute_advantage(batch, metrics)


@functools.cache
def with_method(trainer_cls: type, method: type[MethodConfig]) -> type:
    """A V1 trainer class with a self-teacher, named after its method."""
    title = "".join(part.capitalize() for part in method.NAME.split("_"))
    return type(f"{title}{trainer_cls.__name__}", (SelfTeacherTrainerMixin, StockStages, trainer_cls), {})


def install(trainer_base: ModuleType) -> None:
    """Let verl build the variant of a trainer class with a self-teacher, in every mode, where the estimator is ours.

    verl's registry maps a mode to a class and refuses a second one, and a new mode name would change the replay buffer.
    So the choice is made where an instance is made: `PPOTrainer(config)` gives an instance of the class itself, or of
    its variant.
    """
    ppo_trainer = trainer_base.PPOTrainer

    def __new__(cls, *args: Any, **kwargs: Any):
        config = kwargs.get("config", args[0] if args else None)
        method = None if config is None else method_class(config)
        if method is not None and not issubclass(cls, SelfTeacherTrainerMixin):
            cls = with_method(cls, method)
        return object.__new__(cls)

    ppo_trainer.__new__ = staticmethod(__new__)
