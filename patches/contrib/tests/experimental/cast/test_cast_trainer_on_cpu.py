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

"""Before a run: algorithm/cast.yaml, and what CAST refuses in the rest of the config. Nothing here starts Ray."""

import dataclasses

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from verl.experimental.cast.checks.run import check_run
from verl.experimental.cast.config import CastConfig, CastConfigError

MEGATRON = "model_engine=megatron"
ACTOR = "actor_rollout_ref.actor"


def composed(*overrides, estimator="cast"):
    with initialize_config_module("verl.trainer.config", version_base=None):
        run = [f"algorithm.adv_estimator={estimator}", "actor_rollout_ref.rollout.n=8"]
        return compose("ppo_trainer", overrides=[*run, *overrides])


def test_every_key_of_the_yaml_has_the_default_of_the_config():
    settings = OmegaConf.to_container(composed().algorithm.cast)
    assert settings == OmegaConf.to_container(OmegaConf.create(dataclasses.asdict(CastConfig())))
    assert CastConfig.from_dict(settings) == CastConfig()


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
@pytest.mark.parametrize("engine", [f"{ACTOR}.strategy=fsdp", f"{ACTOR}.strategy=fsdp2", MEGATRON])
def test_engines_and_trainer_modes(engine, mode):
    check_run(composed(engine, f"trainer.v1.trainer_mode={mode}"))


def test_settings_need_no_plus():
    check_run(
        composed(
            "algorithm.cast.flip=none",
            "algorithm.cast.positive_clip=[0.9,1.1]",
            "algorithm.cast.teacher.weights=ema",
            "algorithm.cast.teacher.context=same",
            f"{ACTOR}.use_kl_loss=True",
        )
    )


def test_filtered_groups_are_allowed_where_only_mixed_groups_train():
    filtered = "algorithm.filter_groups.enable=True"
    check_run(composed(filtered, "algorithm.cast.base_correct=0", "algorithm.cast.base_wrong=0"))


@pytest.mark.parametrize(
    "overrides, key, says",
    [
        (["actor_rollout_ref.rollout.n=1"], "actor_rollout_ref.rollout.n=1", "2 or more"),
        (["actor_rollout_ref.rollout.temperature=0"], "actor_rollout_ref.rollout.temperature=0", "above 0"),
        (["algorithm.use_kl_in_reward=True"], "algorithm.use_kl_in_reward=True", "use_kl_loss"),
        (["algorithm.filter_groups.enable=True"], "algorithm.filter_groups.enable=True", "enable=False"),
        (["algorithm.rollout_correction.bypass_mode=True"], "algorithm.rollout_correction.bypass_mode=True", "False"),
        (["critic.enable=True"], "critic.enable=True", "no critic"),
        (["distillation.enabled=True"], "distillation.enabled=True", "own teacher"),
        (["trainer.use_v1=False"], "trainer.use_v1=False", "use_v1=True"),
        ([f"{ACTOR}.policy_loss.loss_mode=geo_mean"], f"{ACTOR}.policy_loss.loss_mode='geo_mean'", "loss_mode=cast"),
        ([f"{ACTOR}.policy_loss.loss_mode=gpso"], f"{ACTOR}.policy_loss.loss_mode='gpso'", "did you mean gspo"),
        ([f"{ACTOR}.strategy=veomni"], f"{ACTOR}.strategy='veomni'", "fsdp, fsdp2, megatron"),
        ([f"{ACTOR}.fsdp_config.qat.enable=True"], f"{ACTOR}.fsdp_config.qat.enable=True", "enable=False"),
        (
            [MEGATRON, f"{ACTOR}.megatron.use_distributed_optimizer=False"],
            f"{ACTOR}.megatron.use_distributed_optimizer=False",
            "use_distributed_optimizer=True",
        ),
        (["algorithm.cast.flip=sideways"], "algorithm.cast.flip='sideways'", "both, correct, wrong, none"),
        (["+algorithm.cast.flipp=none"], "algorithm.cast.flipp='none'", "did you mean algorithm.cast.flip"),
        (
            ["algorithm.cast.teacher.context=same", "algorithm.cast.teacher.weights=current"],
            "algorithm.cast.teacher.context='same'",
            "weights=snapshot",
        ),
        (
            ["algorithm.cast.trust=measured", "algorithm.cast.teacher.weights=ema"],
            "algorithm.cast.teacher.weights='ema'",
            "weights=snapshot",
        ),
        (["algorithm.cast.teacher.context=/no/t.jinja"], "algorithm.cast.teacher.context='/no/t.jinja'", "be read"),
    ],
)
def test_refusals_name_key_value_and_remedy(overrides, key, says):
    with pytest.raises(CastConfigError) as raised:
        check_run(composed(*overrides))
    (complaint,) = raised.value.complaints
    assert complaint.startswith(f"{key}: ") and says in complaint


def test_one_error_names_all_refusals():
    with pytest.raises(CastConfigError) as raised:
        check_run(composed("actor_rollout_ref.rollout.n=1", "critic.enable=True", "algorithm.cast.flip=sideways"))
    assert len(raised.value.complaints) == 3


def test_settings_of_cast_are_refused_where_another_estimator_trains():
    """The GRPO twin may keep them: the same command with another estimator."""
    for estimator in ("grpo", "rloo"):
        check_run(composed(estimator=estimator))
    check_run(composed("algorithm.cast.flip=none", estimator="grpo"))
    with pytest.raises(CastConfigError, match="^algorithm.cast.flip='none': set algorithm.adv_estimator=cast"):
        check_run(composed("algorithm.cast.flip=none", estimator="rloo"))
