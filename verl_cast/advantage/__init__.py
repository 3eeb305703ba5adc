"""The method as pure tensor functions: no verl, no Ray, no state.

README.md is the method's page. "Section 4" in a docstring of this package, in any room, means its section 4.
"""

from verl_cast.advantage.compute import compute_cast_advantage

__all__ = ["compute_cast_advantage"]
