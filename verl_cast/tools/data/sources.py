"""The data sets: their usual places on the hub, and the columns of their problems and answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        name: on the command line; for a benchmark also the file's name, and `data_source` of its rows.
        file: name of the file that is written.
        repo: its usual name on the Hugging Face hub.
        split: of the hub's data set.
        data_source: its value in verl's rows.
        training: it is trained on (else it is a benchmark).
        problem_columns, answer_columns: the first column that exists is used. A problem is text or chat messages; an
            answer is text, a number, or verl's `reward_model` with `ground_truth`.
        num_problems: the usual number of problems; another number is reported. None: not known.
    """

    name: str
    file: str
    repo: str
    split: str
    data_source: str
    training: bool = False
    problem_columns: tuple[str, ...] = ("problem", "question", "Problem", "Question", "prompt")
    answer_columns: tuple[str, ...] = ("answer", "Answer", "expected_answer", "reward_model")
    num_problems: int | None = None

    @property
    def verl_split(self) -> str:
        return "train" if self.training else "test"


def _benchmark(name: str, file: str, repo: str, split: str, num_problems: int) -> Source:
    return Source(name, file, repo, split, data_source=name, num_problems=num_problems)


SOURCES = {
    source.name: source
    for source in (
        Source(
            "dapo",
            file="dapo_math_17k.parquet",
            # In verl's format; every problem about 100 times. open-r1/DAPO-Math-17k-Processed (--source) has
            # each once, as plain text in `prompt`, DAPO's own messages in `source_prompt`, the answer in `solution`.
            repo="BytedTsinghua-SIA/DAPO-Math-17k",
            split="train",
            data_source="math_dapo",
            training=True,
            problem_columns=("source_prompt", "prompt", "problem"),
            answer_columns=("reward_model", "answer", "solution"),
        ),
        _benchmark("aime24", "aime24.parquet", "HuggingFaceH4/aime_2024", "train", 30),
        _benchmark("aime25", "aime25.parquet", "math-ai/aime25", "test", 30),
        _benchmark("aime26", "aime26.parquet", "MathArena/aime_2026", "train", 30),
        _benchmark("math500", "math500.parquet", "HuggingFaceH4/MATH-500", "test", 500),
        _benchmark("hmmt25", "hmmt25.parquet", "MathArena/hmmt_feb_2025", "train", 30),
    )
}
