"""The rule of every method, by the class of its settings. The only place that knows CAST's rule and the baselines'."""

from verl_cast.advantage import CAST_RULE, Rule
from verl_cast.baselines.advantage import BASELINE_RULES
from verl_cast.config import CastConfig, MethodConfig

_RULES: dict[type[MethodConfig], Rule] = {CastConfig: CAST_RULE, **BASELINE_RULES}


def rule_of(config: MethodConfig) -> Rule:
    """The rule that these settings are of."""
    return _RULES[type(config)]
