"""Laws of the prompts that the doctor shows, as student and teacher read them."""

from doctor_runs import CAST, TEXT_ROW, changed, look, texts, with_rows


def test_a_template_that_reads_the_question_and_never_shows_it_is_refused(good_run, tmp_path):
    path = tmp_path / "teacher.jinja"
    path.write_text("{% if problem %}Think about it.{% endif %}")
    [text] = texts(look(changed(good_run, **{f"{CAST}.teacher.context": str(path)})), "error")
    assert "teacher.jinja" in text and "write {{ problem }} where it belongs" in text


def test_a_context_that_hides_part_of_the_prompt_is_said(good_run, tmp_path):
    system = {"role": "system", "content": "Answer in French."}
    row = {**TEXT_ROW, "prompt": [system, {"role": "user", "content": "x" * 90}]}
    config = with_rows(good_run, tmp_path / "rows.jsonl", 32 * [row])
    length, system = texts(look(config), "warning")
    assert "shows the teacher only the last user message" in system
    assert "longer than data.max_prompt_length=96" in length
    settings = {f"{CAST}.teacher.context": "same", f"{CAST}.trust": "always", "data.max_prompt_length": 300}
    same = changed(config, **settings)
    assert texts(look(same), "warning") == []


def test_contexts_are_shown_with_their_lengths(good_run, tmp_path):
    """The tiny tokenizer has one token per byte."""
    shown = {line.label: line for line in look(good_run)["Prompts"]}
    student, teacher = shown["student reads"], shown["teacher reads"]
    assert student.block == "<|im_start|>user\nWhat is 0 + 0?<|im_end|>\n<|im_start|>assistant\n"
    assert student.text.startswith(f"{len('.user.What is 0 + 0?..') + len('.assistant.')} tokens")
    assert teacher.block.startswith("What is 0 + 0?\n\nPlease reason") and "<|im_start|>" not in teacher.block
    assert teacher.text.startswith(f"{len(teacher.block)} tokens")
    template = tmp_path / "teacher.jinja"
    template.write_text("{{ apply_chat_template(messages + [{'role': 'user', 'content': 'Think first.'}]) }}")
    shown = {
        line.label: line for line in look(changed(good_run, **{f"{CAST}.teacher.context": str(template)}))["Prompts"]
    }
    assert "Think first.<|im_end|>" in shown["teacher reads"].block
    template.write_text("{{ student_prompt }}")
    [text] = texts(look(changed(good_run, **{f"{CAST}.teacher.context": str(template)})), "warning")
    assert "use ++algorithm.cast.teacher.context=same" in text
    template.write_text("{{ messages[7].content }}")
    errors = texts(look(changed(good_run, **{f"{CAST}.teacher.context": str(template)})), "error")
    assert len(errors) == 1 and "an example prompt cannot be rendered" in errors[0]
    assert f"{CAST}.teacher.context={template}: line 1 of the template fails" in errors[0]
