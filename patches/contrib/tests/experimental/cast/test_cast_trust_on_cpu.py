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
"""`algorithm.cast.trust=measured`: the decision, and the agent loop that samples in the teacher's context."""

import asyncio
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from verl.experimental.agent_loop.agent_loop import DictConfigWrap, _agent_loop_registry
from verl.experimental.cast import wire
from verl.experimental.cast.teacher.context import TeacherContext
from verl.experimental.cast.training.teacher_rollout import AgentLoopInContext
from verl.experimental.cast.training.trust import Trust, compare

RIGHT, WRONG = [True, True], [False, False]


def trust_of(teacher, policy, standard_errors=3.0):
    trust = Trust(responses=64, standard_errors=standard_errors, refresh_interval=10)
    trust.decide(0, compare(teacher, policy))
    return trust


def test_the_standard_error_is_the_larger_of_the_paired_and_the_binomial_one():
    teacher, policy = [RIGHT] * 24 + [WRONG] * 8, [RIGHT] * 8 + [WRONG] * 24
    measured = compare(teacher, policy)
    assert (measured.teacher_share, measured.policy_share) == (0.75, 0.25)
    paired, binomial = math.sqrt(0.25 * 32 / 31 / 32), math.sqrt(0.5 * 0.5 * 2 / 64)
    assert measured.standard_error == pytest.approx(max(paired, binomial))


def test_a_teacher_is_trusted_if_it_is_better_by_enough():
    teacher, policy = [RIGHT] * 24 + [WRONG] * 8, [RIGHT] * 8 + [WRONG] * 24  # 5.6 standard errors
    assert trust_of(teacher, policy).trusted and not trust_of(teacher, policy, standard_errors=6.0).trusted
    assert not trust_of(policy, teacher).trusted and not trust_of(teacher, teacher, standard_errors=0.0).trusted


def test_trust_is_taken_back_when_the_policy_has_caught_up():
    """Looked at over the last 64 responses; a resumed run does the same."""
    trust = trust_of([RIGHT] * 24 + [WRONG] * 8, [RIGHT] * 8 + [WRONG] * 24)  # the teacher's share is 0.75
    resumed = Trust(responses=64, standard_errors=3.0, refresh_interval=10)
    trust.observe(32, 32)
    resumed.restore(json.loads(json.dumps(trust.state_dict())), taken_at=0, completed_steps=1)
    for one in (trust, resumed):
        assert one.trusted and not one.due(9) and one.due(10)
        assert one.observe(15, 32) is None and one.trusted  # 47 of 64
        assert "no longer trusted" in one.observe(36, 36) and not one.trusted


def test_verl_finds_the_agent_loop():
    """A fresh process that imports what verl's agent loop workers import."""
    code = f"import verl.experimental.agent_loop.agent_loop as a; assert '{wire.IN_CONTEXT}' in a._agent_loop_registry"
    subprocess.run([sys.executable, "-c", code], check=True)


class _Tokenizer:
    bos_token = bos_token_id = None

    def __call__(self, text, **_):
        return {"input_ids": [ord(letter) for letter in text]}


class _Loop:
    """An agent loop that makes its first prompt as verl's do; the engine's answer is what it was asked."""

    tokenizer = _Tokenizer()

    def __init__(self, trainer_config):
        self.config, self.rollout_config = trainer_config.config, trainer_config.config.actor_rollout_ref.rollout

    async def ct_build_initial_tokens(self, messages):
        return [1, 2]

    async def run(self, sampling_params, raw_prompt):
        ids = await self.ct_build_initial_tokens(raw_prompt)
        return SimpleNamespace(prompt_ids=ids, sampling_params=sampling_params)


@pytest.mark.parametrize("context", ["plain", "same"])
def test_the_runs_agent_loop_samples_in_the_context_as_in_training(context, monkeypatch):
    monkeypatch.setitem(_agent_loop_registry, "ours", {"_target_": f"{__name__}._Loop"})
    rollout = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "response_length": 16, "max_model_len": 512}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    messages = [{"role": "user", "content": "What is 1 + 2?"}]
    row = {wire.AGENT_LOOP: "ours", wire.CONTEXT: context, wire.TEMPLATE: None, "raw_prompt": messages}
    loop = AgentLoopInContext(trainer_config=DictConfigWrap(config))
    output = asyncio.run(loop.run({"temperature": 0, "logprobs": True}, **row))
    assert output.prompt_ids == TeacherContext(context, None, _Tokenizer()).prompt_ids(messages, [1, 2])
    assert output.sampling_params == {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "logprobs": True, "max_tokens": 16}
