"""The self-teacher's context: what stands before the response when the teacher scores it (method section 8).

* `same`   the student's own prompt tokens.
* `plain`  the problem as plain text, without chat template: the form of the evaluated run.
* a Jinja template file, rendered to text. It sees
      messages              the chat messages of the prompt: [{"role": ..., "content": ...}, ...]
      problem               the last user message, without DAPO's boilerplate
      student_prompt        the student's prompt as text, special tokens included but for a BOS at its start
      apply_chat_template   a function: list of messages -> text in the model's chat format, ready for the answer,
                            without a BOS at its start
  It sees nothing else: no reference answer, no solution. One newline at the end of the file is dropped. The template
  runs in Jinja's sandbox: people share such files.

Where the model's prompts begin with BOS, the teacher's has it once, at its start. An EOS that the tokenizer appends to
texts is left out: the response follows.

Left out: images (only `same` has them), and prompts that an agent loop rewrites between its outputs.
"""

import hashlib
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
from omegaconf import DictConfig, OmegaConf

from verl_cast.config import CastConfigError

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
RESPONSE_HEADER = "[Student response]"
TEMPLATE_VARIABLES = ("messages", "problem", "student_prompt", "apply_chat_template")
_HOLD_THE_QUESTION = {"messages", "problem", "student_prompt"}
_KEY = "algorithm.cast.teacher.context"

# DAPO-Math-17k wraps these words around every problem. The evaluated run strips them for the plain context.
DAPO_PREFIX = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
DAPO_SUFFIX = 'Remember to put your answer on its own line after "Answer:".'


def problem_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last user message, without DAPO's boilerplate.

    Raises:
        ValueError: there is no user message, or it holds more than text.
    """
    users = [message for message in messages if message["role"] == "user"]
    if not users:
        raise ValueError(
            f"CAST: a prompt has no user message, which this teacher's context is made of ({_KEY}=same needs none)."
        )
    content = users[-1]["content"]
    if not isinstance(content, str):
        raise ValueError(f"CAST: a prompt holds images or other parts besides text, which only {_KEY}=same can carry.")
    return content.strip().removeprefix(DAPO_PREFIX).removesuffix(DAPO_SUFFIX).strip()


def load_template(context: str) -> str | None:
    """The source of the context's template, checked; None where the context is not a template file.

    Raises:
        CastConfigError: the file cannot be read, is not UTF-8 or no valid Jinja, or asks for a variable that does not
            exist.
    """
    if context in ("plain", "same"):
        return None
    try:
        source = Path(context).expanduser().read_text(encoding="utf-8")
        variables = jinja2.meta.find_undeclared_variables(_environment().parse(source))
    except OSError as error:
        remedy = f"the template cannot be read: {error.strerror}; name a file that this process can read."
        raise CastConfigError(_KEY, context, remedy) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CastConfigError(_KEY, context, f"line {line} is not UTF-8; save the template as UTF-8.") from error
    except jinja2.TemplateSyntaxError as error:
        raise CastConfigError(_KEY, context, f"line {error.lineno} is not valid Jinja: {error.message}.") from error
    unknown = sorted(variables - set(TEMPLATE_VARIABLES) - set(_environment().globals))
    if unknown:
        raise CastConfigError(
            _KEY,
            context,
            f"the template uses {', '.join(unknown)}; it has {', '.join(TEMPLATE_VARIABLES)} and nothing else "
            "(CAST's teacher is answer-free).",
        )
    return source


def check_shows_the_question(context: str, source: str) -> None:
    """
    Args:
        context: the template's name, for the message.
        source: from `load_template`.

    Raises:
        CastConfigError: the template uses nothing that holds the question, so the teacher would never read it.
    """
    if not jinja2.meta.find_undeclared_variables(_environment().parse(source)) & _HOLD_THE_QUESTION:
        raise CastConfigError(
            _KEY,
            context,
            "the template uses neither messages, problem nor student_prompt, so the teacher never reads the question; "
            "write {{ problem }} where it belongs.",
        )


def chat_template_kwargs(config: DictConfig) -> dict[str, Any]:
    """What verl passes to the chat template in this run (`data.apply_chat_template_kwargs`)."""
    kwargs = config.data.get("apply_chat_template_kwargs", None) or {}
    return OmegaConf.to_container(OmegaConf.create(kwargs), resolve=True)


def _line_of(error: Exception) -> int | str:
    """The template's line that raised. Jinja gives the frames of templates lines of their source."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == "<template>"]
    return lines[0] if lines else "?"  # the first: the chat template that it may call is a template, too


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals = {name: environment.globals[name] for name in ("range", "dict", "namespace")}
    return environment


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that the response follows: with what the tokenizer puts before texts (BOS), without what it
    appends (EOS)."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    with_specials = tokenizer("a")["input_ids"]
    before = with_specials[: next(i for i in range(len(with_specials)) if with_specials[i:][: len(letter)] == letter)]
    return ids if before and ids[: len(before)] == before else before + ids


def _split_bos(tokenizer: Any, prompt: str) -> tuple[str, str]:
    """The BOS that opens a prompt, or "", and the rest. A BOS that comes again is a mark of the chat format."""
    bos = tokenizer.bos_token
    return (
        (bos, prompt.removeprefix(bos)) if bos and prompt.startswith(bos) and prompt.count(bos) == 1 else ("", prompt)
    )


class TeacherContext:
    """Builds the teacher's prompt tokens.

    Args:
        context: `plain`, `same` or the name of the template file (for messages).
        template: the template's source, from `load_template`; None without a template.
        tokenizer: the policy's tokenizer.
        chat_template_kwargs: what verl passes to the chat template (`data.apply_chat_template_kwargs`).

    Attributes:
        identity: equal for contexts that give equal prompts.
    """

    reads_field: str | None = None  # of a row, beside its prompt and messages: nothing

    def __init__(
        self,
        context: str,
        template: str | None,
        tokenizer: Any,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.name = context
        self.identity = (
            context if template is None else f"template {hashlib.sha256(template.encode()).hexdigest()[:12]}"
        )
        self.is_same = context == "same"
        self._tokenizer = tokenizer
        self._chat_template_kwargs = dict(chat_template_kwargs or {})
        self._template = None if template is None else _environment().from_string(template)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], student_prompt_ids: Sequence[int]) -> list[int]:
        """Token ids of the teacher's prompt for one row.

        Args:
            messages: the row's chat messages (verl's `raw_prompt`).
            student_prompt_ids: the student's prompt tokens.
        """
        if self.is_same:
            return list(student_prompt_ids)
        text, has_special_tokens = self.render(messages, student_prompt_ids)
        if has_special_tokens:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = text_ids(self._tokenizer, text)
        if not ids:
            raise ValueError(f"CAST: {_KEY}={self.name} gave an empty prompt; the teacher needs at least one token.")
        self._warn_of_one_bos(ids, student_prompt_ids)
        return ids

    def _warn_of_one_bos(self, ids: Sequence[int], student_prompt_ids: Sequence[int]) -> None:
        bos = self._tokenizer.bos_token_id
        begin = [prompt[:1] == [bos] and prompt.count(bos) == 1 for prompt in (ids, list(student_prompt_ids))]
        if bos is not None and begin[0] != begin[1]:
            which, other = ("teacher", "student") if begin[0] else ("student", "teacher")
            warnings.warn(  # once: Python shows a warning once per place
                f"CAST: the {which}'s prompt begins with {self._tokenizer.bos_token}, the {other}'s does not; gaps may "
                "come from that. The usual cause is a chat template without BOS (actor_rollout_ref.model."
                "custom_chat_template): begin it with {{ bos_token }}.",
                stacklevel=2,
            )

    def render(self, messages: Sequence[Mapping[str, Any]], student_prompt_ids: Sequence[int]) -> tuple[str, bool]:
        """The text of the teacher's prompt, and whether it already carries the tokenizer's special tokens.

        Raises:
            ValueError: the template fails on this prompt, or the prompt has no user message or more than text.
        """
        messages = [dict(message) for message in messages]
        if self._template is None:
            return f"{problem_text(messages)}\n\n{INSTRUCTION}\n\n{RESPONSE_HEADER}\n", False
        chat_bos: str | None = None  # the BOS of the chat format, where the template used that

        def apply_chat_template(chat: list[dict]) -> str:
            nonlocal chat_bos
            rendered = self._tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, **self._chat_template_kwargs
            )
            chat_bos, rest = _split_bos(self._tokenizer, rendered)
            return rest

        student_bos, student_prompt = _split_bos(
            self._tokenizer, self._tokenizer.decode(list(student_prompt_ids), skip_special_tokens=False)
        )
        problem = problem_text(messages)
        try:
            text = self._template.render(
                messages=messages,
                problem=problem,
                student_prompt=student_prompt,
                apply_chat_template=apply_chat_template,
            )
        except Exception as error:  # a template may raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(
                f"CAST: {_KEY}={self.name}: line {_line_of(error)} of the template fails on a prompt of "
                f"{len(messages)} message(s): {reason}; mend the line, or guard it with an if."
            ) from error
        if chat_bos is not None:
            return chat_bos + text, True
        # A template that starts with the student's prompt has its special tokens as text, like one in chat format.
        if student_prompt and text.startswith(student_prompt):
            return student_bos + text, True
        return text, False
