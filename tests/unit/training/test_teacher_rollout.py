"""Laws of the agent loop that samples in the teacher's context. Only the rollout engine is a stand-in."""

import asyncio

import pytest
import tiny
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, DictConfigWrap, _agent_loop_registry
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.replica import TokenOutput

from verl_cast import wire
from verl_cast.teacher.context import TeacherContext
from verl_cast.training.teacher_rollout import AgentLoopInContext

MESSAGES = [{"role": "user", "content": "What is 1 + 2?"}]
TEMPLATE = "{{ problem }} Think first."
VALIDATION = {"temperature": 0, "top_p": 1.0, "top_k": -1, "logprobs": True}


class Engine:
    """Keeps what it is asked, and always answers the same."""

    def __init__(self):
        self.asked = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        self.asked.append((list(prompt_ids), dict(sampling_params)))
        return TokenOutput(token_ids=[5, 6, 7], log_probs=[-1.0] * 3, extra_fields={"global_steps": 4})


class OwnPrompt(AgentLoopBase):
    """An agent loop that tokenizes in its own way."""

    async def run(self, sampling_params, **kwargs):
        output = await SingleTurnAgentLoop.run(self, sampling_params, **kwargs)
        output.prompt_ids = [1, 2, 3]
        return output

    prompt_length = response_length = 16


def run(compose, context="plain", template=None, loop="single_turn_agent", max_model_len=None, prompt_length=512):
    """One response: (engine, what came back)."""
    config = compose("algorithm.adv_estimator=cast", "actor_rollout_ref.rollout.temperature=0.7")
    rollout = config.actor_rollout_ref.rollout
    rollout.top_p, rollout.top_k, rollout.response_length = 0.9, 20, 16
    rollout.max_model_len, rollout.prompt_length = max_model_len, prompt_length
    engine = Engine()
    row = {wire.AGENT_LOOP: loop, wire.CONTEXT: context, wire.TEMPLATE: template, "raw_prompt": MESSAGES}

    async def in_its_loop():
        agent_loop = AgentLoopInContext(
            trainer_config=DictConfigWrap(OmegaConf.create(OmegaConf.to_container(config))),
            server_manager=engine,
            tokenizer=tiny.tokenizer(),
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
        )
        return await agent_loop.run(dict(VALIDATION), **row)

    return engine, asyncio.run(in_its_loop())


def expected(context, template):
    student = tiny.tokenizer().apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    return TeacherContext(context, template, tiny.tokenizer()).prompt_ids(MESSAGES, student)


def test_verl_finds_it_by_name():
    """In every process that imports verl's agent loops, by the plugin."""
    assert _agent_loop_registry[wire.IN_CONTEXT] == {
        "_target_": f"{AgentLoopInContext.__module__}.{AgentLoopInContext.__qualname__}"
    }


@pytest.mark.parametrize("context, template", [("plain", None), ("same", None), ("t.jinja", TEMPLATE)])
def test_the_runs_own_loop_samples_in_the_context_as_in_training(compose, context, template):
    engine, output = run(compose, context, template)
    ((prompt, sampling),) = engine.asked
    assert prompt == output.prompt_ids == expected(context, template)
    assert output.response_ids == [5, 6, 7]
    assert sampling == {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "logprobs": True, "max_tokens": 16}


def test_a_long_prompt_of_the_teacher_is_not_cut(compose):
    """verl cuts a student's prompt at data.max_prompt_length."""
    engine, _ = run(compose, prompt_length=8)
    assert engine.asked[0][0] == expected("plain", None) and len(engine.asked[0][0]) > 8


def test_an_engine_without_room_is_named_with_the_setting(compose):
    needed = len(expected("plain", None)) + 16
    run(compose, max_model_len=needed)
    with pytest.raises(ValueError, match=f"actor_rollout_ref.rollout.max_model_len={needed} or more"):
        run(compose, max_model_len=needed - 1)


def test_a_loop_with_a_prompt_of_its_own_is_refused(compose, monkeypatch):
    monkeypatch.setitem(_agent_loop_registry, "own", {"_target_": f"{__name__}.OwnPrompt"})
    with pytest.raises(RuntimeError, match="the agent loop own does not make its prompts"):
        run(compose, loop="own")
