"""Which method with a self-teacher a run trains: CAST, or a baseline that it is compared with."""

from omegaconf import DictConfig, OmegaConf

from verl_cast.config.baselines import BASELINES
from verl_cast.config.cast import CastConfig, MethodConfig

ESTIMATOR_KEY = "algorithm.adv_estimator"
METHODS: dict[str, type[MethodConfig]] = {method.NAME: method for method in (CastConfig, *BASELINES)}


def method_class(config: DictConfig) -> type[MethodConfig] | None:
    """The class of the method's settings; None where the run's estimator is not one of ours."""
    return METHODS.get(str(OmegaConf.select(config, ESTIMATOR_KEY)))


def method_config(config: DictConfig) -> MethodConfig:
    """The settings of the run's own method, validated; only where `method_class` is one.

    Raises:
        CastConfigError: names the key, the value and the remedy.
    """
    return settings(config, method_class(config))


def cast_config(config: DictConfig) -> CastConfig:
    """`algorithm.cast`, validated, whatever the run's estimator.

    Raises:
        CastConfigError: names the key, the value and the remedy.
    """
    return settings(config, CastConfig)


def settings(config: DictConfig, method: type[MethodConfig]) -> MethodConfig:
    """A method's group in verl's config as its own, validated class."""
    values = OmegaConf.select(config, method.key())
    return method.from_dict(OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values)


def is_cast_run(config: DictConfig) -> bool:
    """Whether the run's advantage estimator is `cast`."""
    return method_class(config) is CastConfig
