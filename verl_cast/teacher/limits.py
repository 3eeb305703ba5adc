"""How long a teacher's context plus a response may be."""

from typing import Any


def rope_settings(text_config: Any) -> list[dict[str, Any]]:
    """The rotary settings of a Hugging Face text config, under the names of old and new transformers."""
    settings = (getattr(text_config, name, None) for name in ("rope_parameters", "rope_scaling"))
    return [rope for rope in settings if isinstance(rope, dict)]


def length_limits(text_config: Any, token_budget: int | None, parts: int) -> dict[str, int]:
    """What bounds the teacher's context plus a response, in tokens: name of the limit -> its value.

    Args:
        text_config: of the model.
        token_budget: of a micro-batch with dynamic batch size; None without.
        parts: into which Ulysses or context parallelism cuts a sequence.
    """
    limits = {}
    if getattr(text_config, "max_position_embeddings", None) is not None:
        # YaRN and its like stretch the positions that the model was made for.
        stretch = max([1.0, *(rope.get("factor") or 1.0 for rope in rope_settings(text_config))])
        limits["max_position_embeddings"] = int(text_config.max_position_embeddings * stretch)
    if token_budget is not None:
        key = "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu"
        limits[f"{key} (x {parts} parts of a sequence)" if parts > 1 else key] = token_budget * parts
    return limits
