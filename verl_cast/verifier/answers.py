r"""Finds the final answer of a response by the extraction rules of the evaluated run.

`final_answer` is the training rule. It drops thinking blocks; an unclosed <think> drops all text after it. The answer
is the first of these that exists:

1. the last <answer>...</answer>;
2. the last line `Answer: ...` or `Final answer: ...` (the value may stand on the next line);
3. a \boxed{...} with balanced braces: if boxes follow each other with only space between them, the first box of the
   longest such run; otherwise the last box;
4. the last non-empty line.

In training a match counts only if it starts within the last 5 % of the response's tokens. An answer given early earns
nothing. `last_box` is the rule of that run's evaluation: the last \boxed{...}, nothing else.

All functions take time linear in the text's length, for any text. Left out: judging the answer (`equivalence`).
"""

import re
from functools import lru_cache

_ANSWER_LINE = re.compile(r"^[ \t]*(?:final[ \t]+)?answer[ \t]*:", re.IGNORECASE | re.MULTILINE)
_BRACE = re.compile(r"(\\boxed)?\{|\}")


def final_answer(text: str, tail_fraction: float = 0.0, tokenizer: str | None = None) -> str:
    """The final answer that a response (or a reference) states; empty if it states none.

    Args:
        text: the response.
        tail_fraction: only what starts in this last part of the tokens counts; 0 = anywhere.
        tokenizer: path or hub name of the tokenizer that counts tokens; None counts runs of non-space characters.
    """
    text = _without_thinking(text)
    earliest = _tail_start(text, tail_fraction, tokenizer) if tail_fraction else 0

    def in_tail(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        return [span for span in spans if span[0] >= earliest]

    stated = in_tail(_tagged(text, "answer")) or in_tail(_answer_lines(text))
    if stated:
        return _plain(stated[-1][2])
    boxes = in_tail(_boxes(text))
    if boxes:
        return _plain(_counting_box(text, boxes)[2])
    last_line = text.rstrip().rpartition("\n")[2].strip()
    return _plain(last_line) if last_line and text.rfind(last_line) >= earliest else ""


def last_box(text: str) -> str:
    r"""The content of the last \boxed{...}; empty if there is none or it is not closed."""
    start = text.rfind("\\boxed{")
    boxes = _boxes(text[start:]) if start >= 0 else []
    return boxes[0][2].strip() if boxes and boxes[0][0] == 0 else ""


def _plain(answer: str) -> str:
    """The answer without Markdown's marks for emphasis and code around it, as in `Answer: **42**`."""
    return answer.strip().strip("*_`").strip()


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
        value = re.compile(r"\s*([^\n]*)").match(text, match.end())
        if value[1]:
            spans.append((match.start(), value.end(), value[1]))
    return spans


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, inner text) of every closed \boxed{...} that does not lie inside another one."""
    if "\\boxed{" not in text:
        return []
    closed, opened = [], []
    for match in _BRACE.finditer(text):
        if match[0] != "}":
            opened.append(match)
        elif opened:
            opening = opened.pop()
            if opening[1]:
                while closed and closed[-1][0] > opening.start():
                    closed.pop()
                closed.append((opening.start(), match.end(), opening.end(), match.start()))
    return [(start, end, text[inner:inner_end]) for start, end, inner, inner_end in closed]


def _counting_box(text: str, boxes: list[tuple[int, int, str]]) -> tuple[int, int, str]:
    runs = [[boxes[0]]]
    for previous, box in zip(boxes, boxes[1:], strict=False):
        if text[previous[1] : box[0]].strip():
            runs.append([])
        runs[-1].append(box)
    longest = max(runs, key=len)
    return longest[0] if len(longest) > 1 else boxes[-1]


def _tail_start(text: str, fraction: float, tokenizer: str | None) -> int:
    """The character at which the last `fraction` of the tokens begins."""
    if tokenizer is None:
        starts = [match.start() for match in re.finditer(r"\S+", text)]
    else:
        starts = [start for start, _ in _load_tokenizer(tokenizer).encode(text, add_special_tokens=False).offsets]
    return starts[min(int((1 - fraction) * len(starts)), len(starts) - 1)] if starts else 0


@lru_cache(maxsize=2)
def _load_tokenizer(name: str):
    from transformers import AutoTokenizer  # imported only on use: the judging processes stay small

    return AutoTokenizer.from_pretrained(name).backend_tokenizer
