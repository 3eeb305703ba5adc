"""Classes and places of response tokens, for the tables of gaps."""

import re

import numpy as np

CLASSES = ("word", "number", "punctuation", "latex", "whitespace", "special", "partial")
POSITIONS = ("first fifth", "second fifth", "third fifth", "fourth fifth", "last fifth", "final token")


def token_class(text: str, is_special: bool) -> str:
    """The class of one token.

    special: a special token of the tokenizer (end of sequence, chat marks). whitespace: spaces and line feeds alone.
    latex: a command or the backslash that begins one. number: digits, perhaps with signs around them, without letters.
    word: anything with a letter. partial: a piece of a character. punctuation: the rest, operators among them.
    """
    if is_special:
        return "special"
    stripped = text.strip()
    if not text:
        return "partial"  # its character stands with the token that completes it
    if not stripped:
        return "whitespace"
    if stripped == "\\" or re.search(r"\\[A-Za-z([]", stripped):
        return "latex"
    if any(character.isalpha() for character in stripped):
        return "word"
    if any(character.isdigit() for character in stripped):
        return "number"
    return "partial" if "\N{REPLACEMENT CHARACTER}" in stripped else "punctuation"


def fifths(length: int) -> np.ndarray:
    """(T,) 0 to 4: in which fifth of a response of T tokens each token stands."""
    return np.arange(length) * 5 // max(length, 1)
