"""Runs the scripts of examples/ for tests: as a dry run, or scaled down to the tiny model and a CPU."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import verl_run

EXAMPLES = Path(__file__).parents[2] / "examples"
ENGINES = ("run_qwen3_fsdp.sh", "run_qwen3_megatron.sh")
FSDP, MEGATRON = ENGINES
GSM8K = "run_gsm8k.sh"
TRAININGS = [(FSDP, f"SIZE={size}") for size in ("1.7b", "4b", "8b")] + [
    (MEGATRON, f"SIZE={size}") for size in ("4b", "8b")
]

METHODS = ("cast", "grpo", "opsd", "grpo_opsd", "rlsd", "rlrt")
CAST = "algorithm.cast"
# What each ablation changes in the composed config (method section 9), and nothing else.
ABLATIONS = {
    "mixed_only": {f"{CAST}.base_correct": 0, f"{CAST}.base_wrong": 0},
    "no_flip": {f"{CAST}.flip": "none"},
    "flip_correct": {f"{CAST}.flip": "correct"},
    "flip_wrong": {f"{CAST}.flip": "wrong"},
    "zero_variance": {f"{CAST}.flip_groups": "zero_variance"},
    "symmetric_clip": {f"{CAST}.positive_clip": [0.8, 1.2], f"{CAST}.negative_clip": [0.8, 1.2]},
    "half_base": {f"{CAST}.base_correct": 0.5, f"{CAST}.base_wrong": 0.5},
    "initial_teacher": {f"{CAST}.teacher.weights": "initial"},
    "same_prompt": {f"{CAST}.teacher.context": "same"},
    "ema_teacher": {f"{CAST}.teacher.weights": "ema"},
}
# Settings of verl_run that the scripts set themselves or take as toggles.
_OF_THE_SCRIPT = (
    "model_engine",
    "data.train_files",
    "data.val_files",
    "data.train_batch_size",
    "data.seed",
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.actor.strategy",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.rollout.name",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
    "trainer.logger",
    "trainer.val_before_train",
    "trainer.test_freq",
    "trainer.total_training_steps",
    "trainer.total_epochs",
    "trainer.project_name",
    "trainer.experiment_name",
    "trainer.default_local_dir",
)


def dry_run(script: str, *toggles: str, arguments: list[str] | None = None) -> subprocess.CompletedProcess:
    """Runs the script with toggles like METHOD=grpo and DRY_RUN=true. It prints verl's command and starts nothing."""
    environment = {**os.environ, "DRY_RUN": "true", **dict(toggle.split("=", 1) for toggle in toggles)}
    command = ["bash", EXAMPLES / script, *(arguments or [])]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def overrides(script: str, *toggles: str, arguments: list[str] | None = None) -> list[str]:
    """The overrides of verl's command that the script would start; all fit the config cast_trainer."""
    done = dry_run(script, *toggles, arguments=arguments)
    assert done.returncode == 0, done.stderr
    program, words = done.stdout.split("python -m verl.trainer.main_ppo ")
    assert program == "" or program.startswith("env ")
    return [word for word in shlex.split(words) if word != "--config-name=cast_trainer"]


def run_on_cpu(
    script: str,
    directory: Path,
    tiny_directory: Path,
    *toggles: str,
    arguments: tuple[str, ...] = (),
    plugin: bool = True,
) -> verl_run.Run:
    """One real step of a script in `directory`, with random rewards, so that groups are mixed.

    Args:
        toggles: as METHOD=grpo.
        arguments: settings of verl at the end of the command.
        plugin: as in verl_run.
    """
    engine = "megatron" if "megatron" in script else "fsdp2"
    scaled, environment = _scaled(directory, tiny_directory, engine, plugin=plugin)
    scaled += ["trainer.save_freq=1", *arguments]
    data = directory / "data"
    data.mkdir()
    for name in ("dapo_math_17k", "aime24", "gsm8k_train", "gsm8k_test"):
        (data / f"{name}.parquet").symlink_to(tiny_directory / "train.parquet")
    environment |= {
        "MODEL_PATH": str(tiny_directory / "model"),
        "DATA_DIR": str(data),
        "OUT_DIR": str(directory.parent),
        "EXPERIMENT": directory.name,
        "STEPS": "1",
        "VALIDATE_EVERY": "-1",
        **dict(toggle.split("=", 1) for toggle in toggles),
    }
    return verl_run.execute(directory, ["bash", str(EXAMPLES / script), *scaled], environment)


def _scaled(
    directory: Path, tiny_directory: Path, engine: str, left_out: tuple[str, ...] = (), plugin: bool = True
) -> tuple[list[str], dict[str, str]]:
    """Settings that scale a script down to the tiny model and a CPU, and the environment for it."""
    command, environment = verl_run.command_and_environment(directory, tiny_directory, engine=engine, plugin=plugin)
    scaled = [o for o in command[3:] if o.split("=", 1)[0].lstrip("+") not in _OF_THE_SCRIPT + left_out]
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NGPUS": "1",
        "TP": "1",
        "ROLLOUT_TP": "1",
    }
    return [*scaled, "actor_rollout_ref.actor.use_dynamic_bsz=False", verl_run.forked_workers()], environment


def evaluate_on_cpu(directory: Path, tiny_directory: Path, *toggles: str) -> verl_run.Run:
    """examples/evaluate.sh with the tiny model's problems as the benchmark `tiny`, and its random reward.

    Args:
        toggles: as CHECKPOINT=..., EXPERIMENT=...
    """
    of_evaluation = ("reward.custom_reward_function.path", "trainer.resume_mode")
    scaled, environment = _scaled(directory, tiny_directory, "fsdp2", of_evaluation)
    scaled.append(f"+reward.custom_reward_function.reward_kwargs.function={tiny_directory / 'reward.py'}")
    (directory / "tiny.parquet").symlink_to(tiny_directory / "train.parquet")
    environment |= {
        "MODEL_PATH": str(tiny_directory / "model"),
        "DATA_DIR": str(directory),
        "OUT_DIR": str(directory),
        "BENCHMARKS": "tiny",
        **dict(toggle.split("=", 1) for toggle in toggles),
    }
    return verl_run.execute(directory, ["bash", str(EXAMPLES / "evaluate.sh"), *scaled], environment)


def slurm(
    directory: Path, head_ip: str = "10.0.0.1", submitted_in: Path = EXAMPLES.parent
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Runs the job script for two nodes, with stand-ins for srun, ray and python. Also returns calls of srun and ray.

    Ray is not started, because every other run on this machine would find its head. The script prints its command.
    """
    programs, calls = directory / "bin", directory / "calls"
    programs.mkdir()
    for name, body in (
        ("srun", f'echo "srun $*" >> {calls}'),
        ("ray", f'echo "ray $*" >> {calls}'),
        ("python", f"wc -l < {calls}"),  # nodes alive: one per call
    ):
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(submitted_in),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURMD_NODENAME": "node1",
        "SLURM_CPUS_PER_TASK": "64",
        "HEAD_IP": head_ip,
        "DRY_RUN": "1",
    }
    command = ["bash", EXAMPLES / "run_qwen3_8b_fsdp_slurm.sbatch", "trainer.save_freq=50"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done, sorted(calls.read_text().splitlines()) if calls.exists() else []


SEES_THE_CLUSTER = """python -c '
import ray
ray.init(log_to_driver=False)
print("alive", sum(node["Alive"] for node in ray.nodes()), "GPUs", ray.cluster_resources()["GPU"])
'
echo "arguments $*, NNODES $NNODES"
"""


def ray_cluster(directory: Path) -> subprocess.CompletedProcess:
    """`ray_cluster.sh run` in a cluster of two real Ray nodes on this machine, with a stand-in for the training script.

    Ray's files are in a directory of their own, so that no other run on this machine finds this cluster.
    """
    import ray

    (directory / "script.sh").write_text(SEES_THE_CLUSTER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray", dir="/tmp"),  # sockets need a short path
        "HEAD_IP": ray.util.get_node_ip_address(),
        "PORT": str(_free_port()),
        "NGPUS": "1",
        "SCRIPT": os.path.relpath(directory / "script.sh", EXAMPLES),
    }
    settings = {"env": environment, "cwd": EXAMPLES.parent, "text": True}
    nodes = []

    def start(command: str, log: str) -> Path:
        with (directory / log).open("w") as output:
            # A session of its own, because a terminal's Ctrl-C reaches a whole group of processes.
            node = subprocess.Popen(
                ["bash", "-c", command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **settings
            )
        nodes.append(node)
        return directory / log

    try:
        head = start("bash examples/ray_cluster.sh head", "head.log")
        while "Ray runtime started" not in head.read_text() and nodes[0].poll() is None:
            time.sleep(0.5)
        join, run = (line.split(":    ")[1] for line in head.read_text().splitlines()[:2])
        start(join, "join.log")
        return subprocess.run(["bash", "-c", f"{run} a.b=c"], capture_output=True, timeout=300, **settings)
    finally:
        for node in reversed(nodes):
            os.killpg(node.pid, signal.SIGINT)
        for node in nodes:
            try:
                node.wait(timeout=20)
            except subprocess.TimeoutExpired:  # Ray's own end can take minutes on a busy machine
                os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]
