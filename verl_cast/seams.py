"""The seams: every function of verl that this plugin wraps, overrides or calls with a fixed signature.

The table is used twice: before a seam is used (a changed one stops CAST with its name), and by the contract tests.
"""

import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

from packaging.version import Version

OLDEST_VERL = "0.9.0"  # the first with an entry-point group for plugins
TESTED_VERL = "0.9.1"

# module -> qualified name -> parameters
SEAMS: dict[str, dict[str, str]] = {
    "verl.utils.config": {"validate_config": "config, use_reference_policy, use_critic"},
    "verl.trainer.ppo.core_algos": {
        "register_adv_est": "name_or_enum",
        "register_policy_loss": "name",
        "compute_grpo_outcome_advantage": (
            "token_level_rewards, response_mask, index, epsilon, norm_adv_by_std_in_grpo, config"
        ),
        "compute_policy_loss_vanilla": (
            "old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights"
        ),
        "agg_loss": (
            "loss_mat, loss_mask, loss_agg_mode, dp_size, batch_num_tokens, global_batch_size, loss_scale_factor"
        ),
    },
    "verl.trainer.ppo.v1.trainer_base": {
        "PPOTrainer.__init__": "self, config",
        "PPOTrainer._init_dataloader": "self",
        "PPOTrainer._setup": "self",
        "PPOTrainer._init_resource_pool_mgr": "self",
        "PPOTrainer._compute_old_log_prob": "self, batch, metrics",
        "PPOTrainer._compute_advantage": "self, batch, metrics",
        "PPOTrainer._update_actor": "self, batch, metrics",
        "PPOTrainer.on_step_begin": "self",
        "PPOTrainer.on_sample_end": "self",
        "PPOTrainer._submit_batch_to_rollout": "self, batch",
        "PPOTrainer._save_checkpoint": "self",
    },
    "verl.trainer.ppo.v1.replay_buffer": {
        "ReplayBuffer.sample": "self, global_steps, partition_id, batch_size",
        "ReplayBufferAsync.sample": "self, global_steps, partition_id, batch_size",
    },
    "verl.experimental.agent_loop.agent_loop": {
        "register": "agent_name",
        "AgentLoopBase.ct_build_initial_tokens": "self, messages, tools, images, videos, audios, mm_inputs_out",
    },
    "verl.utils.dataset.rl_dataset": {"collate_fn": "data_list"},
    "verl.workers.engine_workers": {
        "TrainingWorker.infer_batch": "self, data",
        "ActorRolloutRefWorker.init_model": "self",
        "ActorRolloutRefWorker.compute_log_prob": "self, data",
        "ActorRolloutRefWorker.update_actor": "self, data",
        "ActorRolloutRefWorker.save_checkpoint": "self, local_path, hdfs_path, global_step, max_ckpt_to_keep",
        "ActorRolloutRefWorker.load_checkpoint": "self, local_path, hdfs_path, del_local_after_load",
    },
    "verl.experimental.separation.engine_workers": {
        "DetachActorWorker.save_model_to_cpu": "self, n",
        "DetachActorWorker.restore_model_from_cpu": "self, n",
    },
    "verl.workers.utils.padding": {
        "response_from_nested": "tensor, response_mask",
        "no_padding_2_padding": "tensor, data",
    },
    "verl.workers.utils.losses": {"ppo_loss": "config, model_output, data, dp_group"},
    "verl.utils.tensordict_utils": {"index_select_tensor_dict": "batch, indices"},
    "verl.utils.torch_functional": {"entropy_from_logits": "logits"},
    "verl.single_controller.base.decorator": {
        "register": "dispatch_mode, execute_mode, blocking, materialize_futures",
        "make_nd_compute_dataproto_dispatch_fn": "mesh_name",
    },
}


# The hooks of patches/verl that the plugin needs to do without changes of its own: file of verl -> a name in it.
HOOKS = {
    "trainer/ppo/core_algos.py": "ADV_ESTIMATOR_BATCH_FIELDS",  # 0001
    "trainer/ppo/v1/trainer_base.py": "trainer.v1.trainer_class",  # 0003a
    "workers/engine/utils.py": "def get_logits_processor(",  # 0003b
}


def _sources() -> Path:
    return Path(importlib.util.find_spec("verl").origin).parent


def has_hooks() -> bool:
    """Whether verl has all of the HOOKS. Reads its sources: importing these modules takes seconds."""
    return all(name in (_sources() / file).read_text(encoding="utf-8") for file, name in HOOKS.items())


def has_cast() -> bool:
    """Whether this verl has CAST itself (patches/verl/0004)."""
    return (_sources() / "experimental" / "cast" / "__init__.py").exists()


class UnsupportedVerl(RuntimeError):
    """A verl that is older than every version with the seams."""


def check_version(version: str) -> str | None:
    """Whether a version of verl may be tried: every version from OLDEST_VERL on, as long as its seams hold.

    Returns:
        A warning where it is not the version that the tests ran with; None where it is.

    Raises:
        UnsupportedVerl: it is older, or not a version.
    """
    if version == "unknown" or Version(version) < Version(OLDEST_VERL):
        raise UnsupportedVerl(f"verl {version} is installed, and verl_cast needs {OLDEST_VERL} or newer.")
    if version == TESTED_VERL:
        return None
    return (
        f"verl {version}: verl_cast was tested with verl {TESTED_VERL}. The signature of every function that it relies "
        f"on is checked before the run; pip install verl=={TESTED_VERL} for the tested one."
    )


class SeamChanged(RuntimeError):
    """A function that verl_cast relies on is missing or takes other parameters than it did.

    Not an ImportError: verl and vLLM treat that as "optional, not installed" around many of their imports.
    """


def parameters_of(module: ModuleType, qualified_name: str, expected: str) -> str:
    """Parameters of a function or method of `module` as in SEAMS, without optional ones that follow the expected ones.

    Raises:
        SeamChanged: it does not exist.
    """
    target = module
    for part in qualified_name.split("."):
        if part not in vars(target):
            raise SeamChanged(f"verl_cast relies on {module.__name__}.{qualified_name}, which does not exist here.")
        target = vars(target)[part]
    parameters = list(inspect.signature(target).parameters.values())
    number = len(expected.split(", "))
    if all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters[number:]):
        parameters = parameters[:number]
    return ", ".join(parameter.name for parameter in parameters)


def changed_seams(module_name: str) -> list[tuple[str, str]]:
    """Name and sentence of every seam of a module that is missing or takes other parameters (imported here)."""
    module, changed = importlib.import_module(module_name), []
    for qualified_name, expected in SEAMS[module_name].items():
        try:
            found = parameters_of(module, qualified_name, expected)
        except SeamChanged as problem:
            changed.append((qualified_name, str(problem)))
            continue
        if found != expected:
            sentence = (
                f"verl_cast relies on {module_name}.{qualified_name}({expected}), which takes "
                f"({found}) here. Use verl {TESTED_VERL}, or a verl_cast made for this verl."
            )
            changed.append((qualified_name, sentence))
    return changed


def check_seams(*module_names: str) -> None:
    """Check every seam of the given modules (imported here if they are not yet).

    Raises:
        SeamChanged: with the name of the first seam that differs.
    """
    for module_name in module_names:
        for _, sentence in changed_seams(module_name):
            raise SeamChanged(sentence)
