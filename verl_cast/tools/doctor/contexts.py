"""The prompts of the student and of the self-teacher: an example from the training data, and their lengths.

The student's tokens come from the builder that verl's agent loop uses, the teacher's from the worker's TeacherContext.
Left out: images, agent loops that write their own prompts, and the contexts of baselines.
"""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from verl_cast.checks.trust import same_context
from verl_cast.config.cast import CastConfig
from verl_cast.teacher.context import TeacherContext, chat_template_kwargs, load_template, problem_text
from verl_cast.teacher.limits import max_positions
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok, warning
from verl_cast.tools.run_parts import prompt_ids


def check(
    config: DictConfig, method: CastConfig | None, model_config: Any, chats: Sequence[Sequence[dict]]
) -> list[Line]:
    """Show the prompts of the first chat, and measure those of all.

    Args:
        method: None where the run does not train CAST.
        model_config: verl's HFModelConfig.
        chats: messages of some training rows, at least one.
    """
    is_text = all(isinstance(message["content"], str) for chat in chats for message in chat)
    if not is_text and (method is None or method.teacher.context == "same"):
        return [note("prompts", "not shown: they hold parts besides text")]
    lines = _refused_by_template(config, model_config, chats)
    try:
        student_ids = prompt_ids(config, model_config, chats)
    except Exception as problem:  # chat templates are the user's code
        return [*lines, error("prompts", f"a prompt cannot be rendered: {first_line(problem)}")]
    lines.append(_shown("student reads", student_ids, model_config.tokenizer))
    longest, limit = max(map(len, student_ids)), config.data.max_prompt_length
    if longest > limit:
        cut = "verl cuts off its beginning for the student, but the teacher reads all of it"
        lines.append(
            warning("prompts", f"a prompt of {longest} tokens is longer than data.max_prompt_length={limit}: {cut}.")
        )
    return lines if method is None else lines + _teacher_lines(config, method, model_config, chats, student_ids)


def _refused_by_template(config: DictConfig, model_config: Any, chats: Sequence[Sequence[dict]]) -> list[Line]:
    """Chats that the model's template refuses: verl's builder catches that and renders something else."""
    kwargs = {"add_generation_prompt": True, "tokenize": False, **chat_template_kwargs(config)}
    try:
        for chat in chats:
            model_config.tokenizer.apply_chat_template(list(chat), **kwargs)
    except Exception as problem:  # a template may raise anything
        refused = f"the model's chat template refuses these messages: {first_line(problem)}"
        return [warning("prompts", f"{refused} verl then renders them in another way, and its filter drops such rows.")]
    return []


def _teacher_lines(
    config: DictConfig,
    method: CastConfig,
    model_config: Any,
    chats: Sequence[Sequence[dict]],
    student_ids: list[list[int]],
) -> list[Line]:
    teacher, same = method.teacher, same_context(method)
    if teacher.context == "same":
        return [note("teacher reads", "the same tokens (context=same)")]
    key = f"{teacher.KEY}.context={teacher.context}"
    template, tokenizer = load_template(teacher.context), model_config.tokenizer
    context = TeacherContext(teacher.context, template, tokenizer, chat_template_kwargs(config))
    try:
        ids = [context.prompt_ids(chat, own) for chat, own in zip(chats, student_ids, strict=True)]
    except Exception as problem:  # context templates are the user's code
        reason = first_line(problem).removeprefix("CAST: ")
        return [error("prompts", f"an example prompt cannot be rendered: {reason}")]
    lines = [_shown("teacher reads", ids, tokenizer)]
    if teacher.context != "plain" and len(set(map(problem_text, chats))) > 1 and len(set(map(tuple, ids))) == 1:
        blank = "the teacher reads the same for different questions; write {{ problem }} where it belongs."
        lines.append(error("prompts", f"{key}: {blank}"))
    if teacher.context == "plain" and any(len(chat) > 1 for chat in chats):
        hides = "shows the teacher only the last user message, and these prompts have more"
        lines.append(warning("prompts", f"{key} {hides}. If it needs those, use {same} or a template file."))
    if ids == student_ids:
        lines.append(warning("prompts", f"{key} gives the student's own prompt; use {same}, whose gap has no noise."))
    longest, limit = max(map(len, ids)), max_positions(model_config.hf_config.get_text_config())
    response = config.data.max_response_length
    said = f"teacher context ({longest}) + data.max_response_length ({response}) = {longest + response} tokens"
    if limit is not None and longest + response > limit:
        remedy = "a longer sequence ends the run. Use a shorter context or lower data.max_response_length"
        return [*lines, error("length", f"{said}. max_position_embeddings allows {limit}, and {remedy}.")]
    return [*lines, ok("length", f"{said} at most")]


def _shown(label: str, ids: list[list[int]], tokenizer: Any) -> Line:
    lengths, text = list(map(len, ids)), tokenizer.decode(ids[0])
    if len(text) > 1300:
        text = f"{text[:900]}\n[... {len(text) - 1200} characters ...]\n{text[-300:]}"
    return note(label, f"{lengths[0]} tokens ({min(lengths)} to {max(lengths)} in {len(ids)} rows)", text)
