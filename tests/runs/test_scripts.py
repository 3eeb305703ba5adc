"""Laws of examples/run_*.sh.

* Every script and size composes with every method and ablation, and passes verl's checks and ours.
* A method or an ablation changes only its own settings.
* CAST's settings are those of the evaluated run.
* The scripts run a real step on the CPU.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import queue_of_runs
import rlrt_run_laws
import scripts
from omegaconf import DictConfig, OmegaConf
from scripts import ABLATIONS, FSDP, GSM8K, MEGATRON, METHODS, TRAININGS

from verl_cast.checks.run import check_run
from verl_cast.config.methods import cast_config
from verl_cast.tools import run_config
from verl_cast.training.passes import why_two_passes

# Keys that identify a run: its name and its paths.
IDENTITY = (
    "trainer.experiment_name",
    "trainer.default_local_dir",
    "ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH",
    "ray_kwargs.ray_init.runtime_env.env_vars.TENSORBOARD_DIR",
)
README = (scripts.EXAMPLES / "README.md").read_text()
DUMP = ("algorithm.cast.dump.interval", "algorithm.cast.dump.groups")


@functools.cache
def composed(script: str, *toggles: str) -> DictConfig:
    """The config of a script with toggles like METHOD=grpo, after verl's validation and ours."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = run_config.compose(scripts.overrides(script, *toggles), "cast_trainer")
    validate_config(config, need_reference_policy(config), need_critic(config))
    return config


def flat(config: DictConfig) -> dict:
    values = {}

    def walk(group, prefix):
        for key, value in group.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                values[prefix + key] = value

    walk(OmegaConf.to_container(config, resolve=False), "")
    return values


def difference(config: DictConfig, other: DictConfig) -> dict:
    """Keys and values of `other` where the two differ, without the keys of IDENTITY."""
    values, others = flat(config), flat(other)
    assert values.keys() == others.keys()
    return {key: others[key] for key in others if others[key] != values[key] and key not in IDENTITY}


every_training = pytest.mark.parametrize(("script", "size"), TRAININGS)
every_engine = pytest.mark.parametrize("script", scripts.ENGINES)


@every_training
def test_every_size_composes(script, size):
    assert composed(script, size).algorithm.adv_estimator == "cast"


@every_engine
def test_methods_differ_in_the_method_alone(script):
    for method in METHODS[1:]:
        changes = difference(composed(script), composed(script, f"METHOD={method}"))
        assert changes.pop("algorithm.adv_estimator") == method
        # CAST's loss is GRPO's without the dual clip; the plugin sets it.
        assert changes.pop("actor_rollout_ref.actor.policy_loss.loss_mode") == "vanilla"
        # CAST's dump looks on; the other methods have none, so here are the defaults.
        assert {changes.pop(key) for key in DUMP} == {0, 4}
        assert changes == {}, method


@every_engine
def test_ablations_change_their_keys_alone(script):
    for ablation, keys in ABLATIONS.items():
        assert difference(composed(script), composed(script, f"ABLATION={ablation}")) == keys, ablation


@every_engine
def test_lora_or_all_parameters(script):
    model = "actor_rollout_ref.model"
    keys = {FSDP: ("lora_rank", "lora_alpha"), MEGATRON: ("lora.rank", "lora.alpha")}[script]
    changes = difference(composed(script, "LORA=0"), composed(script, "LORA=1"))
    assert changes == {f"{model}.{keys[0]}": 64, f"{model}.{keys[1]}": 128, f"{model}.lora.merge": True}
    assert composed(script, "LORA=1").actor_rollout_ref.model.target_modules == "all-linear"


def test_no_two_experiments_share_a_directory():
    """Otherwise one would go on from the other's checkpoints."""
    toggles = [f"METHOD={method}" for method in METHODS] + [f"ABLATION={ablation}" for ablation in ABLATIONS]
    runs = [(*training, f"LORA={lora}", toggle) for training in TRAININGS for lora in (0, 1) for toggle in toggles]
    runs += [(GSM8K, f"METHOD={method}") for method in ("cast", "grpo")]
    words = [word for run in runs for word in scripts.overrides(*run) if word.startswith("trainer.default_local_dir=")]
    assert len(set(words)) == len(words) == len(runs)


def test_the_evaluated_runs_values():
    """The values of method section 9. As run_qwen3_fsdp.sh says, FSDP has a cosine instead of the linear schedule."""
    config = composed(FSDP, "SIZE=4b")
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    expected = {
        "algorithm.adv_estimator": "cast",
        "actor_rollout_ref.model.path": "Qwen/Qwen3-4B",
        "actor_rollout_ref.model.lora_rank": 64,
        "actor_rollout_ref.model.lora_alpha": 128,
        "actor_rollout_ref.model.target_modules": "all-linear",
        "data.apply_chat_template_kwargs": {"enable_thinking": False},
        "data.train_batch_size": 2,
        "data.max_prompt_length": 1024,
        "data.max_response_length": 3072,
        f"{rollout}.n": 8,
        f"{rollout}.temperature": 0.7,
        f"{rollout}.top_p": 0.95,
        f"{rollout}.top_k": 20,
        f"{actor}.ppo_mini_batch_size": 2,
        f"{actor}.ppo_epochs": 1,
        f"{actor}.clip_ratio_low": 0.2,
        f"{actor}.clip_ratio_high": 0.28,
        f"{actor}.use_kl_loss": False,
        "algorithm.use_kl_in_reward": False,
        f"{actor}.loss_agg_mode": "seq-mean-token-mean",
        f"{actor}.optim.optimizer": "AdamW",
        f"{actor}.optim.lr": 1e-6,
        f"{actor}.optim.min_lr_ratio": 0.1,
        f"{actor}.optim.lr_warmup_steps_ratio": 0.05,
        f"{actor}.optim.clip_grad": 1.0,
        f"{actor}.fsdp_config.dtype": "bfloat16",
        "trainer.total_training_steps": 300,
        "trainer.save_freq": 25,
        "reward.custom_reward_function.path": "pkg://verl_cast.verifier",
    }
    assert {key: OmegaConf.select(config, key) for key in expected} == expected
    # Megatron has the evaluated run's linear schedule.
    optim = composed(MEGATRON, "SIZE=4b").actor_rollout_ref.actor.optim
    assert (optim.lr, optim.lr_decay_style, optim.min_lr) == (1e-6, "linear", 1e-7)


def test_the_first_run_on_a_gpu_measures_its_teacher_and_its_twin_differs_in_the_method():
    cast, grpo = composed(GSM8K), composed(GSM8K, "METHOD=grpo")
    changes = difference(grpo, cast)
    assert changes.pop("algorithm.adv_estimator") == "cast"
    assert changes.pop("actor_rollout_ref.actor.policy_loss.loss_mode") == "cast"
    assert changes.pop("algorithm.cast.trust") == "measured"
    assert changes and all(key.startswith("algorithm.cast.") for key in changes)
    assert why_two_passes(cast, cast_config(cast)) is None and cast.trainer.n_gpus_per_node == 1
    config = run_config.compose(scripts.overrides(GSM8K))  # verl's own config, as the command has it
    check_run(config)
    assert cast_config(config) == cast_config(cast)


def test_the_doctor_says_that_the_first_run_on_a_gpu_is_ready(tiny_directory, tmp_path):
    """With data that prepare_data.py wrote. Both prompts show the problem; the teacher's also shows other ones."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"question": "What is {n} + 1?", "answer": "One more.\\n#### {n + 1}"}}\n' for n in range(64))
    )
    names = ["gsm8k_train", "gsm8k_test"]
    sources = [f"--source={name}={tmp_path / 'rows.jsonl'}" for name in names]
    prepare = [sys.executable, scripts.EXAMPLES / "prepare_data.py", *names, "--out", tmp_path, *sources]
    subprocess.run(prepare, check=True, capture_output=True)
    # A token of the tiny model is a byte, so the teacher's prompt is long.
    model = Path(shutil.copytree(tiny_directory / "model", tmp_path / "model"))
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(
        config.replace('"max_position_embeddings": 512', '"max_position_embeddings": 4096')
    )
    room = ["actor_rollout_ref.rollout.max_model_len=4096"]
    words = [f"MODEL_PATH={model}", f"DATA_DIR={tmp_path}", f"OUT_DIR={tmp_path}"]
    doctor = [sys.executable, "-m", "verl_cast", "doctor", "--no-ray", *words, "bash", scripts.EXAMPLES / GSM8K, *room]
    done = subprocess.run(doctor, capture_output=True, text=True)
    assert done.returncode == 0 and "\nReady: " in done.stdout, done.stdout + done.stderr
    teacher = done.stdout.split("teacher reads")[1]
    assert "A bakery sells rolls" in teacher and "What is 0 + 1?" in teacher


def test_the_readmes_recipe_for_large_batches_has_one_update_a_step():
    ((script, arguments),) = re.findall(r"^bash examples/(\S+) (data\.train_batch_size=.*)$", README, re.MULTILINE)
    arguments = shlex.split(arguments, comments=True)
    config = run_config.compose(scripts.overrides(script, arguments=arguments), "cast_trainer")
    check_run(config)
    assert config.data.train_batch_size > 2 and why_two_passes(config, cast_config(config)) is None


@pytest.mark.parametrize(
    ("toggles", "words"),
    [
        (["METHOD=ppo"], "METHOD=ppo is unknown; use cast"),
        (["ABLATION=no_clip"], "ABLATION=no_clip is unknown; use none, mixed_only,"),
        (["METHOD=grpo", "ABLATION=no_flip"], "ABLATION=no_flip is an ablation of CAST; use METHOD=cast"),
        (["LORA=64"], "LORA=64 is neither on nor off; use 1 or true, 0 or false."),
        (["WANDB=yes"], "WANDB=yes is neither on nor off; use 1 or true"),
        (["DRY_RUN=on"], "DRY_RUN=on is neither on nor off; use 1 or true"),
        (["SIZE=32b"], "SIZE=32b is unknown; use "),
    ],
)
def test_a_wrong_toggle_is_refused_in_a_sentence(toggles, words):
    names = [toggle.split("=")[0] for toggle in toggles]
    of_gsm8k = [GSM8K] if set(names) <= {"METHOD", "WANDB", "DRY_RUN"} and len(toggles) == 1 else []
    for script in [*scripts.ENGINES, *of_gsm8k]:
        done = scripts.dry_run(script, *toggles)
        assert done.returncode == 2 and done.stdout == ""
        assert words in done.stderr and script in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("toggle", "words"), [("WANDB", ",wandb"), ("TENSORBOARD", ",tensorboard"), ("LORA", "lora_rank=64")]
)
def test_a_toggle_is_1_or_true_0_or_false(toggle, words):
    outputs = {value: scripts.dry_run(FSDP, f"{toggle}={value}").stdout for value in ("1", "true", "0", "false")}
    assert outputs["1"] == outputs["true"] and words in outputs["1"]
    assert outputs["0"] == outputs["false"] and words not in outputs["0"]


def test_validation_and_a_small_dump_are_on_and_can_be_left_out():
    config = composed(FSDP)
    assert (config.trainer.test_freq, *map(functools.partial(OmegaConf.select, config), DUMP)) == (50, 50, 2)
    config = composed(FSDP, "VALIDATE_EVERY=-1", "DUMP_EVERY=0")
    assert (config.trainer.test_freq, config.algorithm.cast.dump.interval) == (-1, 0)


@pytest.mark.parametrize("value", ["1", "true"])
def test_a_dry_run_starts_nothing(tmp_path, value):
    done = scripts.dry_run(FSDP, f"DRY_RUN={value}", f"OUT_DIR={tmp_path / 'runs'}", "PATH=/usr/bin:/bin")  # no python
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_a_dry_run_can_be_pasted():
    """The shell and shlex read the printed words as the arguments that the script was given; they come last."""
    words = ["a=it's", "b=[c,d]", "c=", "", "d=$HOME `x` \\ & * ~", 'e="f"\ttwo\nlines', "+f.g=1e-6", "ü=é"]
    assert scripts.overrides(FSDP, arguments=words)[-len(words) :] == words
    line = scripts.dry_run(FSDP, arguments=words).stdout
    read = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True).stdout
    assert read.split("\0")[-len(words) - 1 : -1] == words
    assert " 'trainer.logger=[console,file]' " in line and " data.train_batch_size=2 " in line


@every_training
def test_the_name_of_a_model_is_the_script_with_its_size(script, size):
    name = script.replace("qwen3_", f"qwen3_{size.removeprefix('SIZE=')}_")
    for toggle in ("METHOD=cast", "METHOD=grpo", "LORA=0"):
        assert scripts.overrides(name, toggle) == scripts.overrides(script, size, toggle)


def test_shellcheck_finds_nothing():
    names = [path.name for path in scripts.EXAMPLES.iterdir() if path.suffix in (".sh", ".sbatch")]
    command = ["shellcheck", "-x", "-P", "SCRIPTDIR:SCRIPTDIR/..", *names]
    done = subprocess.run(command, cwd=scripts.EXAMPLES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_main_table_trains_evaluates_and_joins():
    """A dry run prints the loop's commands: per method a training and an evaluation of its last checkpoint."""
    environment = {**os.environ, "DRY_RUN": "true", "METHODS": "grpo cast", "OUT_DIR": "/out", "BENCHMARKS": "aime24"}
    arguments = ["data.max_response_length=9", "trainer.total_training_steps=200"]
    command = ["bash", scripts.EXAMPLES / "run_main_table.sh", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    base, *lines, table = map(shlex.split, done.stdout.splitlines())
    assert {"SCRIPT=run_qwen3_4b_fsdp.sh", "EXPERIMENT=Qwen3-4B", "CHECKPOINT=", "OUT_DIR=/out", "SAMPLES=16"} <= set(
        base
    )
    dumps = ["Qwen3-4B=/out/evaluation/Qwen3-4B/validation/0.jsonl"]
    for method, train, evaluate in zip(("grpo", "cast"), lines[::2], lines[1::2], strict=True):
        name = f"qwen3_4b_fsdp_lora_{method}"
        dumps.append(f"{name}=/out/evaluation/{name}/validation/200.jsonl")
        assert train[:4] == ["+", "env", f"METHOD={method}", "bash"] and train[-2:] == arguments
        assert {f"EXPERIMENT={name}", f"CHECKPOINT=/out/{name}/checkpoints/global_step_200"} <= set(evaluate)
        assert evaluate[-2].endswith("/evaluate.sh") and evaluate[-1] == arguments[-1]  # not the length of training
    assert table[2].endswith("/pass_at_k.py") and table[-4] == "--dump" and table[-3:] == dumps


@pytest.mark.parametrize(
    ("toggle", "words"),
    [
        ("DRY_RUN=yes", "run_main_table.sh: DRY_RUN=yes is neither on nor off"),
        ("WANDB=yes", "run_qwen3_4b_fsdp.sh: WANDB=yes is neither on nor off"),
    ],
)
def test_the_main_table_ends_at_a_wrong_toggle(toggle, words):
    environment = {**os.environ, "DRY_RUN": "1", **dict([toggle.split("=")])}
    done = subprocess.run(
        ["bash", scripts.EXAMPLES / "run_main_table.sh"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "" and words in done.stderr and done.stderr.count("\n") == 1


@queue_of_runs.job("script_rlrt", after=["tiny"])
def script_rlrt(directory, runs):
    """A peer's teacher, on Megatron. Other scripts and methods run elsewhere: run_gsm8k.sh in test_trust_run.py, the
    FSDP script in test_evaluate.py. OPSD, GRPO+OPSD and RLSD go RLRT's way; test_baselines.py has their rules.
    """
    return scripts.run_on_cpu(MEGATRON, directory, runs("tiny"), "METHOD=rlrt")


@pytest.mark.runs("script_rlrt")
def test_the_script_really_runs_a_step(ended):
    """The script's own verl command, with added arguments that scale it down to the tiny model and the CPU."""
    run = ended("script_rlrt")
    metrics = run.metrics[-1]
    assert metrics["training/global_step"] == 1
    assert metrics["actor/grad_norm"] > 0
    assert (run.directory / "checkpoints" / "global_step_1").is_dir()
    rlrt_run_laws.check(run, temperature=0.7)


def test_the_slurm_job_starts_a_cluster_and_the_script_in_it(tmp_path):
    """Stand-ins for Slurm and Ray record its commands. Training on several nodes is not tested."""
    done, (head, worker) = scripts.slurm(tmp_path)
    assert done.returncode == 0, done.stderr
    address, resources = "10.0.0.1:6379", "--num-cpus=64 --num-gpus=8 --block"
    assert head == f"ray start --head --node-ip-address=10.0.0.1 --port=6379 {resources}"
    assert f"Ray: 2 of 2 nodes at {address}\n" in done.stdout
    of_srun = "srun --nodes=1 --ntasks=1 --cpus-per-task=64 --exclude=node1"
    assert worker == f"{of_srun} ray start --address={address} {resources}"
    words = shlex.split(done.stdout.splitlines()[-1])
    assert {"trainer.nnodes=2", "trainer.n_gpus_per_node=8"} <= set(words) and words[-1] == "trainer.save_freq=50"


def test_the_slurm_job_names_no_address_that_other_nodes_cannot_reach(tmp_path):
    done, calls = scripts.slurm(tmp_path, head_ip="127.0.1.1")
    assert done.returncode == 2 and "set HEAD_IP" in done.stderr and calls == []


def test_the_slurm_job_says_that_it_needs_slurm():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    command = ["bash", scripts.EXAMPLES / "run_qwen3_8b_fsdp_slurm.sbatch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "submit it with sbatch" in done.stderr
    for script in re.findall(r"examples/\w+\.sh", done.stderr):
        assert (scripts.EXAMPLES.parent / script).exists(), script


def test_the_slurm_job_says_where_it_must_be_submitted(tmp_path):
    done, calls = scripts.slurm(tmp_path, submitted_in=tmp_path)
    assert done.returncode == 2 and "submit it from the root of verl_cast's checkout" in done.stderr and calls == []


@queue_of_runs.job("ray_cluster", seconds=40, memory_gb=3)
def ray_cluster(directory, runs):
    return scripts.ray_cluster(directory)


@pytest.mark.runs("ray_cluster")
def test_the_cluster_without_slurm_has_all_nodes_when_the_script_starts(runs):
    done = runs("ray_cluster")
    assert done.returncode == 0, done.stderr
    assert "Ray: 2 of 2 nodes at " in done.stdout
    assert done.stdout.endswith("alive 2 GPUs 2.0\narguments a.b=c, NNODES 2\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "none is no role; use head, join or run"),
        (["start"], "start is no role; use head, join or run"),
        (["join"], "RAY_ADDRESS is not set; start with the command"),
        (["run"], "RAY_ADDRESS is not set; start with the command"),
    ],
)
def test_the_cluster_script_refuses_in_a_sentence(arguments, words):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = ["bash", scripts.EXAMPLES / "ray_cluster.sh", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_second_start_keeps_the_first_ones_metrics(tmp_path):
    """verl overwrites its metrics file at every start. A stand-in for python does only that."""
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(f"#!/usr/bin/env bash\necho new > {tmp_path}/runs/x/metrics.jsonl\n")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "OUT_DIR": str(tmp_path / "runs"), "EXPERIMENT": "x"}
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "metrics.jsonl").write_text("first\n")
    command = ["bash", scripts.EXAMPLES / FSDP]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    files = sorted((tmp_path / "runs" / "x").iterdir())
    assert [path.read_text() for path in files] == ["new\n", "first\n"] and files[1].name.startswith("metrics_until_")
