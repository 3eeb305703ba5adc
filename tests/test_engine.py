"""The laws of the self-teacher on verl's real actor worker: FSDP2 and FSDP1, one rank and two (engine_laws.py)."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("engine")
    tiny.write(path)
    (path / "context.jinja").write_text(
        '{% set shown = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1."}] %}'
        "{{ apply_chat_template(shown + messages) }}"
    )
    return path


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "strategy, world_size, overrides",
    [
        ("fsdp2", 1, []),
        ("fsdp2", 2, []),
        # parameters stay gathered after a forward: a swap of the shards alone would go unnoticed
        ("fsdp2", 2, ["actor_rollout_ref.actor.fsdp_config.reshard_after_forward=False"]),
        ("fsdp", 1, []),
        ("fsdp", 2, []),
    ],
)
def test_laws_of_the_self_teacher(directory, strategy, world_size, overrides):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "engine_laws.py"), str(directory), strategy, *overrides],
            env={
                **os.environ,
                "VERL_PLATFORM": "cpu",
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [rank.communicate(timeout=280)[0] for rank in ranks]
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output[-5000:]
