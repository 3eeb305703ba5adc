"""One rank of the engine tests: verl's real actor worker with the self-teacher, on gloo, outside Ray.

`RANK=r WORLD_SIZE=w python tests/engine_laws.py DIR ENGINE [OVERRIDE ...]` checks the laws of the self-teacher on real
shards of the engine (fsdp, fsdp2, megatron) and exits with 0, or with the failed assertion. With `--fault=POINT` it
checks instead what is left on every rank when one of them fails there. test_engine.py starts the ranks.
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
from one_pass_laws import check_one_pass, check_skipped_rows
from tensordict import TensorDict
from verl_run import ENGINES, merged

TEMPERATURE = 0.7
QUESTIONS = ["What is 1 + 2?", "And 3 + 4, then?", "5?", "What is 6 + 7 + 8 + 9?"]
EMA_DECAY = 0.75
LAYERS = ("Qwen3DecoderLayer", "TransformerLayer")  # of transformers (FSDP2 puts "FSDP" before it) and of megatron

ACTOR = "actor_rollout_ref.actor"


def actor_config(directory: Path, engine: str, overrides: list[str]):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            overrides=[
                f"actor_rollout_ref.model.path={directory / 'model'}",
                "actor_rollout_ref.model.use_remove_padding=False",
                "actor_rollout_ref.model.enable_gradient_checkpointing=False",
                f"{ACTOR}.use_dynamic_bsz=False",
                f"{ACTOR}.ppo_mini_batch_size=4",
                f"{ACTOR}.ppo_micro_batch_size_per_gpu=2",
                f"{ACTOR}.policy_loss.loss_mode=cast",
                f"{ACTOR}.optim.lr=1e-2",
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
                "actor_rollout_ref.rollout.n=4",
                "trainer.total_training_steps=10",
                *merged(ENGINES[engine], overrides),
            ],
        )
    with open_dict(config):
        config.actor_rollout_ref.actor.optim.total_training_steps = 10
    return config.actor_rollout_ref


def batch(dp_rank: int, num_rows: int = 4) -> TensorDict:
    """Rows as TransferQueue gives them to a worker; data-parallel ranks differ in prompts, lengths and masks."""
    tok = tiny.tokenizer()
    generator = torch.Generator().manual_seed(dp_rank)
    rows = []
    for i in range(num_rows):
        messages = [{"role": "user", "content": QUESTIONS[(i + dp_rank) % 4]}]
        prompt = torch.tensor(tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        length = 3 + 4 * dp_rank + 2 * i
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
            "cast_scored": torch.ones(num_rows, dtype=torch.bool),
        },
        batch_size=num_rows,
    )
    from tensordict import NonTensorStack
    from verl.utils import tensordict_utils as tu

    data["raw_prompt"] = NonTensorStack(*messages)
    tu.assign_non_tensor(data, temperature=TEMPERATURE)
    return data


class Rank:
    """The worker of this rank, called the way verl's trainer calls it.

    Log-probs are None on ranks that hold no outputs (not the last pipeline stage, not the first of tensor parallelism).
    """

    def __init__(self, directory: Path, engine: str, overrides: list[str], with_teacher: bool = True):
        from verl.workers.engine_workers import ActorRolloutRefWorker

        from verl_cast.training.worker import with_self_teacher

        worker_cls = with_self_teacher(ActorRolloutRefWorker) if with_teacher else ActorRolloutRefWorker
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.worker = worker_cls(config=actor_config(directory, engine, overrides), role="actor")
        torch.manual_seed(0)  # a new LoRA adapter is drawn at random
        self.worker.init_model()
        self.engine = self.worker.actor.engine
        self.num_dp = self.engine.get_data_parallel_size()
        self.data = batch(self.engine.get_data_parallel_rank())

    def init_teacher(self, completed_steps=0, **teacher):
        from verl_cast import CastConfig
        from verl_cast.teacher.context import load_template

        config = CastConfig.from_dict({"teacher": teacher})
        template = load_template(config.teacher.context)
        return self.worker.init_self_teacher(config, template, {}, completed_steps)

    def log_probs(self, **settings) -> torch.Tensor | None:
        from verl.utils import tensordict_utils as tu

        data = self.data.clone()
        tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False, **settings)
        output = self.worker.compute_log_prob(data)
        return None if output is None else self.responses_of(output["log_probs"])

    def responses_of(self, values: torch.Tensor) -> torch.Tensor:
        """Of nested values of every token those of the responses, flat."""
        from verl.workers.utils.padding import response_from_nested

        return response_from_nested(values, self.data["response_mask"]).values().float()

    def teacher_log_probs(self) -> torch.Tensor | None:
        output = self.worker.compute_teacher_log_probs(self.data.clone())
        return None if output is None else output["teacher_log_probs"].values()

    def log_probs_again(self) -> torch.Tensor | None:
        output = self.worker.compute_log_probs_again(self.data.clone())
        return None if output is None else output["log_probs_again"].values()

    def handed_out(self, outputs: dict | None) -> dict:
        """What only ranks with outputs have; the trainer hands it to every rank of the same data."""
        outputs = [outputs]
        source = torch.tensor([-1 if outputs[0] is None else self.rank])
        if self.world_size > self.num_dp:
            torch.distributed.all_reduce(source, op=torch.distributed.ReduceOp.MAX)
            torch.distributed.broadcast_object_list(outputs, src=int(source))
        return outputs[0]

    def nested(self, values: torch.Tensor) -> torch.Tensor:
        rows = values.split(self.data["responses"].offsets().diff().tolist())
        return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)

    def update(self, **fields) -> None:
        """verl's update of the usual batch, with other old_log_probs and advantages where `fields` has them."""
        data = self.data.clone()
        data.update(fields or {"old_log_probs": self.nested(self.handed_out(self.log_probs()))})
        self._assign_settings(data)
        self.worker.update_actor(data)

    def update_in_one_pass(self, settings: dict | None = None, gap_is_zero: bool = False, **fields) -> None:
        """The update that forms the gap itself; `settings` are those that are not the usual ones."""
        data = self.data.clone()
        del data["advantages"]
        data.update(fields)
        self._assign_settings(data, cast_completed_steps=1, cast_gap_is_zero=gap_is_zero, **(settings or {}))
        self.worker.update_actor_in_one_pass(data)

    def _assign_settings(self, data: TensorDict, **settings) -> None:
        from verl.utils import tensordict_utils as tu

        usual = {
            "calculate_entropy": False,
            "global_batch_size": 4 * self.num_dp,
            "mini_batch_size": 4 * self.num_dp,
            "epochs": 1,
            "seed": 1,
            "dataloader_kwargs": {"shuffle": False},
        }
        tu.assign_non_tensor(data, **{**usual, **settings})

    def live(self) -> dict[str, torch.Tensor]:
        from verl_cast.teacher.shards import trainable_shards

        return trainable_shards(self.engine.module)

    def parameters(self) -> dict[str, torch.Tensor]:
        with self.engine.eval_mode():
            return {name: tensor.clone() for name, tensor in self.live().items()}


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextlib.contextmanager
def expect_error(error_type, words: str):
    try:
        yield
    except error_type as error:
        assert words in str(error), f"{error} does not say {words!r}"
    else:
        raise AssertionError(f"no {error_type.__name__}")


def main(directory: Path, engine_name: str, overrides: list[str]) -> None:
    this = Rank(directory, engine_name, overrides)
    worker, engine = this.worker, this.engine
    initial = this.parameters()
    pipelined = "pipeline" in " ".join(overrides)
    half_precision = "bf" in "".join(overrides)  # bf16, bfloat16
    lora = any("lora_rank" in override for override in overrides)

    # -- the context `same`: the teacher is the policy of the last snapshot, on the same tokens
    told = this.init_teacher(context="same", refresh_interval=2)
    assert told["host_bytes"] == sum(t.nbytes for t in initial.values()), "one copy of the trainable shard, no more"
    assert worker.prepare_self_teacher(0) == {"is_policy": True, "age": 0}
    before_update = this.log_probs()
    assert same(this.teacher_log_probs(), before_update), "the same weights on the same tokens"
    this.update()
    after_one = this.parameters()
    assert not same_bits(initial, after_one), "the update must move the policy, or nothing here is tested"
    # A second update before the next weight sync (separate_async): old log-probs are still those of step 0.
    assert worker.prepare_self_teacher(0) == {"is_policy": True, "age": 0}
    assert worker.prepare_self_teacher(1) == {"is_policy": False, "age": 1}
    assert same(this.teacher_log_probs(), before_update), "teacher log-probs are those of its weights, bit for bit"
    policy_log_probs = this.log_probs()
    assert policy_log_probs is None or not torch.equal(policy_log_probs, before_update)
    assert same_bits(this.parameters(), after_one), "the policy is bit-identical after the pass"
    # -- the noise floor is the policy's, not the teacher's, and far smaller than what one update moves
    again = this.log_probs_again()
    if again is not None:
        noise = (again - policy_log_probs).abs().max()
        assert noise < 0.2 * (before_update - policy_log_probs).abs().max(), f"noise {noise}"
        assert half_precision or noise < 1e-4, f"noise {noise}"
    cost = worker.self_teacher_cost()
    assert cost["host_bytes"] == told["host_bytes"] and cost["seconds"] > 0
    assert cost["peak_bytes"] == 0, "on a CPU no device has a peak"
    if engine.is_param_offload_enabled and engine_name == "megatron":
        assert not holds_storage(this), "and offloaded again"
        # What would crash the process otherwise, outside of the engine's eval_mode():
        with expect_error(RuntimeError, "offloaded"):
            this.live()

    check_exceptions(this, after_one, before_update)

    # -- the refresh is due after every second step, and only then
    teacher = worker.self_teacher
    assert not teacher.follow_due(1) and teacher.follow_due(2) and teacher.follow_due(3)
    assert worker.prepare_self_teacher(2) == {"is_policy": True, "age": 0}
    assert same(this.teacher_log_probs(), this.log_probs())
    this.update()

    # -- the next optimizer step is the same with and without a pass in between
    after_two = this.parameters()
    twin = Rank(directory, engine_name, overrides, with_teacher=False)
    twin.update()
    twin.update()
    assert same_bits(after_two, twin.parameters()), "teacher passes must not change what the optimizer does"

    # -- contexts with other prompts: equal to an independent forward of the unsharded model over [context | response]
    full_teacher = full_model(this, lora)
    for context in ("plain", str(directory / "context.jinja")):
        this.init_teacher(context=context)
        got = this.teacher_log_probs()
        if got is not None:
            expected = torch.cat(independent_log_probs(full_teacher, worker.teacher_pass.context, this.data))
            tolerance = 1e-1 if half_precision else 1e-4
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
        assert same_bits(this.parameters(), after_two)

    check_skipped_rows(this, half_precision)
    check_one_pass([Rank(directory, engine_name, overrides) for _ in range(2)], half_precision)

    check_checkpoint(this, directory / f"ckpt_{os.getpid() if this.world_size == 1 else os.environ['MASTER_PORT']}")
    check_other_weights(this, lora)

    # -- what does not fit is named
    this.init_teacher(context="plain")
    model_config, engine_config = worker.actor.model_config, worker.actor.engine_config
    model_config.hf_config.max_position_embeddings = 20
    with expect_error(ValueError, "max_position_embeddings allows 20"):
        this.teacher_log_probs()
    model_config.hf_config.max_position_embeddings = 512
    if engine_config.use_dynamic_bsz:
        budget, parts = engine_config.infer_max_token_len_per_gpu, this.world_size // this.num_dp
        engine_config.infer_max_token_len_per_gpu = 20
        with expect_error(ValueError, f"allows {20 * parts}"):
            this.teacher_log_probs()
        engine_config.infer_max_token_len_per_gpu = budget
    model_config.processor, model_config.hf_config.rope_scaling = object(), {"mrope_section": [8, 12, 12]}
    with expect_error(ValueError, "vision-language); only algorithm.cast.teacher.context=same"):
        this.init_teacher(context="plain")
    this.init_teacher(context="same")
    model_config.processor, model_config.hf_config.rope_scaling = None, None

    # -- an exception inside a module's forward, where FSDP has parameters gathered: last, since it leaves FSDP there.
    # (Not with pipeline stages, where the next stage would wait for this one: see check_one_rank_fails.)
    if not pipelined:
        this.init_teacher(context="same")
        this.update()
        moved = this.parameters()
        fail_in_a_layer(this)
        live = None if engine.is_param_offload_enabled else this.live()
        with expect_error(RuntimeError, "injected in a layer"):
            this.teacher_log_probs()
        live = live or this.parameters()
        assert same_bits(live, moved), "an exception inside a layer leaves the policy's shards as they were"
    assert not [name for name in sys.modules if ".privileged" in name], "no code of a privileged teacher"
    print(f"rank {this.rank}: all laws hold for {engine_name} on {this.world_size} rank(s)")


def holds_storage(this: Rank) -> bool:
    """Whether the engine's parameters have memory; Megatron's offloaded ones have none."""
    module = this.engine.module
    chunks = module if isinstance(module, list) else [module]
    return any(p.untyped_storage().size() > 0 for chunk in chunks for p in chunk.parameters() if p.requires_grad)


def check_exceptions(this: Rank, policy: dict, teacher_log_probs: torch.Tensor | None) -> None:
    """Raised on every rank: instead of the forward, and while the weights are changing places."""
    teacher, engine = type(this.worker.self_teacher), this.engine
    stock_infer, stock_exchange = engine.infer_batch, teacher._exchange

    def broken_forward(*args, **kwargs):
        assert not same_bits(this.live(), policy), "the fault must hit while the teacher is in"
        raise RuntimeError("injected in the forward")

    engine.infer_batch = broken_forward
    with expect_error(RuntimeError, "injected in the forward"):
        this.teacher_log_probs()
    engine.infer_batch = stock_infer
    assert same_bits(this.parameters(), policy), "an exception in the forward leaves the policy as it was"

    calls = []

    def failing_exchange(live, host):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("injected in the swap")
        stock_exchange(live, host)

    if len(policy) >= 3:
        teacher._exchange = staticmethod(failing_exchange)
        with expect_error(RuntimeError, "injected in the swap"):
            this.teacher_log_probs()
        teacher._exchange = staticmethod(stock_exchange)
    assert same_bits(this.parameters(), policy), "an exception in the middle of the swap leaves the policy as it was"
    assert same(this.teacher_log_probs(), teacher_log_probs), "and the teacher"


def fail_in_a_layer(this: Rank) -> None:
    module = this.engine.module
    chunks = module if isinstance(module, list) else [module]
    layers = [m for c in chunks for m in c.modules() if type(m).__name__.endswith(LAYERS)]

    def raise_in_layer(*args):
        raise RuntimeError("injected in a layer")

    layers[-1].mlp.register_forward_pre_hook(raise_in_layer)


def check_checkpoint(this: Rank, directory: Path) -> None:
    """A restored teacher computes the same bits; a missing or foreign one is named; verl's pruning takes it along."""
    worker = this.worker
    directory.mkdir(exist_ok=True)
    this.init_teacher(context="same", refresh_interval=10)
    snapshot_log_probs = this.teacher_log_probs()
    this.update()
    older, saved = directory / "global_step_2" / "actor", directory / "global_step_3" / "actor"
    worker.save_checkpoint(str(older), None, 2, 2)
    worker.save_checkpoint(str(saved), None, 3, 2)
    policy_log_probs = this.log_probs()

    # -- a disk that is full: the teacher's file fails before verl's save, which would begin with removing the oldest
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    stock_save, torch.save = torch.save, full_disk
    with expect_error(OSError, "No space left"):
        worker.save_checkpoint(str(directory / "global_step_4" / "actor"), None, 4, 2)
    torch.save = stock_save
    assert teacher_file(this, saved).exists() and teacher_file(this, older).exists()

    this.update()
    worker.load_checkpoint(str(saved))
    this.init_teacher(completed_steps=3, context="same", refresh_interval=10)
    assert worker.prepare_self_teacher(3) == {"is_policy": False, "age": 3}
    assert same(this.log_probs(), policy_log_probs)
    assert same(this.teacher_log_probs(), snapshot_log_probs), "a resumed teacher gives the same bits"
    with expect_error(RuntimeError, "its weights is 'snapshot', this run's is 'ema'"):
        this.init_teacher(completed_steps=3, context="same", weights="ema")

    # -- the next save prunes the oldest checkpoint, with the teacher in it
    torch.distributed.barrier()
    worker.save_checkpoint(str(directory / "global_step_5" / "actor"), None, 5, 2)
    torch.distributed.barrier()
    assert not older.exists() or not list(older.glob("*")), "verl prunes the directory as a whole"
    assert teacher_file(this, saved).exists()
    saved = directory / "global_step_5" / "actor"
    worker._resumed_from = str(saved)

    file = teacher_file(this, saved)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with expect_error(RuntimeError, "cannot be restored"):
        this.init_teacher(completed_steps=5, context="same")
    file.rename(file.with_name(file.name.replace(f"world_size_{this.world_size}", "world_size_9")))
    torch.distributed.barrier()
    with expect_error(FileNotFoundError, "another number of ranks (cast_self_teacher_world_size_9_rank_0.pt)"):
        this.init_teacher(completed_steps=5, context="same")
    with expect_error(FileNotFoundError, "missing_state=snapshot"):
        this.init_teacher(completed_steps=5, context="same")
    this.init_teacher(completed_steps=5, context="same", missing_state="snapshot")
    assert same(this.teacher_log_probs(), this.log_probs())
    worker._resumed_from = None


def teacher_file(this: Rank, directory: Path) -> Path:
    return directory / f"cast_self_teacher_world_size_{this.world_size}_rank_{this.rank}.pt"


def check_other_weights(this: Rank, lora: bool) -> None:
    """`ema`, `initial` and `current`."""
    worker, decay = this.worker, EMA_DECAY

    # -- ema: an average in float32 that moves once a training step, saved and restored
    expected = {name: tensor.double() for name, tensor in this.parameters().items()}
    this.init_teacher(weights="ema", ema_decay=decay, context="same")
    assert worker.prepare_self_teacher(0) == {"is_policy": True, "age": None}
    for step in (1, 2):
        this.update()
        if step == 1:  # a second update before the next weight sync: old log-probs are still those of step 0
            assert worker.prepare_self_teacher(0) == {"is_policy": True, "age": None}
        assert worker.prepare_self_teacher(step) == {"is_policy": False, "age": None}
        assert worker.prepare_self_teacher(step) == {"is_policy": False, "age": None}, "once a step"
        for name, tensor in this.parameters().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    policy = this.parameters()
    for name, tensor in swapped_in_parameters(this).items():
        torch.testing.assert_close(
            tensor.double(), expected[name], rtol=1e-2 if tensor.itemsize == 2 else 1e-5, atol=1e-7
        )
    assert not same_bits(swapped_in_parameters(this), policy)
    restored = type(worker.self_teacher)(worker.self_teacher.config, this.engine.module)
    with this.engine.eval_mode():
        restored.load_state_dict(worker.self_teacher.state_dict())
    assert same_bits(restored.state_dict()["parameters"], worker.self_teacher.state_dict()["parameters"])
    assert same_bits(restored.state_dict()["average"], worker.self_teacher.state_dict()["average"])
    assert not restored.follow_due(2) and restored.follow_due(3)
    assert same_bits(this.parameters(), policy)

    # -- initial: the weights that the run started with; under LoRA the base model, without a copy
    told = this.init_teacher(weights="initial", context="same")
    assert (told["host_bytes"] == 0) == lora
    # (With LoRA this policy's adapter is no longer new, but nothing of an earlier run is asked of the worker here.)
    at_start = this.log_probs(no_lora_adapter=lora)
    this.update()
    assert worker.prepare_self_teacher(50) == {"is_policy": False, "age": 50}
    assert same(this.teacher_log_probs(), at_start)
    now = this.log_probs()
    assert now is None or not torch.equal(now, at_start)

    # -- current holds nothing and is the policy at every step
    assert this.init_teacher(weights="current", context="same")["host_bytes"] == 0
    this.update()
    assert worker.prepare_self_teacher(4) == {"is_policy": True, "age": 0}
    assert same(this.teacher_log_probs(), this.log_probs())


def swapped_in_parameters(this: Rank) -> dict[str, torch.Tensor]:
    with this.engine.eval_mode(), this.worker.self_teacher.swapped_in():
        return {name: tensor.clone() for name, tensor in this.live().items()}


def full_model(this: Rank, lora: bool):
    """The policy as one plain HF module, from the sharded parameters."""
    module = tiny.model(num_layers=this.worker.actor.model_config.hf_config.num_hidden_layers)
    if lora:
        from peft import LoraConfig, get_peft_model

        config = this.engine.module.peft_config["default"]
        module = get_peft_model(
            module, LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=list(config.target_modules))
        )
        parameters = {name: t.full_tensor() for name, t in this.engine.module.state_dict().items()}
    else:
        parameters = {name: tensor.clone() for name, tensor in this.engine.get_per_tensor_param()[0]}
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


def check_one_rank_fails(directory: Path, engine_name: str, overrides: list[str], point: str) -> None:
    """The last rank fails before, within or after the teacher's forward, or in saving it, and ends as a stopped run.

    It reports its own error; the others are in the middle of a collective, get an error from it when their peer is
    gone, and every rank's policy is bit-identical to before, and earlier checkpoints are whole.
    """
    this = Rank(directory, engine_name, overrides)
    this.init_teacher(context="plain")
    this.update()
    policy = this.parameters()
    live = this.live()
    fails_here = this.rank == this.world_size - 1
    steps = [directory / f"fault_{os.environ['MASTER_PORT']}" / f"global_step_{step}" / "actor" for step in (1, 2, 3)]
    if point == "saving":
        for step in steps[:2]:
            this.worker.save_checkpoint(str(step), None, 1, 2)
    if fails_here:
        if point == "saving":
            torch.save = None
        elif point == "before":
            this.worker.teacher_pass.context.prompt_ids = None
        elif point == "within":
            fail_in_a_layer(this)
        else:
            stock = this.worker.actor._postprocess_output

            def fail_after(*args, **kwargs):
                stock(*args, **kwargs)
                raise RuntimeError("injected after the forward")

            this.worker.actor._postprocess_output = fail_after
    try:
        if point == "saving":
            this.worker.save_checkpoint(str(steps[2]), None, 3, 2)
        else:
            this.teacher_log_probs()
        failed = None
        # The rank that is well asks for the next collective, as its next pass would.
        torch.distributed.barrier()
    except Exception as error:
        failed = error
    assert failed is not None
    assert ("injected" in str(failed) or "NoneType" in str(failed)) == fails_here, failed
    assert same_bits(live, policy), f"rank {this.rank}: a fault {point} the forward changed the policy"
    if point == "saving":
        assert all(teacher_file(this, step).exists() and len(list(step.glob("model*"))) == 2 for step in steps[:2])
    print(f"rank {this.rank}: {type(failed).__name__} {str(failed)[:200]}; the policy is as it was", flush=True)
    os._exit(0)  # what a dead peer leaves behind in gloo must not decide the exit status


if __name__ == "__main__":
    import verl  # noqa: F401  (loads the plugin and, with VERL_PLATFORM=cpu, the platform)

    torch.manual_seed(0)
    torch.set_num_threads(1)
    directory_, engine_, *arguments = sys.argv[1:]
    fault = [a.removeprefix("--fault=") for a in arguments if a.startswith("--fault=")]
    arguments = [a for a in arguments if not a.startswith("--fault=")]
    if fault:
        check_one_rank_fails(Path(directory_), engine_, arguments, fault[0])
    else:
        main(Path(directory_), engine_, arguments)
