# Copyright 2026 Bytedance Ltd. and/or its affiliates
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Completes and checks the config of a CAST run before Ray starts."""

from omegaconf import DictConfig

from verl.experimental.cast.checks.run import apply_method_defaults, check_run, summary
from verl.experimental.cast.checks.spelling import settings_of_a_twin
from verl.experimental.cast.config.methods import is_cast_run
from verl.experimental.cast.training.classes import name_trainer


def prepare_run(config: DictConfig) -> None:
    """Make the composed config of a CAST run complete, in place, before anything is spent. Other runs stay as they are.

    Raises:
        CastConfigError: The run cannot train with CAST, or has settings of CAST and another estimator. It names every
            key, its value and the remedy.
    """
    for change in apply_method_defaults(config):
        print(f"[cast] {change}")
    check_run(config)
    if is_cast_run(config):
        name_trainer(config)
        print(summary(config))
    for sentence in settings_of_a_twin(config):
        print(f"[cast] {sentence}.")
