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
"""How CAST gets into a run: the config, the registries, trainer and worker classes. Nothing here starts Ray."""

import contextlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_module
from tensordict import TensorDict

from verl.experimental.cast import wire
from verl.experimental.cast.config import CastConfigError
from verl.experimental.cast.prepare import prepare_run
from verl.experimental.cast.training import classes
from verl.experimental.cast.training.estimator import compute_cast_outcome_advantage
from verl.experimental.cast.training.worker import SelfTeacherWorkerMixin
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass

MODES = ("sync", "colocate_async", "separate_async")


def prepared(*overrides, estimator="cast"):
    with initialize_config_module("verl.trainer.config", version_base=None):
        run = [f"algorithm.adv_estimator={estimator}", "actor_rollout_ref.rollout.n=8"]
        config = compose("ppo_trainer", overrides=[*run, *overrides])
    prepare_run(config)
    return config


@pytest.mark.parametrize("mode", MODES)
def test_a_run_gets_the_trainer_and_the_worker_of_its_mode(mode):
    config = prepared(f"trainer.v1.trainer_mode={mode}")
    trainer_cls = get_trainer_cls(mode, config.trainer.v1.trainer_class)
    assert issubclass(trainer_cls, classes.SelfTeacherTrainerMixin)
    assert issubclass(trainer_cls.actor_worker_cls, SelfTeacherWorkerMixin)
    assert issubclass(trainer_cls.actor_worker_cls, get_trainer_cls(mode).actor_worker_cls)


def test_a_run_gets_the_loss_and_the_clip_of_the_method():
    actor = prepared().actor_rollout_ref.actor
    assert (actor.policy_loss.loss_mode, actor.clip_ratio_high) == ("cast", 0.28)
    actor = prepared("actor_rollout_ref.actor.clip_ratio_high=0.3").actor_rollout_ref.actor
    assert actor.clip_ratio_high == 0.3


@pytest.mark.parametrize("estimator", ["grpo", "gae"])
def test_another_run_stays_as_it_is(estimator):
    config = prepared(estimator=estimator)
    assert config.trainer.v1.trainer_class is None
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "vanilla"


@pytest.mark.parametrize("estimator", ["cast", "grpo"])
def test_the_algorithm_config_is_a_dataclass_still(estimator):
    assert omega_conf_to_dataclass(prepared(estimator=estimator).algorithm).cast["flip"] == "both"


def test_a_trainer_without_self_teacher_is_refused():
    with pytest.raises(CastConfigError, match="this trainer has no self-teacher"):
        prepared("trainer.v1.trainer_class=verl.trainer.ppo.v1.PPOTrainerSync")


def test_main_ppo_refuses_before_ray_starts():
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=cast"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "actor_rollout_ref.rollout.n=1: CAST compares the responses" in done.stderr
    assert "ray init kwargs" not in done.stdout


# What a process of a run imports, and what is registered then. A fresh process: other tests clear the registries.
REGISTERED = {
    "classes": "core_algos.ADV_ESTIMATOR_BATCH_FIELDS['cast'] == ('old_log_probs', 'teacher_log_probs')",
    "worker": "core_algos.get_policy_loss_fn('cast').__module__ == 'verl.experimental.cast.training.policy_loss'",
}


@pytest.mark.parametrize("module", REGISTERED)
def test_trainer_and_worker_register_what_they_need(module):
    imports = f"import verl.experimental.cast.training.{module}; from verl.trainer.ppo import core_algos"
    subprocess.run([sys.executable, "-c", f"{imports}; assert {REGISTERED[module]}"], check=True)


def test_the_estimator_stops_a_trainer_without_self_teacher():
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="would be GRPO"):
        compute_cast_outcome_advantage(zeros, ones, ["a", "a"], {}, old_log_probs=zeros, teacher_log_probs=zeros)


class _VerlsWorker:
    def compute_log_prob(self, data):
        return TensorDict({"log_probs": torch.ones(2)}, [2])

    def update_actor(self, data):
        return "verl's update"


class _Worker(SelfTeacherWorkerMixin, _VerlsWorker):
    actor = SimpleNamespace(engine=SimpleNamespace(eval_mode=contextlib.nullcontext))
    teacher_pass = SimpleNamespace(log_probs=lambda data: torch.zeros(2))

    def log_probs_of_update(self, data):
        return "of the update"

    def update_actor_in_one_pass(self, data):
        return "in one pass"


class _UsersWorker(_Worker):
    def compute_log_prob(self, data):
        output = super().compute_log_prob(data)
        output["log_probs"] *= 2
        return output


def _data(stage=None):
    data = TensorDict({"x": torch.zeros(2)}, [2])
    tu.assign_non_tensor(data, **({} if stage is None else {wire.STAGE: stage}))
    return data


def test_a_worker_does_what_the_trainer_asks_for():
    worker = _Worker()
    assert set(worker.compute_log_prob(_data()).keys()) == {"log_probs"}
    assert set(worker.compute_log_prob(_data(wire.WITH_TEACHER)).keys()) == {"log_probs", wire.TEACHER_LOG_PROBS}
    assert worker.compute_log_prob(_data(wire.OF_UPDATE)) == "of the update"
    assert worker.update_actor(_data()) == "verl's update"
    assert worker.update_actor(_data(wire.ONE_PASS)) == "in one pass"
    for call, stage in ((worker.compute_log_prob, wire.ONE_PASS), (worker.update_actor, wire.WITH_TEACHER)):
        with pytest.raises(KeyError, match=stage):
            call(_data(stage))


def test_a_workers_override_runs_once():
    """A subclass is named by trainer.v1.actor_worker_class."""
    assert _UsersWorker().compute_log_prob(_data(wire.WITH_TEACHER))["log_probs"].tolist() == [2, 2]
