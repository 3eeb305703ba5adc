r"""Finds the final answer of a response: which words count. `reading` says what they mean.

`final_answer` is the training rule. It drops thinking blocks; an unclosed <think> drops all text after it. The answer
is the first of these that exists:

1. the last <answer>...</answer>;
2. the last line `Answer: ...` (`Final answer`, `答案：`; as list item, heading, table row or in bold; the value may
   stand on the next line);
3. the last \boxed{...} or \fbox{...}, with the boxes before it that only blanks, commas, "and" or "or" separate;
4. the last non-empty line, of which the last sentence.

In training a match counts only if it starts within the last 5 % of the response's tokens. An answer given early earns
nothing. `last_box` is the rule of the evaluated run's evaluation: the last \boxed{...}, nothing else.

All functions take time linear in the text's length, for any text. Left out: judging the answer (`equivalence`).
"""

import re
from functools import lru_cache

_MARKS = r"[ \t>#*_|✅✔️+-]"
# A label with a colon (or a table's bar), or a label as a whole line that Markdown marks as a heading or as bold.
_ANSWER_LINE = re.compile(
    rf"^{_MARKS}*(?:(?:(?:final|correct)[ \t]+)?answer|(?:最终|最后|正确)?答案|答)[*_ \t]*[:：|][*_]*"
    rf"|^[ \t]*[#*]{_MARKS}*(?:final[ \t]+)?answer[*_ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_VALUE = re.compile(r"\s*(?:(?:```\w*|\$\$|\\\[)[ \t]*\n\s*)?([^\n]*)")
_BRACE = re.compile(r"(\\(?:boxed|fbox)[ \t]*)?\{|\}")
_BOX_WITHOUT_BRACES = re.compile(r"(\\boxed) +(\w+)")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;、，和或与及.]|\\[()\[\],;:!\\ ]|\\?q?quad|\b(?:and|or)\b|\\text\{\s*(?:and|or)\s*\})*"
)
_END_TOKEN = re.compile(r"(?:\s*<\|?(?:im_end|endoftext|eot_id|end_of_text|/s|eos)\|?>)+\s*$")
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z])|[。！？](?=.)")
_HOPE = re.compile(r"[.,!]\s*I hope\s+(?:it|this)\s+(?:is correct|helps)[.!]*\s*$", re.IGNORECASE)
_WORD = re.compile(r"\S+")
# In scripts without blanks (kana, Chinese, Hangul, Thai) a character counts, else a paragraph would be one word.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_WORD_OR_CHARACTER = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def final_answer(text: str, tail_fraction: float = 0.0, tokenizer: str | None = None) -> str:
    """The final answer that a response (or a reference) states; empty if it states none.

    Args:
        text: the response.
        tail_fraction: only what starts in this last part of the tokens counts; 0 = anywhere.
        tokenizer: path or hub name of the tokenizer that counts tokens; None counts words; in Chinese, Japanese, Thai
            characters.
    """
    text = _without_thinking(text).rstrip()
    if text.endswith(">"):
        text = _END_TOKEN.sub("", text)
    if "\\boxed " in text:
        text = _BOX_WITHOUT_BRACES.sub(r"\1{\2}", text)
    earliest = _tail_start(text, tail_fraction, tokenizer) if tail_fraction else 0

    def in_tail(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        return [span for span in spans if span[0] >= earliest]

    stated = in_tail(_tagged(text, "answer")) or in_tail(_answer_lines(text))
    if stated:
        return _HOPE.sub("", stated[-1][2]).strip()
    boxes = in_tail(_boxes(text))
    if boxes:
        return _last_boxes(text, boxes)
    last_line = _last_line(text)
    if not last_line or text.rfind(last_line) < earliest:
        return ""
    return _SENTENCE_END.split(_HOPE.sub("", last_line))[-1].strip() or last_line


def _last_line(text: str) -> str:
    """The last line that is not empty; of displayed mathematics whose delimiters have their own lines, the inside."""
    rest, _, line = text.rstrip().rpartition("\n")
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if line.strip() == closing and (start := rest.rfind(opening)) >= 0:
            return rest[start + 2 :].strip()
    return line.strip()


def last_box(text: str) -> str:
    r"""The content of the last \boxed{...}; empty if there is none or it is not closed."""
    start = text.rfind("\\boxed{")
    boxes = _boxes(text[start:]) if start >= 0 else []
    return boxes[0][2].strip() if boxes and boxes[0][0] == 0 else ""


def _tagged(text: str, tag: str) -> list[tuple[int, int, str]]:
    """(start, end, inner text) of every <tag>...</tag>; a second opening tag inside is inner text."""
    spans, opening = [], None
    for match in re.finditer(rf"<(/?){tag}>", text, re.IGNORECASE):
        if not match[1]:
            opening = opening or match
        elif opening:
            spans.append((opening.start(), match.end(), text[opening.end() : match.start()]))
            opening = None
    return spans


def _without_thinking(text: str) -> str:
    for tag in ("think", "reasoning"):
        kept, position = [], 0
        for start, end, _ in _tagged(text, tag):
            kept.append(text[position:start])
            position = end
        text = "".join([*kept, text[position:]])
    unclosed = re.search("<think>", text, re.IGNORECASE)
    return text[: unclosed.start()] if unclosed else text


def _answer_lines(text: str) -> list[tuple[int, int, str]]:
    spans = []
    for match in _ANSWER_LINE.finditer(text):
        value = _VALUE.match(text, match.end())
        if value[1]:
            is_row = match[0].rstrip().endswith("|")
            spans.append((match.start(), value.end(), value[1].rstrip(" |") if is_row else value[1]))
    return spans


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, inner text) of every closed \boxed{...} or \fbox{...} that does not lie inside another one.

    \boxed{5}{6} says no value: its inner text is a text, which no reference equals.
    """
    starts = [start for start in (text.find("\\boxed"), text.find("\\fbox")) if start >= 0]
    if not starts:
        return []
    closed, opened = [], []
    for match in _BRACE.finditer(text, min(starts)):
        if match[0] != "}":
            opened.append(match)
        elif opened:
            opening = opened.pop()
            if opening[1]:
                while closed and closed[-1][0] > opening.start():
                    closed.pop()
                closed.append((opening.start(), match.end(), opening.end(), match.start()))
    return [
        (start, end, text[start : end + 1] if text.startswith("{", end) else text[inner:inner_end])
        for start, end, inner, inner_end in closed
    ]


def _last_boxes(text: str, boxes: list[tuple[int, int, str]]) -> str:
    """The last box; with the different ones directly before it, a list: who boxes 41 and 42 has not said 42."""
    answers, start = [boxes[-1][2].strip()], boxes[-1][0]
    for begin, end, answer in reversed(boxes[:-1]):
        if len(answers) > 20 or not _BETWEEN_BOXES.fullmatch(text, end, start):
            break
        start = begin
        if answer.strip() not in answers:
            answers.insert(0, answer.strip())
    return " , ".join(answers)


def _tail_start(text: str, fraction: float, tokenizer: str | None) -> int:
    """The character at which the last `fraction` of the tokens begins."""
    if tokenizer is None:
        tokens = (_WORD,) if text.isascii() else (_WORD, _WORD_OR_CHARACTER)
        counts = [[match.start() for match in token.finditer(text)] for token in tokens]
    else:
        counts = [[start for start, _ in _load_tokenizer(tokenizer).encode(text, add_special_tokens=False).offsets]]
    return min(starts[min(int((1 - fraction) * len(starts)), len(starts) - 1)] if starts else 0 for starts in counts)


@lru_cache(maxsize=2)
def _load_tokenizer(name: str):
    from transformers import AutoTokenizer  # imported only on use: the judging processes stay small

    return AutoTokenizer.from_pretrained(name).backend_tokenizer
