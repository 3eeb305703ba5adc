"""The parts of a run that doctor and diagnose take from verl: tokenizer, data, prompts and reward.

They are verl's own classes, so what the tools say is what a run does. Weights are not loaded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cast.teacher.context import chat_template_kwargs
from verl_cast.tools.cli import UserError, cause_of, first_line

MODEL_KEY = "actor_rollout_ref.model.path"
MANAGERS = ("naive", "dapo")  # verl's reward managers that grade one response by its text, in this process


def load_model_config(config: DictConfig) -> Any:
    """verl's HFModelConfig: tokenizer, processor and Hugging Face config of the policy.

    Raises:
        UserError: one of them cannot be loaded.
    """
    from hydra.errors import HydraException
    from verl.utils.config import omega_conf_to_dataclass

    try:
        return omega_conf_to_dataclass(config.actor_rollout_ref.model)
    except HydraException as problem:  # hydra wraps everything that HFModelConfig raises
        path, reason = OmegaConf.select(config, MODEL_KEY), first_line(cause_of(problem))
        raise UserError(f"{MODEL_KEY}={path}: tokenizer or config cannot be loaded: {reason}") from problem


def load_dataset(config: DictConfig, key: str, model_config: Any, **changed: Any) -> Any:
    """The data as verl's trainer loads them. verl, datasets or the user's class may raise anything.

    Args:
        key: train_files or val_files.
        model_config: from `load_model_config`.
        changed: settings of `data` in place of the run's.
    """
    from verl.trainer.ppo.utils import create_rl_dataset

    return create_rl_dataset(
        config.data[key],
        OmegaConf.merge(config.data, changed),
        model_config.tokenizer,
        model_config.processor,
        is_train=key == "train_files",
        max_samples=config.data.get(f"{key.removesuffix('_files')}_max_samples", -1),
    )


def prompt_ids(config: DictConfig, model_config: Any, chats: Sequence[Sequence[Mapping]]) -> list[list[int]]:
    """The tokens of each chat's prompt, from the builder that verl's agent loop uses.

    Args:
        chats: messages of text. The chat template may raise anything.
    """
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    builder = create_continuous_token_builder(
        model_config.tokenizer,
        hf_model_type=model_config.hf_config.model_type,
        chat_template_kwargs=chat_template_kwargs(config),
        processor=model_config.processor,
    )
    return [list(builder.build_initial_tokens(list(chat))) for chat in chats]


def not_graded(config: DictConfig) -> str | None:
    """The setting with which responses are not graded one by one in this process, as key=value; None without such."""
    manager = config.reward.reward_manager
    if manager.source != "register" or manager.name not in MANAGERS:
        return f"reward.reward_manager.name={manager.name}"
    return "reward.reward_model.enable=True" if config.reward.reward_model.enable else None


def load_reward(config: DictConfig, tokenizer: Any) -> Callable[[Mapping[str, Any], Sequence[int]], float]:
    """verl's reward manager as a function: a row of the data and the token ids of a response -> its reward.

    The function raises ValueError where the reward is not finite. The user's code may raise anything, here and there.
    """
    import numpy as np
    import torch
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    manager = load_reward_manager(config, tokenizer)

    def reward_of(row: Mapping[str, Any], response_ids: Sequence[int]) -> float:
        responses = torch.tensor([list(response_ids)])
        fields = {name: row.get(name) for name in ("data_source", "reward_model")}
        fields["extra_info"] = dict(row["extra_info"])  # verl writes into it
        data = DataProto.from_dict(
            tensors={"responses": responses, "attention_mask": torch.ones_like(responses)},
            non_tensors={name: np.array([value], dtype=object) for name, value in fields.items()},
        )
        reward = float(manager.loop.run_until_complete(manager.run_single(data))["reward_score"])
        if not math.isfinite(reward):
            response = tokenizer.decode(response_ids, skip_special_tokens=True)
            raise ValueError(f"the reward of {response!r} is {reward}, not a finite number")
        return reward

    return reward_of
