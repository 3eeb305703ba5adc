"""verl on machines without an accelerator; nothing here acts unless VERL_PLATFORM=cpu asks for it."""

import os


def is_cpu() -> bool:
    """Whether this process runs verl on the CPU platform."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
