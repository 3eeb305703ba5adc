"""Classes and positions of response tokens, for the tables of gaps."""

import re

import numpy as np

CLASSES = ("word", "number", "punctuation", "latex", "whitespace", "special", "partial")
POSITIONS = ("first fifth", "second fifth", "third fifth", "fourth fifth", "last fifth", "final token")


def token_class(text: str, is_special: bool) -> str:
    """The class of one token.

    * special      a special token of the tokenizer (end of sequence, chat marks)
    * whitespace   only spaces and line feeds
    * latex        a command, or the backslash that begins one
    * word         a token with a letter
    * number       digits without letters, possibly with other characters around them
    * partial      a piece of a character
    * punctuation  the rest, including operators
    """
    if is_special:
        return "special"
    stripped = text.strip()
    if not text:
        return "partial"  # the token that completes the character has its text
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
    """(T,) the fifth, 0 to 4, that holds each token of a response of T tokens."""
    return np.arange(length) * 5 // max(length, 1)
