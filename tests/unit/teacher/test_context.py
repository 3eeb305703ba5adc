"""Laws of the teacher's context: its exact text, its exact tokens, and that it is answer-free."""

import warnings

import pytest
from tiny import tokenizer

from verl_cast import CastConfigError
from verl_cast.teacher.context import TeacherContext, load_template, problem_text

QUESTION = r"What is \frac{3}{1} + {4}?"  # braces that no format() may read
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


def write(tmp_path, text):
    path = tmp_path / "context.jinja"
    path.write_text(text)
    return str(path)


def context(tok, name, **kwargs):
    return TeacherContext(name, load_template(name), tok, **kwargs)


def test_plain_is_the_text_of_the_evaluated_run(tok):
    ids = context(tok, "plain").prompt_ids(MESSAGES, [1, 2, 3])
    assert tok.decode(ids) == (
        f"{QUESTION}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n\n"
        "[Student response]\n"
    )
    assert "<|im_start|>" not in tok.decode(ids)


def test_dapo_boilerplate_is_stripped():
    content = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        f"$Answer (without quotes) where $Answer is the answer to the problem.\n\n{QUESTION}\n\nRemember to put your "
        'answer on its own line after "Answer:".'
    )
    assert problem_text([{"role": "user", "content": content}]) == QUESTION
    assert problem_text(MESSAGES) == QUESTION


def test_same_is_the_students_prompt_token_for_token(tok):
    same = context(tok, "same")
    assert same.is_same and same.prompt_ids(MESSAGES, (5, 6, 7)) == [5, 6, 7]


def test_a_text_template(tok, tmp_path):
    path = write(tmp_path, "Q: 1 + 1?\nA: 2\n\nQ: {{ problem }}\nA:\n")
    assert tok.decode(context(tok, path).prompt_ids(MESSAGES, [])) == f"Q: 1 + 1?\nA: 2\n\nQ: {QUESTION}\nA:"


def test_a_chat_template_with_worked_examples(tok, tmp_path):
    path = write(
        tmp_path,
        """\
{% set examples = [
  {"role": "user", "content": "What is 1 + 1?"},
  {"role": "assistant", "content": "Answer: 2"},
] %}
{{ apply_chat_template(examples + messages[1:]) }}
""",
    )
    chat = [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "Answer: 2"},
        {"role": "user", "content": QUESTION},
    ]
    expected = tok.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert context(tok, path).prompt_ids(MESSAGES, []) == expected


def test_a_template_that_starts_with_the_students_prompt(tok, tmp_path):
    student = tok.apply_chat_template(MESSAGES, tokenize=True, add_generation_prompt=True, return_dict=False)
    path = write(tmp_path, "{{ student_prompt }}Let me think.")
    ids = context(tok, path).prompt_ids(MESSAGES, student)
    assert ids[: len(student)] == student and tok.decode(ids[len(student) :]) == "Let me think."


def test_chat_template_kwargs_reach_the_template(tok, tmp_path):
    path = write(tmp_path, "{{ apply_chat_template(messages) }}")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'T' if enable_thinking else 'N' }}"
    rendered = context(tok, path, chat_template_kwargs={"chat_template": template, "enable_thinking": True})
    assert rendered.render(MESSAGES, [])[0] == f"Be brief.{QUESTION}T"


@pytest.mark.parametrize(
    "text, says",
    [
        ("{{ problem }} {{ ground_truth }}", "ground_truth"),
        ("{{ reward_model.ground_truth }}", "reward_model"),
        ("{{ answer }}", "answer-free"),
        ("{% for x in %}", "line 1 is not valid Jinja"),
    ],
)
def test_templates_that_cannot_work_or_ask_for_the_answer_are_refused(tmp_path, text, says):
    with pytest.raises(CastConfigError, match=says):
        load_template(write(tmp_path, text))


def test_a_template_in_another_encoding_names_file_line_and_remedy(tmp_path):
    path = tmp_path / "context.jinja"
    path.write_bytes("First.\nRésumé of {{ problem }}".encode("latin-1"))
    with pytest.raises(CastConfigError, match=f"^algorithm.cast.teacher.context='{path}': line 2 is not UTF-8; save "):
        load_template(str(path))


@pytest.mark.parametrize(
    "text, says",
    [
        ("One.\n{{ problem }}\n{{ messages[7].content }}", "line 3 of the template fails on a prompt of 2 message(s)"),
        # The chat template is a template, too. Its line would mislead.
        ("{{ problem }}\n\n\n{{ apply_chat_template([1]) }}", "line 4 of the template fails"),
        ("{{ problem / 2 }}", "TypeError: unsupported operand"),
    ],
)
def test_a_template_that_fails_names_file_line_and_remedy(tok, tmp_path, text, says):
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        context(tok, path).prompt_ids(MESSAGES, [1])
    assert str(error.value).startswith(f"CAST: algorithm.cast.teacher.context={path}: ") and says in str(error.value)
    assert "mend the line" in str(error.value)


def test_images_are_refused_unless_the_context_is_same(tok):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    with pytest.raises(ValueError, match="context=same"):
        context(tok, "plain").prompt_ids(messages, [1])
    assert context(tok, "same").prompt_ids(messages, [1]) == [1]


# ------------------------------------------------------------------------------------------------------ special tokens

BOS, EOS = "<|endoftext|>", "<|im_end|>"
CHAT_WITH_BOS = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("adds", ["$A", f"{BOS} $A", f"$A {EOS}", f"{BOS} $A {EOS}"])
def test_plain_has_the_bos_of_the_tokenizer_and_never_its_eos(adds):
    """After EOS the response would follow a text that has ended."""
    tok = tokenizer(adds)
    text = tok.decode(context(tok, "plain").prompt_ids(MESSAGES, tok(QUESTION)["input_ids"]))
    assert text.count(BOS) == text.startswith(BOS) == adds.startswith(BOS) and EOS not in text
    assert text.removeprefix(BOS).startswith(QUESTION) and text.endswith("[Student response]\n")


@pytest.mark.parametrize(
    "template",
    [
        "{{ apply_chat_template(messages) }}",
        "Worked examples come first.\n{{ apply_chat_template(messages) }}",
        "{{ apply_chat_template(messages[:1]) }}{{ apply_chat_template(messages[1:]) }}",
        "{{ student_prompt }}Let me think.",
        "Read this: {{ student_prompt }}",
        "<|endoftext|>{{ problem }}",
        "{{ problem }}",
    ],
)
def test_bos_comes_first_and_once(tmp_path, template):
    tok = tokenizer(f"{BOS} $A")
    tok.chat_template = CHAT_WITH_BOS
    student = tok.apply_chat_template(MESSAGES, return_dict=False)
    ids = context(tok, write(tmp_path, template)).prompt_ids(MESSAGES, student)
    assert ids[0] == tok.bos_token_id and ids.count(tok.bos_token_id) == 1, tok.decode(ids)


def test_a_bos_that_marks_every_turn_of_a_chat_stays(tok, tmp_path):
    """As in SmolLM's chat format."""
    tok = tokenizer()
    tok.bos_token = "<|im_start|>"
    path = write(tmp_path, "First: {{ apply_chat_template(messages) }}")
    chat = tok.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert tok.decode(context(tok, path).prompt_ids(MESSAGES, tok(chat)["input_ids"])) == f"First: {chat}"


def test_a_bos_on_one_side_is_warned_of_once_per_place():
    tok = tokenizer(f"{BOS} $A")
    student = tok.apply_chat_template(MESSAGES, return_dict=False)  # this chat template has none
    with pytest.warns(UserWarning, match="the teacher's prompt begins with <|endoftext|>, the student's does not"):
        context(tok, "plain").prompt_ids(MESSAGES, student)
    with warnings.catch_warnings(action="error"):
        context(tok, "plain").prompt_ids(MESSAGES, [tok.bos_token_id, *student])


# ------------------------------------------------------------------------------------------------------------- sandbox


@pytest.mark.parametrize(
    "attack",
    [
        "{{ problem.__class__.__mro__ }}",
        "{{ apply_chat_template.__globals__ }}",
        "{{ range.__init__.__globals__ }}",
        "{% set _ = messages.append({}) %}{{ problem }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tok, tmp_path, attack):
    built = context(tok, write(tmp_path, attack))
    with pytest.raises(ValueError, match="SecurityError"):
        built.prompt_ids(MESSAGES, [1])


@pytest.mark.parametrize("name", ["lipsum", "cycler", "joiner"])
def test_jinjas_helpers_are_no_variables(tmp_path, name):
    """`lipsum.__globals__` reached the operating system."""
    with pytest.raises(CastConfigError, match=f"uses {name}"):
        load_template(write(tmp_path, f"{{{{ problem }}}}{{{{ {name} }}}}"))


def test_prompts_without_user_or_tokens_are_named(tok, tmp_path):
    with pytest.raises(ValueError, match="no user message"):
        context(tok, "plain").prompt_ids([{"role": "system", "content": "x"}], [1])
    with pytest.raises(ValueError, match="empty prompt"):
        context(tok, write(tmp_path, "{% if false %}{{ problem }}{% endif %}")).prompt_ids(MESSAGES, [])
