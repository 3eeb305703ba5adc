"""Laws of the teacher's host memory on a node: what is page-locked, and what a run says of it."""

import pytest

from verl_cast.teacher import node
from verl_cast.teacher.node import copies_that_verl_pins, pins
from verl_cast.tools.run_config import compose
from verl_cast.training.trainer import host_memory_in_words

GIB = 2**30
ACTOR = "actor_rollout_ref.actor"
OFFLOAD_POLICY = f"{ACTOR}.fsdp_config.offload_policy"
MEGATRON = ("model_engine=megatron",)
ASYNC = ("trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=2")


@pytest.mark.parametrize(
    "setting, strategy, node_bytes, pinned",
    [
        ("auto", "fsdp2", 64 * GIB, True),
        ("auto", "fsdp", 64 * GIB, True),
        ("auto", "fsdp2", 64 * GIB + 1, False),  # more than a quarter of the node's memory
        ("auto", "megatron", 1, False),
        (True, "megatron", 200 * GIB, True),
        (False, "fsdp2", 1, False),
    ],
)
def test_what_is_page_locked(setting, strategy, node_bytes, pinned):
    assert pins(setting, strategy, node_bytes, node_memory=256 * GIB) is pinned


@pytest.mark.parametrize("limit, memory", [("max\n", None), (str(GIB), GIB), (str(2**60), None)])
def test_a_containers_limit_is_its_memory(monkeypatch, tmp_path, limit, memory):
    monkeypatch.setattr(node, "_CGROUP_LIMIT", tmp_path / "none")
    machine = node.node_memory()
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(node, "_CGROUP_LIMIT", tmp_path / "memory.max")
    assert node.node_memory() == (memory or machine)


@pytest.mark.parametrize(
    "overrides, copies",
    [
        ((f"{ACTOR}.strategy=fsdp2",), {}),
        (
            (f"{ACTOR}.strategy=fsdp2", f"{ACTOR}.fsdp_config.offload_policy=True"),
            {f"{ACTOR}.fsdp_config.offload_policy": 1},
        ),
        ((f"{ACTOR}.strategy=fsdp", f"{ACTOR}.fsdp_config.param_offload=True"), {}),
        ((*MEGATRON, f"{ACTOR}.megatron.param_offload=True"), {f"{ACTOR}.megatron.param_offload": 1}),
        ((*MEGATRON, *ASYNC), {"trainer.v1.separate_async.parameter_sync_step": 2}),
    ],
)
def test_what_verl_page_locks_itself(overrides, copies):
    assert copies_that_verl_pins(compose(["algorithm.adv_estimator=cast", *overrides])) == copies


def test_a_runs_start_adds_up_the_node():
    config = compose(["algorithm.adv_estimator=cast", *MEGATRON, f"{ACTOR}.megatron.param_offload=True"])
    ranks = [{"node": f"n{rank // 2}", "host_bytes": (rank + 1) * 2**20, "is_pinned": rank != 3} for rank in range(4)]
    assert host_memory_in_words(config, ranks) == (
        "self-teacher ready on 4 rank(s), 4.0 MiB of host memory each, 7.0 MiB a node, not page-locked; verl "
        f"page-locks 1 such copies for {ACTOR}.megatron.param_offload"
    )
