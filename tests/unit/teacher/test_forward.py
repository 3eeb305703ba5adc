"""Laws of the teacher's pass that no engine of the CPU platform shows (the others: tests/engine)."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from tiny import tokenizer
from verl.utils import tensordict_utils as tu

from verl_cast import TeacherConfig
from verl_cast.teacher.context import TeacherContext
from verl_cast.teacher.forward import TeacherPass
from verl_cast.teacher.weights import build_teacher


@pytest.mark.parametrize(
    "context, mode, replays", [("same", "R3", True), ("plain", "R3", False), ("same", "R2", False)]
)
def test_routes_are_replayed_where_old_log_probs_replay_them_on_the_same_tokens(context, mode, replays):
    """Megatron's experts need an accelerator, so the engine is a stand-in that records what it is asked for."""
    asked = []
    actor = SimpleNamespace(
        engine_config=SimpleNamespace(router_replay=SimpleNamespace(mode=mode)),
        engine=SimpleNamespace(eval_mode=contextlib.nullcontext),
        infer_batch=lambda data: asked.append(tu.get(data, "enable_routing_replay")),
    )
    teacher = build_teacher(TeacherConfig(weights="current"), torch.nn.Linear(1, 1))
    passes = TeacherPass(actor, teacher, TeacherContext(context, None, tokenizer()), routing_replay=True)
    passes._score(TensorDict({}, batch_size=[1]), temperature=1.0)
    assert asked == [replays]
