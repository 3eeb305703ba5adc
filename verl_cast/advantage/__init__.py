"""The method as pure tensor functions: no verl, no Ray, no state. README.md is the method's page."""

from verl_cast.advantage.compute import compute_cast_advantage

__all__ = ["compute_cast_advantage"]
