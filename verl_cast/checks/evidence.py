"""Which setting the study recommends when, and the cells that say so: the one table of it.

The study is examples/study; its page has the numbers. test_advice.py holds every row against the raw results.
"""

from dataclasses import dataclass

PAGE = "examples/study/README.md"


@dataclass(frozen=True)
class Lesson:
    """
    Attributes:
        text: what to set, and what was seen.
        section: of the study's page.
        claims: (raw file, cell, arm, outcome, verdict). The file is `knows`, the tiny model, or `arithmetic`, SmolLM2.
            The outcome is `course` or `end`; the verdict is the arm against GRPO: ahead, level (less than 3 points
            away) or behind.
    """

    text: str
    section: str
    claims: tuple[tuple[str, str, str, str, str], ...]


SETTING = "algorithm.cast.flip_groups=zero_variance base_correct=0 base_wrong=0.1 gap_deadzone=1"
SAFE = "algorithm.cast.flip=none base_correct=0 base_wrong=0"
LESSONS = {
    "better": Lesson(
        f"Set {SETTING}: with a fit context this was ahead of GRPO where few groups are mixed, and within 3 points of "
        "it where many are",
        "few-mixed-groups-and-a-fit-context",
        (
            ("knows", "rare_fit", "tenth_deadzone", "course", "ahead"),
            ("knows", "sparse_fit", "tenth_deadzone", "course", "ahead"),
            ("knows", "medium_fit", "tenth_deadzone", "course", "level"),
            ("knows", "dense_fit", "tenth_deadzone", "course", "level"),
            ("arithmetic", "sparse_fit", "tenth_deadzone", "course", "level"),
            ("arithmetic", "medium_fit", "tenth_deadzone", "course", "level"),
            ("arithmetic", "dense_fit", "tenth_deadzone", "course", "level"),
        ),
    ),
    "not better": Lesson(
        f"Use GRPO or {SAFE}: with a context that is not better, this ended level with GRPO, and the defaults, "
        "flip=none alone and flip_groups=zero_variance alone did not",
        "a-context-that-is-not-better",
        (
            ("knows", "sparse_equal", "exact", "end", "behind"),
            ("knows", "sparse_equal", "zero_variance", "end", "behind"),
            ("knows", "medium_unfit", "exact", "end", "behind"),
            ("knows", "medium_unfit", "zero_variance", "end", "behind"),
            ("knows", "rare_equal", "no_flip", "end", "behind"),
            ("knows", "rare_equal", "weights_only", "end", "level"),
            ("knows", "sparse_equal", "weights_only", "end", "level"),
            ("knows", "medium_equal", "weights_only", "end", "level"),
            ("knows", "dense_equal", "weights_only", "end", "level"),
            ("knows", "rare_unfit", "weights_only", "end", "level"),
            ("knows", "sparse_unfit", "weights_only", "end", "level"),
            ("knows", "medium_unfit", "weights_only", "end", "level"),
            ("knows", "dense_unfit", "weights_only", "end", "level"),
            ("arithmetic", "sparse_unfit", "weights_only", "end", "level"),
            ("arithmetic", "sparse_unfit", "tenth_deadzone", "course", "behind"),
            ("arithmetic", "medium_unfit", "tenth_deadzone", "course", "behind"),
            ("arithmetic", "medium_equal", "tenth_deadzone", "course", "behind"),
        ),
    ),
    "caught up": Lesson(
        "Flips in mixed groups cost accuracy once the policy had caught up with its teacher; "
        "algorithm.cast.flip_groups=zero_variance did not",
        "a-policy-that-has-caught-up",
        (
            ("knows", "rare_fit", "exact", "end", "behind"),
            ("knows", "sparse_fit", "exact", "end", "behind"),
            ("arithmetic", "sparse_fit", "exact", "end", "behind"),
            ("knows", "rare_fit", "zero_variance", "end", "level"),
            ("knows", "sparse_fit", "zero_variance", "end", "level"),
        ),
    ),
    "noise": Lesson(
        "A dead zone gave the verifier's sign back where gaps are chance",
        "gaps-that-are-chance",
        (
            ("knows", "medium_equal", "exact", "end", "behind"),
            ("knows", "medium_equal", "exact_deadzone", "end", "level"),
            ("knows", "dense_equal", "exact", "end", "behind"),
            ("knows", "dense_equal", "exact_deadzone", "end", "level"),
        ),
    ),
}


def advice(situation: str) -> str:
    """A sentence with the setting and its evidence. `situation`: a key of LESSONS."""
    lesson = LESSONS[situation]
    return f"{lesson.text} ({PAGE}#{lesson.section})."


def about(verdict: str, flip: str, flip_groups: str) -> list[str]:
    """The lessons for a context of this fitness (`fitness.verdict`), under these flips."""
    if verdict != "better":
        return [advice("not better")] if flip != "none" else []
    found = [] if flip_groups == "zero_variance" else [advice("better")]
    return [*found, advice("caught up")] if flip != "none" and flip_groups == "all" else found
