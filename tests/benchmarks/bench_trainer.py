"""The turns of bench_steps.py inside one real verl run, loaded through VERL_USE_EXTERNAL_MODULES.

$BENCH_ARMS names the arms; without it this module does nothing. Every training step is the turn of one arm
(`arm_of_step`). In a turn of GRPO the self-teacher's trainer runs verl's own stages, and the estimator is `grpo`.

Three things are the same in all arms:
* The policy loss is built into the workers.
* The trainer polls for responses every 0.1 s. verl's own 2 s would round the seconds of `gen`.
* The memory peaks are read and reset after every step.

The peaks and the arm are added to verl's metrics as `bench/*`. Of verl's own metrics only the accelerator's peaks
change: they now cover one step.
"""

import contextlib
import functools
import inspect
import math
import os
import time

import psutil
import wrapt

GRPO, ONE_PASS, TWO_PASS, MEASURED = "grpo", "one_pass", "two_pass", "measured"
ARMS = (GRPO, ONE_PASS, TWO_PASS)  # by default
ALL_ARMS = (*ARMS, MEASURED)
POLL_SECONDS = 0.1


def arm_of_step(step: int, arms: tuple[str, ...]) -> str:
    """The arm of training step `step` (from 1).

    A round holds one turn of each arm. Every other round reverses the order. So no arm always comes first, and a steady
    drift affects all arms alike.
    """
    number, place = divmod(step - 1, len(arms))
    return arms[place] if number % 2 == 0 else arms[-1 - place]


@contextlib.contextmanager
def turn(trainer, arm: str):
    """Set up the trainer for one step of the arm."""
    algorithm, because = trainer.config.algorithm, trainer._two_passes_because
    stock = algorithm.adv_estimator
    if arm == GRPO:
        algorithm.adv_estimator = "grpo"
    elif arm == TWO_PASS:
        trainer._two_passes_because = "it is their turn"
    elif arm == MEASURED:
        measure_in_this_step(trainer)
    try:
        yield
    finally:
        trainer._trust = None
        vars(trainer).pop("_teacher_is_trusted", None)
        algorithm.adv_estimator, trainer._two_passes_because = stock, because


def measure_in_this_step(trainer) -> None:
    """As in the first step of trust=measured, with 128 responses: the teacher is measured, and never trusted.

    The step is GRPO's otherwise. Its cost beyond a GRPO step is that of a measurement.
    """
    from verl_cast.training.trust import Trust

    decide = type(trainer)._teacher_is_trusted
    trainer._trust, trainer._template = Trust(128, math.inf, refresh_interval=1), None
    # The run's teacher is the first step's, and not the weights that are measured.
    trainer._teacher_is_trusted = lambda batch, data, age: decide(trainer, batch, data, teacher_age=0)


def let_grpo_through(mixin: type, is_grpo) -> None:
    """Where `is_grpo(self)`, bypass the overrides of `mixin`. Methods that `mixin` adds are unchanged."""

    def either(name, own):
        @functools.wraps(own)
        def stage(self, *args, **kwargs):
            overridden = getattr(super(mixin, self), name, None) if is_grpo(self) else None
            return own(self, *args, **kwargs) if overridden is None else overridden(*args, **kwargs)

        return stage

    for name, own in list(vars(mixin).items()):
        if inspect.isfunction(own) and not name.startswith("__"):
            setattr(mixin, name, either(name, own))


def memory_since_last_call(device_module=None) -> dict[str, int]:
    """Bytes of this process: `rss` now, `peak_rss` and the accelerator's `peak` since the previous call.

    Where the kernel cannot reset a process's peak (no /proc/self/clear_refs), there is no `peak_rss`.
    """
    memory = {"rss": psutil.Process().memory_info().rss}
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # man 5 proc: resets the peak resident set size to the current one
        clear.flush()
        memory["peak_rss"] = peak
    if device_module is not None:
        memory["peak"] = device_module.max_memory_allocated()
        device_module.reset_peak_memory_stats()
    return memory


def _install_turns(arms: tuple[str, ...], trainer_base) -> None:
    trainer = trainer_base.PPOTrainer
    step, compute_metrics = trainer.step, trainer._compute_metrics

    @functools.wraps(step)
    def step_of_an_arm(self, *args, **kwargs):
        self.replay_buffer.poll_interval = POLL_SECONDS
        with turn(self, arm_of_step(self.global_steps, arms)):
            return step(self, *args, **kwargs)

    @functools.wraps(compute_metrics)
    def compute_metrics_and_memory(self, batch, metrics, timing_raw, **kwargs):
        started = time.perf_counter()
        compute_metrics(self, batch, metrics, timing_raw, **kwargs)
        # verl's `step` ends before this. The metric shows work that an arm moves here.
        metrics["bench/after_step_s"] = time.perf_counter() - started
        metrics["bench/arm"] = ALL_ARMS.index(arm_of_step(self.global_steps, arms))
        ranks = self.actor_rollout_wg.bench_memory()
        for name in ranks[0]:
            metrics[f"bench/worker/{name}"] = max(rank[name] for rank in ranks)
        metrics.update({f"bench/trainer/{name}": value for name, value in memory_since_last_call().items()})

    trainer.step, trainer._compute_metrics = step_of_an_arm, compute_metrics_and_memory


def _install_bypass(arms: tuple[str, ...], cast_trainer) -> None:
    def is_grpo(trainer) -> bool:  # the set-up before the first step is CAST's
        step = getattr(trainer, "global_steps", 0)
        return step > 0 and arm_of_step(step, arms) == GRPO

    let_grpo_through(cast_trainer.SelfTeacherTrainerMixin, is_grpo)


def _install_memory(engine_workers) -> None:
    from verl.single_controller.base.decorator import Dispatch, register
    from verl.utils.device import get_torch_device

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def bench_memory(self):
        return memory_since_last_call(get_torch_device())

    engine_workers.ActorRolloutRefWorker.bench_memory = bench_memory


def _install(arms: tuple[str, ...]) -> None:
    when = wrapt.register_post_import_hook
    when(functools.partial(_install_turns, arms), "verl.trainer.ppo.v1.trainer_base")
    when(functools.partial(_install_bypass, arms), "verl_cast.training.trainer")
    when(_install_memory, "verl.workers.engine_workers")


if os.environ.get("BENCH_ARMS"):
    _install(tuple(os.environ["BENCH_ARMS"].split(",")))
