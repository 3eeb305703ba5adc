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

"""`algorithm.cast`: bad values are refused with the key, the value and the remedy, all in one error."""

import dataclasses
import pickle

import pytest

from verl.experimental.cast.config import CastConfig, CastConfigError, TeacherConfig


def test_defaults_are_those_of_the_evaluated_run():
    config = CastConfig()
    assert (config.gap_weight, config.positive_clip, config.negative_clip) == (1.0, (0.8, 1.05), (0.95, 1.2))
    assert (config.base_correct, config.base_wrong, config.advantage_clip) == (1.0, 1.0, 1.2)
    assert (config.flip, config.flip_groups, config.gap_deadzone) == ("both", "all", 0.0)
    assert (config.teacher.weights, config.teacher.refresh_interval) == ("snapshot", 10)
    assert config.teacher.context == "plain"
    assert CastConfig.from_dict(None) == CastConfig.from_dict({}) == config


def test_a_group_of_keys_becomes_a_config():
    values = {"flip": "none", "positive_clip": [0.9, 1.1], "advantage_clip": None, "teacher": {"context": "same"}}
    expected = CastConfig(
        flip="none", positive_clip=(0.9, 1.1), advantage_clip=None, teacher=TeacherConfig(context="same")
    )
    assert CastConfig.from_dict(values) == expected
    assert CastConfig.from_dict(dataclasses.asdict(expected)) == expected


@pytest.mark.parametrize(
    "values, says",
    [
        ({"flipp": "both"}, "algorithm.cast.flipp='both': unknown key; did you mean algorithm.cast.flip?"),
        ({"teacher": {"wieghts": "ema"}}, "algorithm.cast.teacher.wieghts='ema': unknown key; did you mean "),
        ({"teacher": "plain"}, "algorithm.cast.teacher='plain': must be a group of keys"),
        ({"flip": "sideways"}, "algorithm.cast.flip='sideways': must be one of both, correct, wrong, none"),
        ({"flip": False}, "algorithm.cast.flip=False: must be one of .*quote it"),
        ({"flip_groups": "mixed"}, "algorithm.cast.flip_groups='mixed': must be one of all, zero_variance"),
        ({"gap_weight": -0.5}, "algorithm.cast.gap_weight=-0.5: must be at least 0"),
        ({"gap_weight": "1"}, "algorithm.cast.gap_weight='1': must be a finite number"),
        ({"base_wrong": -1}, "algorithm.cast.base_wrong=-1: must be at least 0"),
        ({"positive_clip": [1.05, 0.8]}, r"algorithm.cast.positive_clip=.*positive_clip=\[0.8,1.05\]"),
        ({"negative_clip": [0.5, 0.9]}, "algorithm.cast.negative_clip=.*upper bound must be at least 1"),
        ({"negative_clip": 1.2}, "algorithm.cast.negative_clip=1.2: must be two numbers"),
        ({"advantage_clip": 0}, "algorithm.cast.advantage_clip=0: .*null for no clip"),
        ({"gap_deadzone": "loud"}, "algorithm.cast.gap_deadzone='loud': .*or noise"),
        (
            {"gap_deadzone": "noise", "noise_floor_interval": None},
            "algorithm.cast.noise_floor_interval=None: gap_deadzone=noise needs a measurement",
        ),
        ({"trust": "sometimes"}, "algorithm.cast.trust='sometimes': must be one of always, measured"),
        ({"trust_responses": 8}, "algorithm.cast.trust_responses=8: must be a whole number, at least 32"),
        ({"one_pass": "yes"}, "algorithm.cast.one_pass='yes': must be True or False"),
        ({"teacher": {"weights": "older"}}, "algorithm.cast.teacher.weights='older': must be one of snapshot, ema, "),
        ({"teacher": {"refresh_interval": 0}}, "algorithm.cast.teacher.refresh_interval=0: .*at least 1"),
        ({"teacher": {"ema_decay": 1}}, "algorithm.cast.teacher.ema_decay=1.0: .*weights=initial"),
        ({"teacher": {"context": "poem"}}, "algorithm.cast.teacher.context='poem': must be plain, same, or the path"),
        ({"noise_floor_interval": -1}, "algorithm.cast.noise_floor_interval=-1: must be a whole number, at least 0"),
        ("both", "algorithm.cast='both': must be a group of keys"),
    ],
)
def test_bad_values_are_refused_by_key_value_and_remedy(values, says):
    with pytest.raises(CastConfigError, match=f"^{says}"):
        CastConfig.from_dict(values)


def test_one_error_names_all_that_is_wrong_and_survives_ray():
    with pytest.raises(CastConfigError) as raised:
        CastConfig.from_dict({"flip": "sideways", "colour": 1, "teacher": {"weights": "older", "ema_decay": 2}})
    keys = sorted(complaint.split("=")[0] for complaint in raised.value.complaints)
    assert keys == [f"algorithm.cast.{key}" for key in ("colour", "flip", "teacher.ema_decay", "teacher.weights")]
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.complaints) == (str(raised.value), raised.value.complaints)


def test_however_it_is_built():
    with pytest.raises(CastConfigError, match="algorithm.cast.flip"):
        CastConfig(flip="sideways")
    with pytest.raises(dataclasses.FrozenInstanceError):
        CastConfig().flip = "none"
