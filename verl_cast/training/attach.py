"""Attaches CAST to verl: the only file that changes how verl trains (platform/ changes verl for runs on a CPU).

plugin.py calls it as verl's modules are loaded: `check_before_run` (verl.utils.config), `register` (core_algos) and
`choose_trainers` (trainer_base). The classes make up for what stock verl lacks. patches/verl adds it as hooks, and on a
verl that has all of them (`seams.has_hooks`) only the first two functions run:

* 0001, estimators name batch fields: `with_stored_fields`, `StockStages._compute_advantage`.
* 0003a, trainer and actor worker by name: `choose_trainers`, `StockStages._init_resource_pool_mgr`.
* 0003b, a loss function processes logits: `LogitsByFlag`, `StockWorkerMixin`.

Every process that imports verl imports this module, so heavy modules are imported where they are used.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import ray
import verl

from verl_cast.config import MethodConfig
from verl_cast.config.methods import is_cast_run, method_class
from verl_cast.seams import SEAMS, check_seams, check_version, has_hooks


def check_before_run(module: ModuleType, problems: list[str]) -> None:
    """Check the run in verl's own `validate_config`, which verl's main calls before Ray starts.

    Args:
        module: verl.utils.config.
        problems: why CAST is not available in this process. Any ends a run that asks for a method of ours.
    """
    stock = module.validate_config

    @functools.wraps(stock)
    def validate_config(config, *args, **kwargs):
        from verl_cast.checks.advice import warnings_of
        from verl_cast.checks.run import apply_method_defaults, check_run, summary
        from verl_cast.checks.spelling import settings_of_a_twin
        from verl_cast.checks.stack import stack_warnings

        method = method_class(config)
        if method is not None:
            if problems:
                raise RuntimeError(f"algorithm.adv_estimator={method.NAME}: {problems[0]}")
            untested = check_version(verl.__version__)
            if untested is not None:
                check_seams(*SEAMS)  # all of them here: a worker would find a changed one after models are loaded
                print(f"[verl_cast] warning: {untested}")
            for change in apply_method_defaults(config):
                print(f"[verl_cast] {change}")
        check_run(config)
        if method is not None and has_hooks():
            from verl_cast.training.classes import name_trainer

            name_trainer(config)
        result = stock(config, *args, **kwargs)
        if method is not None:
            print(summary(config))
            for warning in stack_warnings(config) + (warnings_of(config) if is_cast_run(config) else []):
                print(f"[verl_cast] warning: {warning}")
        for sentence in settings_of_a_twin(config):
            print(f"[verl_cast] {sentence}.")
        return result

    module.validate_config = validate_config


def register(core_algos: ModuleType) -> None:
    """Our estimators and the loss `cast` in verl's two registries."""
    from verl_cast.training.estimator import BATCH_FIELDS, ESTIMATORS
    from verl_cast.training.policy_loss import compute_policy_loss_cast

    hooked = has_hooks()
    for name, estimator in ESTIMATORS.items():
        if hooked:
            core_algos.register_adv_est(name, batch_fields=BATCH_FIELDS)(estimator)
        else:
            core_algos.register_adv_est(name)(with_stored_fields(estimator))
    core_algos.register_policy_loss("cast")(compute_policy_loss_cast)


def choose_trainers(trainer_base: ModuleType) -> None:
    """Let `PPOTrainer(config)` build the trainer with a self-teacher, in every mode, if the estimator is ours.

    verl's registry maps a mode to a class and refuses a second one, and a new mode name would change the replay buffer.
    So the choice is made where an instance is made.
    """
    from verl_cast.training.trainer import SelfTeacherTrainerMixin

    def __new__(cls, *args: Any, **kwargs: Any):
        config = kwargs.get("config", args[0] if args else None)
        method = None if config is None else method_class(config)
        if method is not None and not issubclass(cls, SelfTeacherTrainerMixin):
            cls = stock_trainer(cls, method)
        return object.__new__(cls)

    trainer_base.PPOTrainer.__new__ = staticmethod(__new__)


@functools.cache
def stock_trainer(trainer_cls: type, method: type[MethodConfig]) -> type:
    """A trainer class of verl with a self-teacher, on stock verl; named after its method."""
    from verl_cast.training.trainer import SelfTeacherTrainerMixin

    title = "".join(part.capitalize() for part in method.NAME.split("_"))
    return type(f"{title}{trainer_cls.__name__}", (SelfTeacherTrainerMixin, StockStages, trainer_cls), {})


def with_stored_fields(estimator: Callable[..., Any]) -> Callable[..., Any]:
    """The estimator as stock verl calls it, without batch fields: `StockStages` has read them."""
    from verl_cast.training.estimator import current_call

    @functools.wraps(estimator)
    def with_fields(**arguments: Any) -> Any:
        call = current_call()
        return estimator(**arguments, **({} if call is None else call.fields))

    return with_fields


class StockStages:
    """Goes between SelfTeacherTrainerMixin and a trainer class of verl: what its stages would do with the hooks."""

    def _init_resource_pool_mgr(self):
        from verl.trainer.ppo.utils import Role

        super()._init_resource_pool_mgr()
        for role in (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef):
            if role in self.role_worker_mapping:
                worker_cls = self.role_worker_mapping[role].__ray_metadata__.modified_class.__ray_actor_class__
                self.role_worker_mapping[role] = ray.remote(stock_worker(worker_cls))

    def _compute_advantage(self, batch, metrics: dict):
        import transfer_queue as tq

        from verl_cast.training.estimator import BATCH_FIELDS, current_call

        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(BATCH_FIELDS))
        missing = [name for name in BATCH_FIELDS if name not in data]
        if missing:
            raise RuntimeError(
                f"CAST: the actor workers returned no {', '.join(missing)}. Stopping: without them the run would be "
                "GRPO."
            )
        data = data.to_padded_tensor()
        current_call().fields = {name: data[name] for name in BATCH_FIELDS}
        return super()._compute_advantage(batch, metrics)


class StockWorkerMixin:
    """Goes before a worker class with a self-teacher."""

    def _one_pass_loss(self, data, rule):
        from verl.utils import tensordict_utils as tu

        from verl_cast.training.one_pass_loss import OnePassLossOnLogits

        loss = super()._one_pass_loss(data, rule)
        if not isinstance(loss, OnePassLossOnLogits):
            return loss
        # (Megatron's engine then also empties the allocator's cache before its optimizer step.)
        tu.assign_non_tensor(data, distillation_use_topk=True)
        return LogitsByFlag(loss)


class LogitsByFlag:
    """A loss as verl 0.9 calls it if the data hold `distillation_use_topk`: first with the logits, then as a loss.

    Args:
        loss: a OnePassLossOnLogits.
    """

    def __init__(self, loss):
        self._loss = loss
        self.outputs = loss.outputs

    def __call__(self, model_output=None, data=None, dp_group=None, student_logits=None, data_format=None):
        if student_logits is not None:
            return self._loss.process_logits(student_logits, data, data_format)
        return self._loss(model_output=model_output, data=data, dp_group=dp_group)


@functools.cache
def stock_worker(worker_cls: type) -> type:
    """A worker class of verl with a self-teacher, on stock verl."""
    from verl_cast.training.worker import with_self_teacher

    return type(f"SelfTeacher{worker_cls.__name__}", (StockWorkerMixin, with_self_teacher(worker_cls)), {})
