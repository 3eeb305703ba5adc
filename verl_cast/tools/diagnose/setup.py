"""The parts of a verl command that a diagnosis needs: model, prompts, problems, verifier.

The dataset class, the tokenizer and the reward manager are verl's own. Not supported: agent loops with tools or several
turns, images, adapters, and rewards that a server computes. Each is refused by name.
"""

import asyncio
import contextlib
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_cast.config.cast import CastConfigError
from verl_cast.config.methods import cast_config
from verl_cast.teacher.context import TeacherContext, chat_template_kwargs, load_template
from verl_cast.tools.cli import UserError, first_line

REWARD_MANAGERS = ("naive", "dapo")  # verl's managers that grade one response by its text, in this process
MODEL_KEY = "actor_rollout_ref.model.path"


class Setup:
    """One composed verl command.

    Args:
        config: from `run_config.compose`.
        overrides: of the command line; other keys have verl's defaults.

    Raises:
        UserError: a setting of CAST is invalid, the temperature is not above 0, or the model has an adapter.
    """

    def __init__(self, config: DictConfig, overrides: Sequence[str]):
        self.config = config
        self.named = {override.split("=", 1)[0].lstrip("+~") for override in overrides}
        self.method = _user_errors(cast_config, config)
        self.rollout = config.actor_rollout_ref.rollout
        self.temperature = float(self.rollout.temperature)
        if self.temperature <= 0:
            raise UserError(
                f"actor_rollout_ref.rollout.temperature={self.temperature:g}: without sampling there are no gaps; set "
                "the temperature that you train with (actor_rollout_ref.rollout.temperature=1)."
            )
        model = config.actor_rollout_ref.model
        if model.get("lora_adapter_path", None) is not None:
            raise UserError(
                f"actor_rollout_ref.model.lora_adapter_path={model.lora_adapter_path}: diagnose does not read "
                f"adapters; merge it into its base model and set {MODEL_KEY} to the merged model."
            )
        self.chat_template_kwargs = chat_template_kwargs(config)
        self.model_path = str(Path(str(model.path)).expanduser())
        self.trust_remote_code = bool(model.get("trust_remote_code", False))

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The policy's tokenizer, as verl loads it."""
        from verl.utils import hf_tokenizer

        model = self.config.actor_rollout_ref.model
        path = str(Path(str(model.get("tokenizer_path", None) or self.model_path)).expanduser())
        try:
            tokenizer = hf_tokenizer(path, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:  # not a directory, or one without tokenizer
            raise UserError(
                f"{MODEL_KEY}={path} holds no tokenizer that transformers can load; name a Hugging Face model "
                f"directory ({first_line(error)})"
            ) from error
        if model.get("custom_chat_template", None) is not None:
            tokenizer.chat_template = model.custom_chat_template
        return tokenizer

    def context(self, name: str) -> TeacherContext:
        """The answer-free teacher's context of that name (plain, same or a template file)."""
        template = _user_errors(load_template, name)
        return TeacherContext(name, template, self.tokenizer, self.chat_template_kwargs)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], limit: bool = True) -> list[int]:
        """The student's prompt tokens, as verl's single-turn agent loop builds them.

        Args:
            limit: whether to cut from the left to rollout.prompt_length, as verl does.
        """
        ids = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **self.chat_template_kwargs
        )
        return list(ids)[-self.rollout.prompt_length :] if limit else list(ids)

    def teacher_ids(self, context: TeacherContext, messages: Sequence[Mapping[str, Any]], ids: list[int]) -> list[int]:
        """The teacher's prompt tokens.

        Raises:
            UserError: the context does not support this prompt.
        """
        return _user_errors(context.prompt_ids, messages, ids)

    def problems(self, which: str, number: int, seed: int) -> list[dict[str, Any]]:
        """`number` rows of verl's dataset class, drawn without repetition; all where there are fewer.

        Args:
            which: val or train.
        """
        import datasets
        from verl.utils.dataset.rl_dataset import get_dataset_class

        key, files = f"data.{which}_files", self.config.data[f"{which}_files"]
        files = [str(file) for file in ([files] if isinstance(files, str) else files)]
        files = [file if "://" in file else str(Path(file).expanduser()) for file in files]
        for file in files:
            if "://" not in file and not Path(file).exists():
                hint = "" if key in self.named else f" (verl's default: the command does not set {key})"
                raise UserError(f"{key}={file}: no such file{hint}; name the data to draw problems from.")
        datasets.disable_progress_bars()
        with contextlib.redirect_stdout(io.StringIO()):  # hides verl's messages about the data
            dataset = get_dataset_class(self.config.data)(
                data_files=files, tokenizer=self.tokenizer, config=self.config.data
            )
        if len(dataset) == 0:
            raise UserError(
                f"{key}: no problem is left in {', '.join(files)}; raise data.max_prompt_length if it dropped all."
            )
        chosen = sorted(np.random.default_rng(seed).permutation(len(dataset))[:number])
        rows = [dataset[int(row)] for row in chosen]
        if any(not isinstance(message["content"], str) for row in rows for message in row["raw_prompt"]):
            raise UserError(f"{key}: {', '.join(files)} hold images or other parts besides text; name data of text.")
        return rows

    def check_sampling(self) -> None:
        """Refuse commands whose rollouts are not one response to one prompt."""
        for key, works in (("multi_turn.enable", False), ("agent.default_agent_loop", "single_turn_agent")):
            value = OmegaConf.select(self.rollout, key)
            if value not in (None, works):
                raise UserError(
                    f"actor_rollout_ref.rollout.{key}={value}: diagnose samples one response per prompt; set "
                    f"actor_rollout_ref.rollout.{key}={works} for this look."
                )


class Verifier:
    """The run's reward, computed by verl's own reward manager."""

    def __init__(self, setup: Setup):
        from verl.trainer.ppo.reward import load_reward_manager

        reward = setup.config.reward
        manager = reward.reward_manager
        if manager.source != "register" or manager.name not in REWARD_MANAGERS:
            raise UserError(
                f"reward.reward_manager.name={manager.name}: diagnose supports {' and '.join(REWARD_MANAGERS)}; set "
                f"reward.reward_manager.name={REWARD_MANAGERS[0]} for this look."
            )
        if reward.reward_model.enable:
            raise UserError("reward.reward_model.enable=True is no verifier; set reward.reward_model.enable=False.")
        try:
            self._manager = load_reward_manager(setup.config, setup.tokenizer)
        except (FileNotFoundError, AttributeError) as error:
            raise UserError(
                f"the reward function cannot be loaded; set reward.custom_reward_function.path ({first_line(error)})"
            ) from error

    def score(self, row: Mapping[str, Any], response_ids: Sequence[int]) -> float:
        """The reward of a response to a row of the data."""
        import torch
        from verl import DataProto

        responses = torch.tensor([list(response_ids)])
        fields = {name: row.get(name) for name in ("data_source", "reward_model")}
        fields["extra_info"] = dict(row.get("extra_info") or {})  # verl writes into it
        data = DataProto.from_dict(
            tensors={"responses": responses, "attention_mask": torch.ones_like(responses)},
            non_tensors={name: np.array([value], dtype=object) for name, value in fields.items()},
        )
        loop: asyncio.AbstractEventLoop = self._manager.loop
        return float(loop.run_until_complete(self._manager.run_single(data))["reward_score"])


def _user_errors(function, *args):
    """Call the function; an invalid setting or prompt raises a UserError."""
    try:
        return function(*args)
    except CastConfigError as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        if str(error).startswith("CAST: "):
            raise UserError(str(error).removeprefix("CAST: ")) from error
        raise
