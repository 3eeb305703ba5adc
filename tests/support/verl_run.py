"""Starts real verl runs (Ray, FSDP2 or Megatron, vLLM on the CPU) of the tiny model for the end-to-end tests."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import warm_python

SUPPORT = Path(__file__).parent
TIMEOUT = 900  # seconds of a run

_ACTOR = "actor_rollout_ref.actor"
_FSDP = (
    "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
    f"{_ACTOR}.fsdp_config.use_torch_compile=False",
    f"+{_ACTOR}.fsdp_config.mixed_precision={{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}}",
)
# Settings of each training engine for a CPU, in float32.
ENGINES = {
    "fsdp": (f"{_ACTOR}.strategy=fsdp", *_FSDP),
    "fsdp2": (f"{_ACTOR}.strategy=fsdp2", *_FSDP),
    "megatron": (
        "model_engine=megatron",
        f"{_ACTOR}.megatron.vanilla_mbridge=True",
        f"{_ACTOR}.megatron.dtype=float32",
        "actor_rollout_ref.ref.megatron.dtype=float32",  # it does not follow the actor's dtype
    ),
}


@dataclass
class Run:
    """Results of a finished run."""

    returncode: int
    output: str
    directory: Path
    seconds: float

    @property
    def metrics(self) -> list[dict]:
        """verl's own metrics, one dict a step."""
        path = self.directory / "metrics.jsonl"
        return [json.loads(line)["data"] for line in path.read_text().splitlines()]

    def batch(self, step: int) -> dict:
        return torch.load(self.directory / "dump" / f"step_{step}.pt", weights_only=True)

    def parameters(self, step: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        """This rank's shard of the actor's checkpoint."""
        name = f"model_world_size_{world_size}_rank_{rank}.pt"
        path = self.directory / "checkpoints" / f"global_step_{step}" / "actor" / name
        return torch.load(path, weights_only=False)


def run_verl(directory: Path, tiny_directory: Path, *overrides: str, kill_when: str | None = None, **settings) -> Run:
    """`python -m verl.trainer.main_ppo` with the tiny model; see command_and_environment for the other settings.
    Its workers are forked (warm_python.py).

    Args:
        kill_when: SIGKILL every process of the run as soon as this file (below `directory`) exists.
    """
    command, environment = command_and_environment(directory, tiny_directory, *overrides, **settings)
    return execute(directory, [*command, forked_workers()], environment, kill_when)


def forked_workers() -> str:
    """The setting of Ray that makes a run's workers forks of the warm process."""
    return f"++ray_kwargs.ray_init.runtime_env.py_executable={warm_python.program()}"


def execute(
    directory: Path,
    command: list[str],
    environment: dict[str, str],
    kill_when: str | None = None,
    timeout: float = TIMEOUT,
) -> Run:
    """Runs a command of verl in `directory` and waits for its end. `kill_when` is as in run_verl."""
    started = time.monotonic()
    with open(directory / "output.log", "w") as log:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            if kill_when is None:
                process.wait(timeout)
            else:
                _wait_for(directory / kill_when, process, timeout)
        finally:
            _kill_tree(process)
    output = (directory / "output.log").read_text()
    return Run(process.returncode, output, directory, time.monotonic() - started)


def _wait_for(path: Path, process: subprocess.Popen, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


def _kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL the driver and its descendants, including Ray's daemons and workers. Does nothing if it has ended."""
    if process.poll() is not None:
        return
    driver = psutil.Process(process.pid)
    tree = [driver, *driver.children(recursive=True)]
    for member in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(tree[1:], timeout=30)
    process.wait()


def command_and_environment(
    directory: Path,
    tiny_directory: Path,
    *overrides: str,
    plugin: bool = True,
    tools: bool = True,
    env: dict[str, str] | None = None,
    engine: str = "fsdp2",
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of `run_verl`, to be run in `directory`, which is made. `overrides` win.

    Args:
        plugin: False runs without verl_cast's plugin and loads only the CPU platform.
        tools: load run_tools.py, which makes runs comparable.
        engine: a key of ENGINES. Run.parameters cannot read the checkpoints of "megatron".
    """
    directory.mkdir(parents=True, exist_ok=True)
    actor, rollout = _ACTOR, "actor_rollout_ref.rollout"
    (directory / "agent.yaml").write_text(
        "- name: seeded\n  _target_: run_tools.SeededAgentLoop\n"
        "- name: two_turns\n  _target_: run_tools.TwoTurnAgentLoop\n"
        "- name: prompt_shown\n  _target_: run_tools.PromptShownAgentLoop\n"
    )
    defaults = [
        f"data.train_files={tiny_directory / 'train.parquet'}",
        f"data.val_files={tiny_directory / 'train.parquet'}",
        "data.train_batch_size=4",
        "data.max_prompt_length=96",
        "data.max_response_length=16",
        "data.dataloader_num_workers=0",
        "data.seed=1",
        f"actor_rollout_ref.model.path={tiny_directory / 'model'}",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        f"{actor}.ppo_mini_batch_size=4",
        f"{actor}.ppo_micro_batch_size_per_gpu=4",
        f"{actor}.optim.lr=1e-3",
        *ENGINES[engine],
        f"{rollout}.name=vllm",
        f"{rollout}.n=4",
        f"{rollout}.dtype=float32",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.log_prob_micro_batch_size_per_gpu=4",
        f"{rollout}.calculate_log_probs=True",
        f"{rollout}.enforce_eager=True",
        f"{rollout}.enable_chunked_prefill=False",
        f"{rollout}.free_cache_engine=False",
        f"+{rollout}.enable_sleep_mode=False",
        f"{rollout}.max_num_seqs=32",
        f"{rollout}.max_model_len=256",
        f"{rollout}.agent.num_workers=1",
        "reward.num_workers=1",
        f"reward.custom_reward_function.path={tiny_directory / 'reward.py'}",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        "trainer.nnodes=1",
        "trainer.logger=[console,file]",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=3",
        "trainer.total_training_steps=3",
        "trainer.total_epochs=1",
        "trainer.project_name=test",
        "trainer.experiment_name=test",
        f"trainer.default_local_dir={directory / 'checkpoints'}",
        "trainer.resume_mode=disable",
        "+ray_kwargs.ray_init.num_cpus=16",
        "+ray_kwargs.ray_init.num_gpus=1",
        "+ray_kwargs.ray_init.include_dashboard=False",  # it would start a dozen unused processes
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    ]
    modules = []
    if tools:
        modules.append("run_tools")
        defaults += [
            f"{rollout}.agent.agent_loop_config_path={directory / 'agent.yaml'}",
            f"{rollout}.agent.default_agent_loop=seeded",
        ]
    if not plugin:
        modules.append("cpu_platform_only")
    environment = {
        **os.environ,
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_PLUGINS": "auto" if plugin else "none",
        "VERL_USE_EXTERNAL_MODULES": ",".join(reversed(modules)),
        "PYTHONPATH": f"{SUPPORT}{os.pathsep}{SUPPORT.parents[1]}",  # this checkout, whichever is installed
        "CAST_DUMP_DIR": str(directory / "dump"),
        "VERL_FILE_LOGGER_PATH": str(directory / "metrics.jsonl"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_DEDUP_LOGS": "0",
        "HYDRA_FULL_ERROR": "1",
        **(env or {}),
    }
    return [sys.executable, "-m", "verl.trainer.main_ppo", *merged(defaults, overrides)], environment


def merged(defaults: list[str], overrides: Sequence[str]) -> list[str]:
    """The overrides, after the defaults that no override names."""
    named = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    return [d for d in defaults if d.split("=", 1)[0].lstrip("+") not in named] + list(overrides)
