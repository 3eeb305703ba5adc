"""verl_cast: CAST (arXiv 2606.00172) as a plugin for verl. Importing this package stays cheap: no verl, no torch."""

from verl_cast.config.cast import CastConfig, CastConfigError, DumpConfig, TeacherConfig

__version__ = "0.2.0"
__all__ = ["CastConfig", "CastConfigError", "DumpConfig", "TeacherConfig", "__version__"]
