"""One rank of the engine tests: verl's real actor worker with the self-teacher, on gloo, outside Ray.

`RANK=r WORLD_SIZE=w python tests/engine_laws.py DIR STRATEGY [OVERRIDE ...]` checks the laws of the self-teacher on
real FSDP shards and exits with 0, or with the failed assertion. test_engine.py starts the ranks.
"""

import contextlib
import os
import sys
from pathlib import Path

import tiny
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from omegaconf import open_dict
from tensordict import TensorDict

TEMPERATURE = 0.7
QUESTIONS = ["What is 1 + 2?", "And 3 + 4, then?", "5?", "What is 6 + 7 + 8 + 9?"]


def actor_config(directory: Path, strategy: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        prefix = "actor_rollout_ref"
        config = compose(
            "ppo_trainer",
            overrides=[
                f"{prefix}.model.path={directory / 'model'}",
                f"{prefix}.model.use_remove_padding=False",
                f"{prefix}.model.enable_gradient_checkpointing=False",
                f"+{prefix}.model.override_config.attn_implementation=sdpa",
                f"{prefix}.actor.strategy={strategy}",
                f"{prefix}.actor.use_dynamic_bsz=False",
                f"{prefix}.actor.ppo_mini_batch_size=4",
                f"{prefix}.actor.ppo_micro_batch_size_per_gpu=2",
                f"{prefix}.actor.policy_loss.loss_mode=cast",
                f"{prefix}.actor.optim.lr=1e-2",
                f"{prefix}.actor.fsdp_config.use_torch_compile=False",
                f"+{prefix}.actor.fsdp_config.mixed_precision={{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}}",
                f"{prefix}.rollout.log_prob_micro_batch_size_per_gpu=2",
                f"{prefix}.rollout.n=4",
                "trainer.total_training_steps=10",
                *sys.argv[3:],
            ],
        )
    with open_dict(config):
        config.actor_rollout_ref.actor.optim.total_training_steps = 10
    return config.actor_rollout_ref


def batch(rank: int, num_rows: int = 4) -> TensorDict:
    """Rows as TransferQueue gives them to a worker; the ranks have different prompts, lengths and masks."""
    tok = tiny.tokenizer()
    generator = torch.Generator().manual_seed(rank)
    rows = []
    for i in range(num_rows):
        messages = [{"role": "user", "content": QUESTIONS[(i + rank) % 4]}]
        prompt = torch.tensor(tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        length = 3 + 4 * rank + 2 * i
        response = torch.randint(4, len(tok), (length,), generator=generator)
        mask = torch.ones(length, dtype=torch.int64)
        if i == 1:
            mask[1] = 0  # a tool token
        rows.append((messages, prompt, response, mask))

    def nested(tensors):
        return torch.nested.as_nested_tensor(list(tensors), layout=torch.jagged)

    messages, prompts, responses, masks = zip(*rows, strict=True)
    advantages = [torch.randn(len(r), generator=generator) for r in responses]
    data = TensorDict(
        {
            "prompts": nested(prompts),
            "responses": nested(responses),
            "response_mask": nested(masks),
            "loss_mask": nested(masks),
            "input_ids": nested(torch.cat([p, r]) for p, r in zip(prompts, responses, strict=True)),
            "position_ids": nested(torch.arange(len(p) + len(r)) for p, r in zip(prompts, responses, strict=True)),
            "advantages": nested(advantages),
        },
        batch_size=num_rows,
    )
    from tensordict import NonTensorStack
    from verl.utils import tensordict_utils as tu

    data["raw_prompt"] = NonTensorStack(*messages)
    tu.assign_non_tensor(data, temperature=TEMPERATURE)
    return data


class Rank:
    """The worker of this rank, called the way verl's trainer calls it."""

    def __init__(self, directory: Path, strategy: str):
        from verl.workers.engine_workers import ActorRolloutRefWorker

        from verl_cast.worker import with_self_teacher

        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.worker = with_self_teacher(ActorRolloutRefWorker)(config=actor_config(directory, strategy), role="actor")
        self.worker.init_model()
        self.data = batch(self.rank)

    def init_teacher(self, completed_steps=0, **teacher):
        from verl_cast import CastConfig
        from verl_cast.context import load_template

        config = CastConfig.from_dict({"teacher": teacher})
        template = load_template(config.teacher.context)
        return self.worker.init_self_teacher(config, template, {}, completed_steps)

    def log_probs(self) -> torch.Tensor:
        from verl.utils import tensordict_utils as tu
        from verl.workers.utils.padding import response_from_nested

        data = self.data.clone()
        tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False)
        return response_from_nested(self.worker.compute_log_prob(data)["log_probs"], data["response_mask"]).values()

    def teacher_log_probs(self) -> torch.Tensor:
        return self.worker.compute_teacher_log_probs(self.data.clone())["teacher_log_probs"].values()

    def update(self) -> None:
        from verl.utils import tensordict_utils as tu

        data = self.data.clone()
        data["old_log_probs"] = torch.nested.nested_tensor_from_jagged(self.log_probs(), data["responses"].offsets())
        tu.assign_non_tensor(
            data,
            calculate_entropy=False,
            global_batch_size=4 * self.world_size,
            mini_batch_size=4 * self.world_size,
            epochs=1,
            seed=1,
            dataloader_kwargs={"shuffle": False},
        )
        self.worker.update_actor(data)

    def parameters(self) -> dict[str, torch.Tensor]:
        from verl_cast.self_teacher import trainable_shards

        with self.worker.actor.engine.eval_mode():
            return {name: t.clone() for name, t in trainable_shards(self.worker.actor.engine.module).items()}


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def expect_error(error_type, words: str):
    @contextlib.contextmanager
    def checker():
        try:
            yield
        except error_type as error:
            assert words in str(error), f"{error} does not say {words!r}"
        else:
            raise AssertionError(f"no {error_type.__name__}")

    return checker()


def main(directory: Path, strategy: str) -> None:
    this = Rank(directory, strategy)
    worker = this.worker
    initial = this.parameters()
    trainable_bytes = sum(t.nbytes for t in initial.values())

    # -- the context `same`: the teacher is the policy of the last snapshot, on the same tokens
    told = this.init_teacher(context="same", refresh_interval=2)
    assert told["host_bytes"] == trainable_bytes, "the host holds one copy of the trainable shard, no more"
    assert worker.prepare_self_teacher(0) == {"is_policy": True, "age": 0}
    before_update = this.log_probs()
    assert torch.equal(this.teacher_log_probs(), before_update), "the same weights on the same tokens"
    this.update()
    moved = this.parameters()
    assert not same_bits(initial, moved), "the update must move the policy, or nothing here is tested"
    assert worker.prepare_self_teacher(1) == {"is_policy": False, "age": 1}
    assert torch.equal(this.teacher_log_probs(), before_update), (
        "teacher log-probs are those of its weights, bit for bit"
    )
    assert not torch.equal(this.log_probs(), before_update)
    assert same_bits(this.parameters(), moved), "the policy is bit-identical after the pass"

    # -- exceptions: in the middle of the forward, and while the weights are changing places
    engine, teacher = worker.actor.engine, worker.self_teacher
    stock_exchange = type(teacher)._exchange

    def broken_forward(*args, **kwargs):
        assert not same_bits(trainable_of(engine), moved), "the fault must hit while the teacher is in"
        raise RuntimeError("injected in the forward")

    from verl_cast.self_teacher import trainable_shards

    def trainable_of(engine):
        return {n: t.clone() for n, t in trainable_shards(engine.module).items()}

    stock_infer = engine.infer_batch
    engine.infer_batch = broken_forward
    with expect_error(RuntimeError, "injected in the forward"):
        this.teacher_log_probs()
    engine.infer_batch = stock_infer
    assert same_bits(this.parameters(), moved), "an exception in the forward leaves the policy as it was"

    calls = []

    def failing_exchange(live, host):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("injected in the swap")
        stock_exchange(live, host)

    type(teacher)._exchange = staticmethod(failing_exchange)
    if len(initial) >= 3:
        with expect_error(RuntimeError, "injected in the swap"):
            this.teacher_log_probs()
    type(teacher)._exchange = staticmethod(stock_exchange)
    assert same_bits(this.parameters(), moved), "an exception in the middle of the swap leaves the policy as it was"
    assert torch.equal(this.teacher_log_probs(), before_update), "and the teacher"

    # -- the refresh is due after every second step, and only then
    assert not teacher.refresh_due(1) and teacher.refresh_due(2) and teacher.refresh_due(3)
    assert worker.prepare_self_teacher(2) == {"is_policy": True, "age": 0}
    assert torch.equal(this.teacher_log_probs(), this.log_probs())
    this.update()

    # -- the next optimizer step is the same with and without a pass in between
    after_two = this.parameters()
    other = this.parameters_after_the_same_updates_without_teacher(directory, strategy)
    assert same_bits(after_two, other), "teacher passes must not change what the optimizer does"

    # -- contexts with other prompts: equal to an independent forward of the unsharded model over [context | response]
    full_teacher = full_model(this)
    for context in ("plain", str(directory / "context.jinja")):
        this.init_teacher(context=context)
        got = this.teacher_log_probs()
        expected = torch.cat(independent_log_probs(full_teacher, worker.teacher_context, this.data))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert same_bits(this.parameters(), after_two)

    # -- checkpoint: a restored teacher computes the same bits; a missing or foreign one is named
    this.init_teacher(context="same", refresh_interval=10)
    snapshot_log_probs = this.teacher_log_probs()
    this.update()
    saved = directory / f"ckpt_{strategy}_{this.world_size}" / "actor"
    saved.parent.mkdir(exist_ok=True)
    worker.save_checkpoint(str(saved), None, 3)
    policy_log_probs = this.log_probs()
    this.update()
    worker.load_checkpoint(str(saved))
    this.init_teacher(completed_steps=3, context="same", refresh_interval=10)
    assert worker.prepare_self_teacher(3) == {"is_policy": False, "age": 3}
    assert torch.equal(this.log_probs(), policy_log_probs)
    assert torch.equal(this.teacher_log_probs(), snapshot_log_probs), "a resumed teacher gives the same bits"
    with expect_error(RuntimeError, "its weights is 'snapshot', this run's is 'current'"):
        this.init_teacher(completed_steps=3, context="same", weights="current")
    teacher_file = next(saved.glob(f"cast_self_teacher_*_rank_{this.rank}.pt"))
    teacher_file.write_bytes(teacher_file.read_bytes()[:1000])
    with expect_error(RuntimeError, "cannot be restored"):
        this.init_teacher(completed_steps=3, context="same")
    teacher_file.unlink()
    with expect_error(FileNotFoundError, "missing_state=snapshot"):
        this.init_teacher(completed_steps=3, context="same")
    this.init_teacher(completed_steps=3, context="same", missing_state="snapshot")
    assert torch.equal(this.teacher_log_probs(), this.log_probs())

    # -- `current` holds nothing and is the policy at every step
    worker._resumed_from = None
    assert this.init_teacher(weights="current", context="same")["host_bytes"] == 0
    this.update()
    assert worker.prepare_self_teacher(4) == {"is_policy": True, "age": 0}
    assert torch.equal(this.teacher_log_probs(), this.log_probs())

    # -- what does not fit is named
    worker.actor.model_config.hf_config.max_position_embeddings = 20
    this.init_teacher(context="plain")
    with expect_error(ValueError, "max_position_embeddings"):
        this.teacher_log_probs()
    worker.actor.model_config.hf_config.max_position_embeddings = 512

    # -- an exception inside a module's forward, where FSDP has parameters gathered: last, since it leaves FSDP there
    this.init_teacher(context="same")
    this.update()
    moved = this.parameters()
    live = trainable_shards(engine.module)
    last_layer = [m for m in engine.module.modules() if type(m).__name__.endswith("Qwen3DecoderLayer")][-1]

    def raise_in_layer(*args):
        assert not same_bits(live, moved), "the teacher is in"
        raise RuntimeError("injected in a layer")

    last_layer.mlp.register_forward_pre_hook(raise_in_layer)
    with expect_error(RuntimeError, "injected in a layer"):
        this.teacher_log_probs()
    assert same_bits(live, moved), "an exception inside a layer leaves the policy's shards as they were"
    print(f"rank {this.rank}: all laws hold for {strategy} on {this.world_size} rank(s)")


def full_model(this: Rank):
    """The policy as one plain HF module, from the sharded parameters."""
    module = tiny.model()
    parameters = {name: tensor for name, tensor in this.worker.actor.engine.get_per_tensor_param()[0]}
    module.load_state_dict({name: tensor.float() for name, tensor in parameters.items()}, strict=True)
    return module.eval()


@torch.no_grad()
def independent_log_probs(module, context, data) -> list[torch.Tensor]:
    """log-probs of every response after the context's prompt, one row at a time, without any of verl's machinery."""
    result = []
    for i, messages in enumerate(data["raw_prompt"]):
        prompt = context.prompt_ids(getattr(messages, "data", messages), data["prompts"][i].tolist())
        ids = torch.tensor([prompt + data["responses"][i].tolist()])
        logits = module(ids).logits[0, len(prompt) - 1 : -1].float() / TEMPERATURE
        result.append(F.log_softmax(logits, -1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1))
    return result


def _without_teacher(self, directory, strategy):
    """The parameters after the same two updates in a worker that never runs a teacher's pass."""
    from verl.workers.engine_workers import ActorRolloutRefWorker

    twin = object.__new__(Rank)
    twin.rank, twin.world_size, twin.data = self.rank, self.world_size, self.data
    twin.worker = ActorRolloutRefWorker(config=actor_config(directory, strategy), role="actor")
    twin.worker.init_model()
    twin.update()
    twin.update()
    return twin.parameters()


Rank.parameters_after_the_same_updates_without_teacher = _without_teacher


if __name__ == "__main__":
    import verl  # noqa: F401  (loads the plugin and, with VERL_PLATFORM=cpu, the platform)

    torch.manual_seed(0)
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
