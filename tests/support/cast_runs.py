"""Real runs of verl that several test files read, and what it means that two runs are the same.

verl's own command, Ray, vLLM on the CPU and the tiny model. Runs are comparable bit for bit: run_tools.py seeds every
response and orders every batch by content.
"""

import queue_of_runs
import scripts
import torch
from torch.distributed.tensor import DTensor
from verl_run import SUPPORT, run_verl

CAST = "algorithm.adv_estimator=cast"
MEASURED = (CAST, "+algorithm.cast.trust=measured", "+algorithm.cast.trust_responses=64")
# The teacher is better, and the policy catches up in step 4.
BETTER_TEACHER = (
    "actor_rollout_ref.rollout.agent.default_agent_loop=prompt_shown",
    f"reward.custom_reward_function.path={SUPPORT / 'reward_by_prompt.py'}",
)
# Without trust=measured: what a step with trust must be equal to. There are 64 problems, and a step takes 32 of them,
# so the training batch answers them for the policy.
ALWAYS = (
    CAST,
    *BETTER_TEACHER,
    "data.train_batch_size=32",
    "actor_rollout_ref.actor.ppo_mini_batch_size=32",
    "trainer.total_epochs=3",
    "trainer.save_freq=1",
    "+algorithm.cast.teacher.refresh_interval=2",
    "+algorithm.cast.gap_deadzone=noise",
    "+algorithm.cast.noise_floor_interval=3",
)
TRUSTED = (*ALWAYS, *MEASURED[1:])
SEPARATE_ASYNC = (
    "trainer.v1.trainer_mode=separate_async",
    "trainer.v1.separate_async.parameter_sync_step=1",
    "actor_rollout_ref.hybrid_engine=False",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=gloo",
)


def steps(total):
    return f"trainer.total_training_steps={total}"


# name: (overrides, arguments of run_verl).
RUNS = {
    # Killed with SIGKILL between two saves, right after the update of step 5.
    "trusted": (
        (
            *TRUSTED,
            steps(6),
            "trainer.rollout_data_dir=rollouts",
            "+algorithm.cast.dump.interval=1",
            "+algorithm.cast.dump.groups=2",
        ),
        {"kill_when": "dump/step_5.pt"},
    ),
    "colocate_async": (
        (
            *MEASURED,
            *BETTER_TEACHER,
            "trainer.v1.trainer_mode=colocate_async",
            "trainer.v1.colocate_async.num_warmup_batches=0",  # every rollout is of the newest policy
            "trainer.save_freq=2",
            "+algorithm.cast.teacher.refresh_interval=2",
            "+algorithm.cast.dump.interval=2",
            "actor_rollout_ref.actor.fsdp_config.fsdp_size=2",
            "trainer.n_gpus_per_node=2",
            "+ray_kwargs.ray_init.num_gpus=2",
        ),
        {"model": "tiny_moe", "engine": "fsdp", "env": {"REWARD_FAILS_FROM": "2"}},
    ),
    "separate_async": (
        (
            *MEASURED,
            *BETTER_TEACHER,
            *SEPARATE_ASYNC,
            "trainer.n_gpus_per_node=2",
            "+ray_kwargs.ray_init.num_gpus=3",
            "actor_rollout_ref.model.use_remove_padding=True",
            "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
        ),
        # verl's log call for hybrid_engine=False passes an argument that logging rejects
        {"env": {"VERL_LOGGING_LEVEL": "WARN"}},
    ),
    "lora": (
        (
            CAST,
            "actor_rollout_ref.model.lora_rank=8",
            "actor_rollout_ref.model.lora_alpha=16",
            "actor_rollout_ref.model.target_modules=all-linear",
            "actor_rollout_ref.model.lora.merge=True",
            "actor_rollout_ref.actor.optim.lr=1e-2",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            "actor_rollout_ref.actor.ppo_epochs=2",
            "actor_rollout_ref.rollout.agent.default_agent_loop=two_turns",
            "trainer.test_freq=1",
            "+algorithm.cast.teacher.weights=ema",
            "+algorithm.cast.teacher.ema_decay=0.5",
            "+algorithm.cast.teacher.context=same",
        ),
        {},
    ),
    "megatron": ((CAST, "+algorithm.cast.teacher.refresh_interval=2"), {"engine": "megatron"}),
}


def start(overrides, model="tiny", **arguments):
    return lambda directory, runs: run_verl(directory, runs(model), *overrides, **arguments)


for _name, (_overrides, _arguments) in RUNS.items():
    # Two ranks do not run beside the quick start: together they need all of the machine's memory.
    _seconds, _memory = (150, 8) if "trainer.n_gpus_per_node=2" in _overrides else (100, 6)
    _model = _arguments.get("model", "tiny")
    queue_of_runs.add(_name, start(_overrides, **_arguments), _seconds, _memory, after=[_model])


@queue_of_runs.job("trusted_resumed", after=["tiny", "trusted"])
def trusted_resumed(directory, runs):
    """From the checkpoint of step 1, with a separate pass for the old log-probs."""
    checkpoint = runs("trusted").directory / "checkpoints" / "global_step_1"
    resume = ("trainer.resume_mode=resume_path", f"+trainer.resume_from_path={checkpoint}")
    return run_verl(directory, runs("tiny"), *TRUSTED, *resume, steps(4), "+algorithm.cast.one_pass=False")


# The first run on a GPU and its twin, with rewards that do not know the teacher from the policy.
GSM8K_SETTINGS = (
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "actor_rollout_ref.rollout.n=4",
    "trainer.save_freq=3",
)
GSM8K_TOGGLES = ("STEPS=3", "TEACHER=plain", "VALIDATE_EVERY=50", "TENSORBOARD=1", "DUMP_EVERY=1")


def start_gsm8k(*toggles, arguments=(), **settings):
    toggles, arguments = (*GSM8K_TOGGLES, *toggles), (*GSM8K_SETTINGS, *arguments)

    def run(directory, runs):
        return scripts.run_on_cpu(scripts.GSM8K, directory, runs("tiny"), *toggles, arguments=arguments, **settings)

    return run


NEVER_TRUSTED = ("++algorithm.cast.trust_responses=64", "++algorithm.cast.teacher.refresh_interval=2")
queue_of_runs.add("never_trusted", start_gsm8k(arguments=NEVER_TRUSTED), after=["tiny"])
queue_of_runs.add("grpo", start_gsm8k("METHOD=grpo"), after=["tiny"])
queue_of_runs.add("grpo_without_plugin", start_gsm8k("METHOD=grpo", plugin=False), after=["tiny"])


def column(run, name):
    """A metric of every step; None where a step has none."""
    return [metrics.get(f"cast/{name}") for metrics in run.metrics if "training/global_step" in metrics]


def assert_same_batches(run, other, step, size=16):
    rows, other_rows = run.batch(step)["rows"], other.batch(step)["rows"]
    assert len(rows) == len(other_rows) == size
    for row, other_row in zip(rows, other_rows, strict=True):
        for name in row:
            assert torch.equal(row[name], other_row[name]), f"step {step}: {name} differs"


def assert_same_parameters(run, other, step):
    parameters, others = run.parameters(step), other.parameters(step)
    assert parameters.keys() == others.keys()
    for name, tensor in parameters.items():
        tensors = [t.to_local() if isinstance(t, DTensor) else t for t in (tensor, others[name])]
        assert torch.equal(*tensors), f"{name} differs after step {step}"
