"""verl on machines without an accelerator. Nothing here takes effect unless VERL_PLATFORM=cpu is set."""

import os


def is_cpu() -> bool:
    """Whether this process runs verl on the CPU platform."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
