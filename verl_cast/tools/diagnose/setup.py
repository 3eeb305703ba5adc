"""What a diagnosis takes from a composed verl command: settings, problems and prompts.

Not supported: agent loops with tools or several turns, images, adapters, and rewards that a server computes. Each is
refused by name.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_cast.config.cast import CastConfigError
from verl_cast.config.methods import cast_config
from verl_cast.teacher.context import TeacherContext, chat_template_kwargs, load_template
from verl_cast.tools import run_parts
from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.diagnose.contexts import STUDENT

_MODEL, _ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"
# (key, whether its value is refused, the reason and what to set)
_REFUSED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        f"{_ROLLOUT}.temperature",
        lambda value: value <= 0,
        f"without sampling there are no gaps; set the temperature that you train with ({_ROLLOUT}.temperature=1).",
    ),
    (
        f"{_MODEL}.lora_adapter_path",
        lambda value: value is not None,
        f"adapters are not read; merge it into its base model and set {_MODEL}.path to the merged model.",
    ),
    (
        f"{_ROLLOUT}.multi_turn.enable",
        bool,
        f"a prompt gets one response; set {_ROLLOUT}.multi_turn.enable=False for this look.",
    ),
    (
        f"{_ROLLOUT}.agent.default_agent_loop",
        lambda value: value not in (None, "single_turn_agent"),
        f"a prompt gets one response; set {_ROLLOUT}.agent.default_agent_loop=single_turn_agent for this look.",
    ),
)


class Setup:
    """One composed verl command.

    Args:
        config: from `run_config.compose`.

    Attributes:
        method: the CastConfig.
        rollout: the config `actor_rollout_ref.rollout`.
        model_config: verl's HFModelConfig.
        reward_of: a row of the data and the token ids of a response -> the run's reward.

    Raises:
        UserError: a setting is invalid or not supported, or model or reward function cannot be loaded.
    """

    def __init__(self, config: DictConfig):
        self.config, self.rollout = config, config.actor_rollout_ref.rollout
        try:
            self.method = cast_config(config)
        except CastConfigError as error:
            raise UserError(str(error)) from error
        for key, is_refused, remedy in _REFUSED:
            value = OmegaConf.select(config, key)
            if is_refused(value):
                raise UserError(f"{key}={value}: {remedy}")
        not_graded = run_parts.not_graded(config)
        if not_graded is not None:
            others = " or ".join(f"reward.reward_manager.name={name}" for name in run_parts.MANAGERS)
            raise UserError(f"{not_graded}: set {others}, and reward.reward_model.enable=False, for this look.")
        self.model_config = run_parts.load_model_config(config)
        try:
            self.reward_of = run_parts.load_reward(config, self.model_config.tokenizer)
        except Exception as error:  # the user's file may raise anything
            key = "reward.custom_reward_function.path"
            raise UserError(f"the reward function cannot be loaded; set {key} ({first_line(error)})") from error

    def problems(self, which: str, number: int, seed: int) -> list[dict[str, Any]]:
        """`number` rows of the run's data, drawn without repetition; all where there are fewer.

        Args:
            which: val or train.

        Raises:
            UserError: the data cannot be read, are empty, or hold more than text.
        """
        import datasets

        key = f"{which}_files"
        said = f"data.{key}={self.config.data[key]}"
        datasets.disable_progress_bars()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # hides verl's messages about the data
                dataset = run_parts.load_dataset(self.config, key, self.model_config)
        except Exception as error:  # verl, datasets or the user's class may raise anything
            raise UserError(f"{said}: {first_line(error)} Name the data to draw problems from.") from error
        if len(dataset) == 0:
            raise UserError(f"{said}: no problem is left; raise data.max_prompt_length if verl's filter dropped all.")
        chosen = sorted(np.random.default_rng(seed).permutation(len(dataset))[:number])
        rows = [dataset[int(row)] for row in chosen]
        if any(not isinstance(message["content"], str) for row in rows for message in row["raw_prompt"]):
            raise UserError(f"{said}: they hold images or other parts besides text; name data of text.")
        return rows

    def prompts(self, rows: Sequence[Mapping[str, Any]], contexts: Sequence[str]) -> dict[str, list[list[int]]]:
        """Token ids of the rows' prompts, by STUDENT and by context; student's are cut from the left, as by verl.

        Args:
            contexts: plain or template files; `same` is the student's own prompt, and left out.

        Raises:
            UserError: a template cannot be read, or does not support a prompt.
        """
        chats, kwargs = [row["raw_prompt"] for row in rows], chat_template_kwargs(self.config)
        whole = run_parts.prompt_ids(self.config, self.model_config, chats)
        students = [ids[-self.rollout.prompt_length :] for ids in whole]
        found = {STUDENT: students}
        try:
            for name in contexts:
                if name != "same":
                    context = TeacherContext(name, load_template(name), self.model_config.tokenizer, kwargs)
                    found[name] = [context.prompt_ids(*pair) for pair in zip(chats, students, strict=True)]
        except ValueError as error:  # CastConfigError, too
            raise UserError(str(error).removeprefix("CAST: ")) from error
        return found
