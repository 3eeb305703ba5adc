"""What a method requires of the training data: checked by the doctor, and at a run's start."""

from collections.abc import Sized
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from omegaconf import DictConfig

from verl_cast.checks.trust import same_context
from verl_cast.config.cast import MEASURED, MIN_PROBLEMS, CastConfig, CastConfigError
from verl_cast.config.methods import method_class, method_config
from verl_cast.config.words import command_words


def check_rows(config: DictConfig, dataset: Sized) -> None:
    """Refuse rows with images or videos unless the teacher reads the student's own prompt, and too few to measure it.

    Args:
        config: of a run that `check_run` accepts.
        dataset: the training data as verl's `create_rl_dataset` gives them. Datasets without the `dataframe` of verl's
            own class may hold images; their rows are refused in the teacher's pass.

    Raises:
        CastConfigError: names the key, its value and the remedy.
    """
    from verl.utils.dataset.rl_dataset import RLHFDataset

    if method_class(config) is None:
        return
    method = method_config(config)
    if isinstance(method, CastConfig) and method.trust == MEASURED and len(dataset) < MIN_PROBLEMS:
        raise CastConfigError(
            "algorithm.cast.trust",
            MEASURED,
            f"the training data have {len(dataset)} problems, and measuring the teacher needs {MIN_PROBLEMS}; use more "
            f"data, or {command_words({'trust': 'always'})}.",
        )
    if method.teacher.context == "same" or not isinstance(dataset, RLHFDataset):
        return
    for key, column in (("image_key", dataset.image_key), ("video_key", dataset.video_key)):
        if column in dataset.dataframe.column_names and _has_values(dataset.dataframe, column):
            same = "" if method.teacher.PRIVILEGED else f" (use {same_context(method)})"
            raise CastConfigError(
                f"data.{key}",
                column,
                f"the training data hold images or videos in this column, and only the student's own prompt carries "
                f"them to the teacher{same}. For data of text, leave the column out.",
            )


def _has_values(dataframe: Any, column: str) -> bool:
    """Whether a row of the column is neither null nor an empty list. Nothing is decoded."""
    values = dataframe.data.column(column)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return bool(pc.any(pc.greater(pc.list_value_length(values), 0)).as_py())
    return values.null_count < len(values)
