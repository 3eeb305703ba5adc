"""verl's real actor worker on one rank, outside Ray, called as verl's trainer calls it. engine_laws.py uses it."""

import contextlib
import copy
import functools
import os
import tempfile
from pathlib import Path

import tiny
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from omegaconf import open_dict
from tensordict import TensorDict
from verl_run import ENGINES, merged

from verl_cast import wire

TEMPERATURE = 0.7
QUESTIONS = ["What is 1 + 2?", "And 3 + 4, then?", "5?", "What is 6 + 7 + 8 + 9?"]
LAYERS = ("DecoderLayer", "TransformerLayer")  # of transformers and of megatron

ACTOR = "actor_rollout_ref.actor"


def actor_config(directory: Path, engine: str, overrides: list[str]):
    return copy.deepcopy(_composed(directory, engine, tuple(overrides)))


@functools.cache
def _composed(directory: Path, engine: str, overrides: tuple[str, ...]):
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
                *merged(ENGINES[engine], list(overrides)),
            ],
        )
    with open_dict(config):
        config.actor_rollout_ref.actor.optim.total_training_steps = 10
    return config.actor_rollout_ref


def batch(
    dp_rank: int,
    num_rows: int = 4,
    lengths: list[int] | None = None,
    vocabulary: int | None = None,
    position_dimensions: int | None = None,
) -> TensorDict:
    """Rows as TransferQueue gives them to a worker. Data-parallel ranks differ in prompts, lengths and masks.

    Args:
        lengths: of the responses; None: short ones.
        vocabulary: of the responses' tokens; None: the tokenizer's.
        position_dimensions: of a model with multi-dimensional rope; verl gives text rows 4 equal ones. None: no such.
    """
    from verl.utils.tensordict_utils import nested_tensor_from_tensor_list

    tok = tiny.tokenizer()
    generator = torch.Generator().manual_seed(dp_rank)
    rows = []
    for i in range(num_rows):
        messages = [{"role": "user", "content": QUESTIONS[(i + dp_rank) % 4]}]
        prompt = torch.tensor(tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        length = lengths[i] if lengths else 3 + 4 * dp_rank + 2 * i
        response = torch.randint(4, vocabulary or len(tok), (length,), generator=generator)
        mask = torch.ones(length, dtype=torch.int64)
        if i == 1:
            mask[1] = 0  # a tool token
        rows.append((messages, prompt, response, mask))

    def nested(tensors):
        return torch.nested.as_nested_tensor(list(tensors), layout=torch.jagged)

    messages, prompts, responses, masks = zip(*rows, strict=True)
    advantages = [torch.randn(len(r), generator=generator) for r in responses]
    positions = [torch.arange(len(p) + len(r)) for p, r in zip(prompts, responses, strict=True)]
    if position_dimensions is None:
        positions = nested(positions)
    else:
        positions = [row.expand(position_dimensions, -1) for row in positions]
        positions = nested_tensor_from_tensor_list(positions, ragged_idx=2)
    data = TensorDict(
        {
            "prompts": nested(prompts),
            "responses": nested(responses),
            "response_mask": nested(masks),
            "loss_mask": nested(masks),
            "input_ids": nested(torch.cat([p, r]) for p, r in zip(prompts, responses, strict=True)),
            "position_ids": positions,
            "advantages": nested(advantages),
            wire.SCORED: torch.ones(num_rows, dtype=torch.bool),
        },
        batch_size=num_rows,
    )
    from tensordict import NonTensorStack
    from verl.utils import tensordict_utils as tu

    data["raw_prompt"] = NonTensorStack(*messages)
    tu.assign_non_tensor(data, temperature=TEMPERATURE)
    return data


class Rank:
    """The worker of this rank, and a batch of its own rows.

    Log-probs are None on ranks without outputs: all but the last pipeline stage and the first tensor-parallel rank.
    """

    def __init__(
        self, directory: Path, engine: str, overrides: list[str], with_teacher: bool = True, detached: bool = False
    ):
        from verl.experimental.separation.engine_workers import DetachActorWorker
        from verl.workers.engine_workers import ActorRolloutRefWorker

        from verl_cast.seams import has_hooks
        from verl_cast.training.attach import stock_worker
        from verl_cast.training.worker import with_self_teacher

        worker_cls = DetachActorWorker if detached else ActorRolloutRefWorker
        if with_teacher:  # on stock verl, or on a verl with the hooks (PYTHONPATH names its tree)
            worker_cls = with_self_teacher(worker_cls) if has_hooks() else stock_worker(worker_cls)
        self.directory, self.num_updates = directory, 0
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.worker = worker_cls(config=actor_config(directory, engine, overrides), role="actor")
        torch.manual_seed(0)  # a new LoRA adapter has random weights
        self.worker.init_model()
        self.engine = self.worker.actor.engine
        self.num_dp = self.engine.get_data_parallel_size()
        rope = self.worker.actor.model_config.hf_config.rope_parameters
        position_dimensions = 4 if "mrope_section" in rope else None
        self.data = batch(self.engine.get_data_parallel_rank(), position_dimensions=position_dimensions)

    def init_teacher(self, completed_steps=0, settings=None, **teacher):
        from verl_cast import CastConfig
        from verl_cast.teacher.context import load_template

        config = CastConfig.from_dict({"teacher": teacher, **(settings or {})})
        template = load_template(config.teacher.context)
        return self.worker.init_self_teacher(config, template, {}, completed_steps)

    def log_probs(self, **settings) -> torch.Tensor | None:
        from verl.utils import tensordict_utils as tu

        data = self.data.clone()
        tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=False, **settings)
        output = self.worker.compute_log_prob(data)
        return None if output is None else self.responses_of(output["log_probs"])

    def responses_of(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the response tokens, flat, from nested values of all tokens."""
        from verl.workers.utils.padding import response_from_nested

        return response_from_nested(values, self.data["response_mask"]).values().float()

    def teacher_log_probs(self, **fields) -> torch.Tensor | None:
        data = self.data.clone()
        for name, values in fields.items():
            data[name] = values
        output = self.worker.compute_teacher_log_probs(data)
        return None if output is None else output["teacher_log_probs"].values()

    def log_probs_again(self) -> torch.Tensor | None:
        output = self.worker.compute_log_probs_again(self.data.clone())
        return None if output is None else output["log_probs_again"].values()

    def handed_out(self, outputs: dict | None) -> dict:
        """Outputs that only some ranks hold. Like the trainer, it sends them to every rank of the same data."""
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
        """verl's update of the rank's batch. `fields` replaces fields such as old_log_probs and advantages."""
        data = self.data.clone()
        data.update(fields or {"old_log_probs": self.nested(self.handed_out(self.log_probs()))})
        self._assign_settings(data)
        self.worker.update_actor(data)
        self.num_updates += 1

    def update_in_one_pass(self, settings: dict | None = None, gap_is_zero: bool = False, **fields) -> None:
        """The update that forms the gap itself. `settings` replaces some of the usual settings."""
        data = self.data.clone()
        del data["advantages"]
        data.update(fields)
        asks = {wire.STAGE: wire.ONE_PASS, wire.COMPLETED_STEPS: 1, wire.GAP_IS_ZERO: gap_is_zero}
        self._assign_settings(data, **asks, **(settings or {}))
        self.worker.update_actor(data)

    def log_probs_of_update(self) -> TensorDict | None:
        from verl.utils import tensordict_utils as tu

        data = self.data.clone()
        tu.assign_non_tensor(data, **{wire.STAGE: wire.OF_UPDATE})
        return self.worker.compute_log_prob(data)

    def _assign_settings(self, data: TensorDict, **settings) -> None:
        from verl.utils import tensordict_utils as tu

        usual = {
            "calculate_entropy": False,
            "global_batch_size": len(self.data) * self.num_dp,
            "mini_batch_size": len(self.data) * self.num_dp,
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


def holds_storage(this: Rank) -> bool:
    """Whether the engine's parameters hold memory. Megatron's offloaded parameters hold none."""
    module = this.engine.module
    chunks = module if isinstance(module, list) else [module]
    return any(p.untyped_storage().size() > 0 for chunk in chunks for p in chunk.parameters() if p.requires_grad)


def fail_in_a_layer(this: Rank) -> None:
    module = this.engine.module
    chunks = module if isinstance(module, list) else [module]
    layers = [m for c in chunks for m in c.modules() if type(m).__name__.endswith(LAYERS)]

    def raise_in_layer(*args):
        raise RuntimeError("injected in a layer")

    layers[-1].mlp.register_forward_pre_hook(raise_in_layer)


def new_directory(parent: Path) -> Path:
    """The same on all ranks; no other call returns it."""
    name = [tempfile.mkdtemp(dir=parent) if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(name)
    return Path(name[0])


def teacher_file(this: Rank, directory: Path) -> Path:
    """Of the shard that this rank holds: the file of the lowest rank that holds it."""
    rank = this.worker._place.first_with_shard
    return directory / f"cast_self_teacher_world_size_{this.world_size}_rank_{rank}.pt"


def swapped_in_parameters(this: Rank) -> dict[str, torch.Tensor]:
    with this.engine.eval_mode(), this.worker.self_teacher.swapped_in():
        return {name: tensor.clone() for name, tensor in this.live().items()}


def full_model(this: Rank, lora: bool):
    """The policy as one plain HF module, from the sharded parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if lora:
        from peft import LoraConfig, get_peft_model

        config = this.engine.module.peft_config["default"]
        module = get_peft_model(
            AutoModelForCausalLM.from_pretrained(this.directory / "model", dtype=torch.float32),
            LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=list(config.target_modules)),
        )
        parameters = {name: t.full_tensor() for name, t in this.engine.module.state_dict().items()}
        module.load_state_dict({name: tensor.float() for name, tensor in parameters.items()}, strict=True)
        return module.eval()
    # Copies of what vLLM is sent: offloading takes the engine's storage away. Hugging Face's own loader reads the names
    # of tied embeddings, and of experts one by one.
    sent = this.engine.get_per_tensor_param()[0]
    parameters = {name: tensor.float().clone(memory_format=torch.contiguous_format) for name, tensor in sent}
    hf_config = AutoConfig.from_pretrained(this.directory / "model")
    model_class = type(AutoModelForCausalLM.from_config(hf_config))
    module, report = model_class.from_pretrained(
        None, config=hf_config, state_dict=parameters, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return module.float().eval()


@torch.no_grad()
def independent_log_probs(module, context, data) -> list[torch.Tensor]:
    """Log-probs of every response after the context's prompt, one row at a time, without verl's code."""
    result = []
    for i, messages in enumerate(data["raw_prompt"]):
        prompt = context.prompt_ids(getattr(messages, "data", messages), data["prompts"][i].tolist())
        ids = torch.tensor([prompt + data["responses"][i].tolist()])
        logits = module(ids).logits[0, len(prompt) - 1 : -1].float() / TEMPERATURE
        result.append(F.log_softmax(logits, -1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1))
    return result
