"""What a CAST step costs: GRPO, CAST in one pass and CAST in two passes by turns, inside one real verl run.

    python tests/benchmarks/bench_steps.py                                   the point `base`, a tiny model
    python tests/benchmarks/bench_steps.py --model DIR --rounds 4 base lora  a real model, two runs
    python tests/benchmarks/bench_steps.py --arms grpo,measured batch        a measurement of trust=measured
    python tests/benchmarks/bench_steps.py base actor_rollout_ref.actor.optim.lr=1e-5     verl settings win

A round has one step of each arm; ratios are taken within rounds, and the first round is warm-up. All arms share the
run: processes, weights, prompts, policy loss (`cast`). In GRPO's turn the trainer has verl's own methods, and verl's
estimator. Every response has its full length, so all steps have one shape. The teacher is the snapshot from before the
first step: taking snapshots is not measured here. Without a GPU the run uses the CPU platform.

The same file is loaded into the run's processes (VERL_USE_EXTERNAL_MODULES), where $BENCH_ARMS makes the turns.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support")]

# measured: a GRPO step that measures its teacher, as the first of every refresh_interval steps does.
GRPO, ONE_PASS, TWO_PASS, MEASURED = ALL_ARMS = ("grpo", "one_pass", "two_pass", "measured")
ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
PROMPT_LENGTH, MICRO_BATCH = 96, 8
# name: (prompts, responses to each, tokens of a response, overrides)
POINTS: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "base": (4, 8, 64, ()),
    "batch": (64, 8, 64, ()),
    "group_small": (4, 2, 64, ()),
    "response_long": (4, 2, 256, ()),
    "context_same": (4, 8, 64, ("++algorithm.cast.teacher.context=same",)),
    "lora": (
        4,
        2,
        64,
        (
            f"{MODEL}.lora_rank=8",
            f"{MODEL}.lora_alpha=16",
            f"{MODEL}.target_modules=all-linear",
            f"{MODEL}.lora.merge=True",
        ),
    ),
    "micro_dynamic": (
        4,
        2,
        64,
        (
            f"{MODEL}.use_remove_padding=True",
            f"{ACTOR}.use_dynamic_bsz=True",
            f"{ACTOR}.ppo_max_token_len_per_gpu={MICRO_BATCH * (PROMPT_LENGTH + 64)}",
            f"{ROLLOUT}.log_prob_use_dynamic_bsz=True",
            f"{ROLLOUT}.log_prob_max_token_len_per_gpu={MICRO_BATCH * (PROMPT_LENGTH + 64)}",
        ),
    ),
}
# verl's stages and ours, in the order of a step.
STAGES = (
    "cast_trust",
    "gen",
    "old_log_prob",
    "cast_teacher",
    "adv",
    "update_actor",
    "cast_after_update",
    "update_weights",
    "step",
)


def arm_of_step(step: int, arms: tuple[str, ...]) -> str:
    """The arm of training step `step` (from 1). Every other round runs backwards, so no arm always comes first."""
    number, place = divmod(step - 1, len(arms))
    return arms[place] if number % 2 == 0 else arms[-1 - place]


# ---------------------------------------------------------------------------------------------- in the run's processes


@functools.cache
def with_verls_methods(cls: type) -> type:
    """A trainer class of ours in which every method that verl's class has is verl's."""
    stock = next(base for base in cls.__mro__ if base.__module__.split(".")[0] == "verl")
    overridden = {name for base in cls.__mro__[: cls.__mro__.index(stock)] for name in vars(base)}
    methods = {name for name in overridden & set(dir(stock)) if name == "__init__" or not name.startswith("__")}
    return type(stock.__name__, (cls,), {name: getattr(stock, name) for name in methods})


@contextlib.contextmanager
def turn(trainer, arm: str):
    """The trainer as it is in one arm; for GRPO verl's own."""
    algorithm, cls, because = trainer.config.algorithm, type(trainer), trainer._two_passes_because
    estimator = algorithm.adv_estimator
    if arm == GRPO:
        trainer.__class__ = with_verls_methods(cls)
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
        trainer.__class__, algorithm.adv_estimator, trainer._two_passes_because = cls, estimator, because


def measure_in_this_step(trainer) -> None:
    """As in the first step of trust=measured, with 128 responses: the teacher is measured, and never trusted.

    The step is GRPO's otherwise. Its cost beyond a GRPO step is that of a measurement.
    """
    from verl_cast.training.trust import Trust

    decide = type(trainer)._teacher_is_trusted
    trainer._trust, trainer._template = Trust(128, math.inf, refresh_interval=1), None
    # The run's teacher is the first step's, and not the weights that are measured.
    trainer._teacher_is_trusted = lambda batch, data, age: decide(trainer, batch, data, teacher_age=0)


def _install_turns(arms: tuple[str, ...], trainer_base) -> None:
    stock = trainer_base.PPOTrainer.step

    @functools.wraps(stock)
    def step(self, *args, **kwargs):
        self.replay_buffer.poll_interval = 0.1  # verl's own 2 s would round the seconds of `gen`
        with turn(self, arm_of_step(self.global_steps, arms)):
            return stock(self, *args, **kwargs)

    trainer_base.PPOTrainer.step = step


if os.environ.get("BENCH_ARMS"):
    import wrapt

    _arms = tuple(os.environ["BENCH_ARMS"].split(","))
    wrapt.register_post_import_hook(functools.partial(_install_turns, _arms), "verl.trainer.ppo.v1.trainer_base")


# -------------------------------------------------------------------------------------------------------- from outside


def overrides(point: str, data: Path, model: Path, steps: int) -> list[str]:
    """verl's settings of a point."""
    prompts, responses, length, more = POINTS[point]
    return [
        "algorithm.adv_estimator=cast",
        "++algorithm.cast.teacher.refresh_interval=1000000",
        "++algorithm.cast.noise_floor_interval=null",
        f"data.train_files={data}",
        f"data.val_files={data}",
        f"data.train_batch_size={prompts}",
        f"data.max_prompt_length={PROMPT_LENGTH}",
        f"data.max_response_length={length}",
        f"{MODEL}.path={model}",
        f"{ACTOR}.ppo_mini_batch_size={prompts}",
        f"{ACTOR}.ppo_micro_batch_size_per_gpu={MICRO_BATCH}",
        f"{ACTOR}.optim.lr=1e-6",
        f"{ROLLOUT}.n={responses}",
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu={MICRO_BATCH}",
        f"{ROLLOUT}.ignore_eos=True",
        f"{ROLLOUT}.max_num_seqs={prompts * responses}",
        f"{ROLLOUT}.max_model_len={2 * PROMPT_LENGTH + length}",  # the teacher's prompt is longer
        "trainer.save_freq=-1",
        f"trainer.total_training_steps={steps}",
        f"trainer.total_epochs={steps}",
        *more,
    ]


def run_point(point: str, arms: tuple[str, ...], rounds: int, model: Path | None, further: list[str]) -> list[dict]:
    """verl's metrics of every step of a run.

    Raises:
        SystemExit: the run failed, or an arm did not do what its name says.
    """
    import tiny
    import torch
    from verl_run import command_and_environment, execute

    directory, steps = Path(tempfile.mkdtemp(prefix="bench_steps_")), rounds * len(arms)
    tiny.write(directory)
    settings = overrides(point, directory / "train.parquet", model or directory / "model", steps)
    environment = {
        "PYTHONPATH": f"{HERE}:{HERE.parent / 'support'}:{os.environ.get('PYTHONPATH', '')}",
        "VERL_USE_EXTERNAL_MODULES": "bench_steps",
        "BENCH_ARMS": ",".join(arms),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),  # Ray gives an actor one thread
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    if torch.cuda.is_available():
        settings.append("trainer.device=cuda")
        environment["VERL_PLATFORM"] = "cuda"
    command, environment = command_and_environment(
        directory / "run", directory, *settings, *further, tools=False, env=environment
    )
    print(f"{point}: {steps} steps; the log is {directory}/run/output.log", flush=True)
    run = execute(directory / "run", command, environment, timeout=600 * (steps + 1))
    if run.returncode != 0:
        raise SystemExit("\n".join([*run.output.splitlines()[-30:], f"{point}: verl ended with {run.returncode}."]))
    check(run.metrics, arms, POINTS[point][2])
    return run.metrics


def check(steps: list[dict], arms: tuple[str, ...], length: int) -> None:
    """
    Raises:
        SystemExit: a step had another shape, or an arm did not do what its name says.
    """
    for number, metrics in enumerate(steps, start=1):
        arm = arm_of_step(number, arms)
        expected = {"response_length/min": length, "response_length/max": length}
        if arm != GRPO:
            expected["cast/one_pass"] = float(arm == ONE_PASS)
            if arm == MEASURED:
                expected["cast/trust/trusted"] = 0.0
            elif number > len(arms):  # in the first round teacher and policy are one in some arm
                expected["cast/teacher/forward"] = 1.0
        found = {key: metrics.get(key) for key in expected}
        if found != expected or (arm == GRPO and any(key.startswith("cast/") for key in metrics)):
            raise SystemExit(f"step {number}, the turn of {arm}: expected {expected}, found {found}.")


def table(steps: list[dict], arms: tuple[str, ...]) -> str:
    """Median seconds of every stage by arm, and the ratio to GRPO's step of the same round, its worst round beside it.

    The first round is left out.
    """
    rounds = [
        {arm_of_step(number + 1, arms): steps[number] for number in range(start, start + len(arms))}
        for start in range(len(arms), len(steps), len(arms))
    ]
    lines = [f"{'seconds':18s}" + "".join(f"{arm:>26s}" for arm in arms)]
    for stage in STAGES:
        found = [median(r[arm].get(f"timing_s/{stage}", 0.0) for r in rounds) for arm in arms]
        lines.append(f"{stage:18s}" + "".join(f"{value:26.2f}" for value in found))
    ratios = {arm: [r[arm]["timing_s/step"] / r[GRPO]["timing_s/step"] for r in rounds] for arm in arms}
    shown = [f"{median(ratios[arm]):.2f} (worst {max(ratios[arm]):.2f})" for arm in arms]
    lines.append(f"{'ratio to GRPO':18s}" + "".join(f"{value:>26s}" for value in shown))
    return "\n".join([*lines, f"{len(rounds)} rounds after one of warm-up"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="POINT or KEY=VALUE", help=f"points: {', '.join(POINTS)}")
    parser.add_argument("--model", type=Path, help="directory of a model with a chat template; default: a tiny one")
    parser.add_argument("--arms", default=f"{GRPO},{ONE_PASS},{TWO_PASS}", help=f"of {', '.join(ALL_ARMS)}")
    parser.add_argument("--rounds", type=int, default=4, help="after one of warm-up")
    parser.add_argument("--out", type=Path, help="append a JSON line for each point")
    args = parser.parse_args()
    further = [name for name in args.names if "=" in name]
    points = [name for name in args.names if "=" not in name] or ["base"]
    if unknown := set(points) - set(POINTS):
        parser.error(f"no such point: {', '.join(unknown)}; the points are {', '.join(POINTS)}")
    arms = tuple(args.arms.split(","))
    if not {GRPO} <= set(arms) <= set(ALL_ARMS):
        parser.error(f"--arms {args.arms}: must hold {GRPO}, and others of {', '.join(ALL_ARMS)}")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    for point in points:
        steps = run_point(point, arms, args.rounds + 1, args.model and args.model.resolve(), further)
        print(f"{table(steps, arms)}\n", flush=True)
        if args.out:
            with args.out.open("a") as out:
                out.write(json.dumps({"point": point, "model": str(args.model or "tiny"), "steps": steps}) + "\n")


if __name__ == "__main__":
    main()
