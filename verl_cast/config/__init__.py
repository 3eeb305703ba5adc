"""The settings of every method, checked when they are built.

    cast_trainer.yaml   what every key means, with its default; a hydra config
    cast.py             `algorithm.cast`: types, bounds, errors
    baselines.py        the same for the methods that CAST is compared with
    methods.py          the settings of a run's own method, out of verl's config

This face imports the standard library only.
"""

from verl_cast.config.cast import CastConfig, CastConfigError, DumpConfig, MethodConfig, TeacherConfig

__all__ = ["CastConfig", "CastConfigError", "DumpConfig", "MethodConfig", "TeacherConfig"]
