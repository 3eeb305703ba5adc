"""An agent loop for verl: the run's own agent loop in a given context, under the training's sampling.

The rows that measure the teacher name it (measurement.py). verl samples them as validation rows, so that they stay out
of the training; validation's sampling is replaced. verl looks agent loops up by name, in the processes that run them:
importing this module registers the loop.
"""

from typing import Any

import hydra
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, _agent_loop_registry, register

from verl_cast import wire
from verl_cast.teacher.context import TeacherContext, chat_template_kwargs


@register(wire.IN_CONTEXT)
class AgentLoopInContext:
    """Runs another agent loop with a context's prompt in place of its first one.

    A row names that agent loop (AGENT_LOOP), and the context and its template (CONTEXT, TEMPLATE). Arguments are those
    that verl gives every agent loop.
    """

    def __init__(self, **arguments: Any):
        self._arguments = arguments

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        """
        Raises:
            ValueError: the engine has no room for a response after the context's prompt.
            RuntimeError: the agent loop has made its first prompt otherwise.
        """
        name, context, template = (row.pop(field) for field in (wire.AGENT_LOOP, wire.CONTEXT, wire.TEMPLATE))
        loop = hydra.utils.instantiate(_agent_loop_registry[name], **self._arguments)
        context = TeacherContext(context, template, loop.tokenizer, chat_template_kwargs(loop.config))
        rollout, prompts, tokenize = loop.rollout_config, [], loop.ct_build_initial_tokens

        async def tokenize_in_context(*args: Any, **kwargs: Any) -> list[int]:
            prompts.append(context.prompt_ids(row["raw_prompt"], await tokenize(*args, **kwargs)))
            _check_room(len(prompts[-1]), rollout.response_length, rollout.max_model_len)
            return prompts[-1]

        loop.ct_build_initial_tokens = tokenize_in_context  # the one place where verl's loops make their first prompt
        as_in_training = {key: rollout[key] for key in ("temperature", "top_p", "top_k")}
        # verl's default shortens responses to prompts longer than data.max_prompt_length, as a teacher's may be.
        limit = {"max_tokens": rollout.response_length}
        output = await loop.run({**sampling_params, **as_in_training, **limit}, **row)
        outputs = output if isinstance(output, list) else [output]
        if len(prompts) != 1 or any(list(one.prompt_ids) != prompts[0] for one in outputs):
            raise RuntimeError(
                f"CAST: the agent loop {name} does not make its prompts with verl's ct_build_initial_tokens, once a "
                "response, so it cannot sample in the teacher's context; use ++algorithm.cast.trust=always."
            )
        return output


def _check_room(prompt: int, response: int, limit: int | None) -> None:
    if limit is not None and prompt + response > limit:
        raise ValueError(
            f"CAST: the teacher's prompt has {prompt} tokens, so that the rollout engine has no room for a response of "
            f"{response}; set actor_rollout_ref.rollout.max_model_len={prompt + response} or more."
        )
