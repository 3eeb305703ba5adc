"""The prompts of the student and of the self-teacher: an example from the training data, and their lengths.

The student's tokens come from the builder that verl's agent loop uses, the teacher's from the worker's TeacherContext.
Left out: images, agent loops that write their own prompts, and the contexts of baselines.
"""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from verl_cast.config.cast import TeacherConfig
from verl_cast.config.words import command_words
from verl_cast.teacher.context import TeacherContext, chat_template_kwargs, load_template, problem_text
from verl_cast.teacher.limits import max_positions
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok, shortened, warning

_SAME = command_words({"teacher.context": "same"})


def check(
    config: DictConfig, teacher: TeacherConfig | None, model_config: Any, chats: Sequence[Sequence[dict]]
) -> list[Line]:
    """Show the prompts of the first chat, and measure those of all.

    Args:
        teacher: CAST's; None for other methods.
        model_config: verl's HFModelConfig.
        chats: messages of some training rows, at least one.
    """
    is_text = all(isinstance(message["content"], str) for chat in chats for message in chat)
    if not is_text and (teacher is None or teacher.context == "same"):
        return [note("prompts", "not shown: they hold parts besides text")]
    lines = _refused_by_template(config, model_config, chats)
    try:
        student_ids = _student_ids(config, model_config, chats)
        lines.append(_shown("student reads", student_ids, model_config.tokenizer))
    except Exception as problem:  # chat templates are the user's code
        return [*lines, error("prompts", f"a prompt cannot be rendered: {first_line(problem)}")]
    longest = max(map(len, student_ids))
    if longest > config.data.max_prompt_length:
        lines.append(
            warning(
                "prompts",
                f"a prompt of {longest} tokens is longer than data.max_prompt_length={config.data.max_prompt_length}: "
                "verl cuts off its beginning for the student, but the teacher reads all of it.",
            )
        )
    return lines if teacher is None else lines + _teacher_lines(config, teacher, model_config, chats, student_ids)


def _teacher_lines(
    config: DictConfig,
    teacher: TeacherConfig,
    model_config: Any,
    chats: Sequence[Sequence[dict]],
    student_ids: list[list[int]],
) -> list[Line]:
    if teacher.context == "same":
        return [note("teacher reads", "the same tokens (context=same)")]
    key, kwargs = f"{teacher.KEY}.context={teacher.context}", chat_template_kwargs(config)
    context = TeacherContext(teacher.context, load_template(teacher.context), model_config.tokenizer, kwargs)
    try:
        ids = [context.prompt_ids(chat, own) for chat, own in zip(chats, student_ids, strict=True)]
    except Exception as problem:  # context templates are the user's code
        reason = first_line(problem).removeprefix("CAST: ")
        return [error("prompts", f"an example prompt cannot be rendered: {reason}")]
    lines = [_shown("teacher reads", ids, model_config.tokenizer)]
    if teacher.context != "plain" and len(set(map(problem_text, chats))) > 1 and len(set(map(tuple, ids))) == 1:
        blank = "the teacher reads the same for different questions; write {{ problem }} where it belongs."
        lines.append(error("prompts", f"{key}: {blank}"))
    if teacher.context == "plain" and any(len(chat) > 1 for chat in chats):
        lines.append(
            warning(
                "prompts",
                f"{key} shows the teacher only the last user message; these prompts have more (system message, earlier "
                f"turns). If the teacher needs those, use {_SAME} or a template file.",
            )
        )
    if ids == student_ids:
        lines.append(
            warning(
                "prompts",
                f"the template gives the student's own prompt; use {_SAME}. Where the weights are the policy's, it "
                "needs no forward, and the gap is exactly 0 instead of kernel noise.",
            )
        )
    return [*lines, _length(config, model_config, max(map(len, ids)))]


def _student_ids(config: DictConfig, model_config: Any, chats: Sequence[Sequence[dict]]) -> list[list[int]]:
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    builder = create_continuous_token_builder(
        model_config.tokenizer,
        hf_model_type=model_config.hf_config.model_type,
        chat_template_kwargs=chat_template_kwargs(config),
        processor=model_config.processor,
    )
    return [list(builder.build_initial_tokens(list(chat))) for chat in chats]


def _refused_by_template(config: DictConfig, model_config: Any, chats: Sequence[Sequence[dict]]) -> list[Line]:
    """Chats that the model's template refuses: verl's builder catches that and renders something else."""
    for chat in chats:
        try:
            model_config.tokenizer.apply_chat_template(
                list(chat), add_generation_prompt=True, tokenize=False, **chat_template_kwargs(config)
            )
        except Exception as problem:  # a template may raise anything
            text = (
                f"the model's chat template refuses these messages: {first_line(problem)} verl then puts an empty user "
                "message before them and cuts it off, with what the template begins with; its filter drops such rows."
            )
            return [warning("prompts", text)]
    return []


def _shown(label: str, ids: list[list[int]], tokenizer: Any) -> Line:
    lengths = list(map(len, ids))
    span = f"{min(lengths)} to {max(lengths)}, " if min(lengths) != max(lengths) else ""
    rows = f" ({span}first {len(ids)} rows)" if len(ids) > 1 else ""
    return note(label, f"{lengths[0]} tokens{rows}; then the response", shortened(tokenizer.decode(ids[0])))


def _length(config: DictConfig, model_config: Any, longest: int) -> Line:
    """Check the longest teacher context plus a full-length response against what ends a run (teacher/forward.py)."""
    limit = max_positions(model_config.hf_config.get_text_config())
    response = config.data.max_response_length
    length = longest + response
    said = f"teacher context ({longest}) + data.max_response_length ({response}) = {length} tokens"
    if limit is None:
        return ok("length", f"{said} at most; nothing limits it")
    if length > limit:
        return error(
            "length",
            f"{said}. max_position_embeddings allows {limit}, and a longer sequence ends the run. Use a shorter "
            "context or lower data.max_response_length.",
        )
    return ok("length", f"{said} at most; max_position_embeddings {limit}")
