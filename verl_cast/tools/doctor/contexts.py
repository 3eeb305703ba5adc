"""The prompts of the student and of the self-teacher: an example from the training data, and their lengths.

The student's tokens come from the builder that verl's agent loop uses, the teacher's from the worker's TeacherContext.
Left out: images, and agent loops that write their own prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from verl_cast.config.cast import TeacherConfig
from verl_cast.teacher.context import TeacherContext, chat_template_kwargs, load_template, problem_text
from verl_cast.teacher.limits import max_positions
from verl_cast.tools.cli import first_line
from verl_cast.tools.doctor.lines import Line, error, note, ok, shortened, warning

_NO_QUESTION = (
    "algorithm.cast.teacher.context={}: the teacher reads the same for different questions, so the template shows it "
    "none; write {{{{ problem }}}} where it belongs."
)


@dataclass(frozen=True)
class Contexts:
    """Prompt lengths in tokens, one per example row."""

    student: list[int]
    teacher: list[int]
    lines: list[Line]


def load_model_config(config: DictConfig) -> Any:
    """verl's own HFModelConfig: tokenizer, processor and Hugging Face config of the policy; no weights.

    Raises:
        hydra.errors.InstantiationException: they cannot be loaded; its cause gives the reason.
    """
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(config.actor_rollout_ref.model)


def check(config: DictConfig, teacher: TeacherConfig, model_config: Any, chats: Sequence[list[dict]]) -> Contexts:
    """Show the prompts of the first chat, and measure those of all.

    Args:
        chats: messages of some training rows, at least one.
    """
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    template_kwargs = chat_template_kwargs(config)
    student = create_continuous_token_builder(
        model_config.tokenizer,
        hf_model_type=model_config.hf_config.model_type,
        chat_template_kwargs=template_kwargs,
        processor=model_config.processor,
    )
    context = TeacherContext(teacher.context, load_template(teacher.context), model_config.tokenizer, template_kwargs)
    student_ids, teacher_ids = [], []
    for chat in chats:
        try:
            student_ids.append(list(student.build_initial_tokens(chat)))
            teacher_ids.append(context.prompt_ids(chat, student_ids[-1]))
        except Exception as problem:  # chat templates and context templates are the user's code
            return Contexts([], [], [error("context", _cannot_be_rendered(problem))])

    lengths = [len(ids) for ids in student_ids], [len(ids) for ids in teacher_ids]
    decode = model_config.tokenizer.decode
    lines = [
        _shown("student reads", lengths[0], decode(student_ids[0])),
        note("teacher reads", "the same tokens (context=same)")
        if context.is_same
        else _shown("teacher reads", lengths[1], decode(teacher_ids[0])),
    ]
    is_template = teacher.context not in ("plain", "same")
    if is_template and len(set(map(problem_text, chats))) > 1 and len(set(map(tuple, teacher_ids))) == 1:
        return Contexts([], [], [*lines, error("context", _NO_QUESTION.format(context.name))])
    if teacher.context == "plain" and any(len(chat) > 1 for chat in chats):
        lines.append(
            warning(
                "context",
                "algorithm.cast.teacher.context=plain shows the teacher only the last user message; these prompts have "
                "more (system message, earlier turns). If the teacher needs those, use same or a template file.",
            )
        )
    if not context.is_same and student_ids == teacher_ids:
        lines.append(
            warning(
                "context",
                "the template gives the student's own prompt; use algorithm.cast.teacher.context=same. Where the "
                "weights are the policy's, it needs no forward, and the gap is exactly 0 instead of kernel noise.",
            )
        )
    longest = max(lengths[0])
    if longest > config.data.max_prompt_length:
        lines.append(
            warning(
                "context",
                f"a prompt of {longest} tokens is longer than data.max_prompt_length={config.data.max_prompt_length}: "
                "verl cuts off its beginning for the student, but the teacher reads all of it.",
            )
        )
    return Contexts(*lengths, lines)


def _cannot_be_rendered(problem: Exception) -> str:
    return f"an example prompt cannot be rendered: {first_line(problem).removeprefix('CAST: ')}"


def _shown(label: str, lengths: list[int], text: str) -> Line:
    span = f"{min(lengths)} to {max(lengths)}, " if min(lengths) != max(lengths) else ""
    text_of = f"{lengths[0]} tokens ({span}first {len(lengths)} rows)" if len(lengths) > 1 else f"{lengths[0]} tokens"
    return note(label, f"{text_of}; then the response", shortened(text))


def check_length(config: DictConfig, model_config: Any, longest_teacher_prompt: int) -> Line:
    """Check the longest teacher context plus a full-length response against what ends a run (teacher/forward.py)."""
    limit = max_positions(model_config.hf_config.get_text_config())
    response = config.data.max_response_length
    length = longest_teacher_prompt + response
    said = f"teacher context ({longest_teacher_prompt}) + data.max_response_length ({response}) = {length} tokens"
    if limit is None:
        return ok("length", f"{said} at most; nothing limits it")
    if length > limit:
        return error(
            "length",
            f"{said}. max_position_embeddings allows {limit}, and a longer sequence ends the run. Use a shorter "
            "context or lower data.max_response_length.",
        )
    return ok("length", f"{said} at most; max_position_embeddings {limit}")
