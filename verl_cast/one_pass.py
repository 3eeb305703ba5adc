"""The gap formed inside the update: the actor's loss for steps without a pass for old log-probs (verl_cast/passes.py).

In the first and only update of a rollout batch log π_old is the log-prob that the update's own forward has just
computed, detached. With the teacher's log-probs and the trajectory's B beside it, each micro-batch's token advantages
follow (method sections 3 to 6), and verl's own loss goes on from there. What verl and the metrics want to know of the
old policy (log-probs, entropy) is kept for afterwards.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from verl.workers.utils.padding import no_padding_2_padding

from verl_cast.advantage import token_advantage
from verl_cast.base import BaseAdvantage
from verl_cast.config import MethodConfig
from verl_cast.rules import rule_of
from verl_cast.teacher_pass import SCORED_FIELD

# Fields of a row in TransferQueue: B, whether the response is correct; and, on a worker alone, its place in the batch.
BASE_FIELD, CORRECT_FIELD, ROW_FIELD = "cast_base", "cast_correct", "cast_row"
# What the engine hands back for the entropy that this loss computes.
ENTROPY = "cast_entropy"
# Logits that the entropy looks at together, bytes in float32. On an accelerator this bounds the memory that it takes
# while activations are held (their backward takes far more later); on a CPU they stay in its cache.
ENTROPY_BYTES, ENTROPY_BYTES_CPU = 2**26, 2**21
# Settings (of a model's config, or of Megatron's) that act in training only; the first are torch's and transformers'.
TRAINING_NOISE = ("dropout", "pdrop", "drop_rate", "drop_path", "layerdrop", "jitter")


class OnePassLoss:
    """A loss function for verl's engines, around the stock one, for one update.

    verl's engines call it with `model_output` (log_probs nested (b, L)) and `data` (nested responses, response_mask and
    teacher_log_probs, (b,) BASE_FIELD, CORRECT_FIELD, SCORED_FIELD and ROW_FIELD) of a micro-batch, and it returns the
    stock loss and metrics; before that, as its data ask for (`distillation_use_topk`), with the micro-batch's scaled
    logits (b, tokens, V), and it returns their entropies (b, tokens).

    Args:
        stock_loss: verl's own (`ppo_loss` with the actor's config).
        config: the method's settings.
        completed_steps: training steps before this one.
        gap_is_zero: teacher and policy are the same weights on the same tokens.
        entropy: (…, V) logits -> (…) nats; the engine's own function. None: the engine's output has the entropy.
        keeps_entropy: the stock loss itself wants the engine's entropy.

    Raises (when called):
        KeyError: the batch holds no teacher log-probs.
        ValueError: a log-probability that counts is NaN or infinite.
    """

    def __init__(
        self,
        stock_loss: Callable[..., tuple[torch.Tensor, dict]],
        config: MethodConfig,
        completed_steps: int,
        gap_is_zero: bool,
        entropy: Callable[[torch.Tensor], torch.Tensor] | None,
        keeps_entropy: bool,
    ):
        self._stock_loss = stock_loss
        self._config = config
        self._completed_steps = completed_steps
        self._gap_is_zero = gap_is_zero
        self._entropy = entropy
        self._keeps_entropy = keeps_entropy
        self._rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self,
        model_output: dict[str, torch.Tensor] | None = None,
        data: TensorDict | None = None,
        dp_group: Any = None,
        student_logits: torch.Tensor | None = None,
        data_format: str | None = None,
    ) -> Any:
        if student_logits is not None:
            return {ENTROPY: self._entropy_of(student_logits, data)}
        entropy = model_output.pop(ENTROPY) if self._entropy is not None else model_output["entropy"].detach()
        if self._entropy is None and not self._keeps_entropy:
            del model_output["entropy"]  # and with it its graph, before the backward
        self._keep(data, model_output["log_probs"].detach(), entropy)

        old_log_probs = no_padding_2_padding(model_output["log_probs"], data).detach()
        data = data.copy()
        data["old_log_probs"] = old_log_probs
        data["advantages"] = self._advantages(data, old_log_probs)
        return self._stock_loss(model_output=model_output, data=data, dp_group=dp_group)

    @torch.no_grad()
    def _advantages(self, data: TensorDict, old_log_probs: torch.Tensor) -> torch.Tensor:
        value, correct = data[BASE_FIELD], data[CORRECT_FIELD]
        unknown = torch.zeros_like(correct, dtype=torch.int64)  # kind and number of the group: no rule asks for them
        base = BaseAdvantage(value, unknown, unknown, correct)
        fields = ["response_mask"] if self._gap_is_zero else ["response_mask", "teacher_log_probs"]
        padded = data.select(*fields).to_padded_tensor()
        mask, teacher = padded["response_mask"], old_log_probs if self._gap_is_zero else padded["teacher_log_probs"]
        rule, scored = rule_of(self._config), data[SCORED_FIELD]
        return token_advantage(
            rule, base, mask, old_log_probs, teacher, self._config, self._completed_steps, scored
        ).advantages

    @torch.no_grad()
    def _entropy_of(self, logits: torch.Tensor, data: TensorDict) -> torch.Tensor:
        """(b, tokens) of logits (b, tokens, V), which are left as they are.

        Where all rows lie one after the other, those of the prompts are left out (0): nobody reads them.
        """
        logits = logits.detach()
        rows, tokens, vocabulary = logits.shape
        at_once = ENTROPY_BYTES_CPU if logits.device.type == "cpu" else ENTROPY_BYTES
        size = max(1, at_once // (4 * rows * vocabulary))

        def of(part: torch.Tensor) -> torch.Tensor:
            return torch.cat([self._entropy(piece).float() for piece in part.split(size, dim=1)], dim=1)

        if rows > 1 or tokens != data["input_ids"].values().shape[0]:  # padded, or a part of them (sequence parallel)
            return of(logits)
        entropy = torch.zeros(1, tokens, device=logits.device)
        for response in _predicting_responses(data):
            entropy[:, response] = of(logits[:, response])
        return entropy

    def _keep(self, data: TensorDict, log_probs: torch.Tensor, entropy: torch.Tensor) -> None:
        rows = zip(data[ROW_FIELD].tolist(), log_probs.unbind(), entropy.unbind(), strict=True)
        self._rows.update((row, (row_log_probs, row_entropy)) for row, row_log_probs, row_entropy in rows)

    def outputs(self, num_rows: int) -> TensorDict:
        """What verl's `compute_log_prob` would have returned before the update: log_probs and entropy, nested (B, L).

        Raises:
            RuntimeError: rows of the batch that no micro-batch held.
        """
        missing = num_rows - len(self._rows)
        if missing:
            raise RuntimeError(f"CAST: {missing} of {num_rows} responses took no part in the update.")
        columns = zip(*(self._rows[row] for row in range(num_rows)), strict=True)
        nested = (torch.nested.as_nested_tensor(list(column), layout=torch.jagged).cpu() for column in columns)
        return TensorDict(dict(zip(("log_probs", "entropy"), nested, strict=True)), batch_size=[num_rows])


def _predicting_responses(data: TensorDict) -> Iterator[slice]:
    """Where, in rows one after the other, the logits predict each response: one place before its tokens."""
    ends, lengths = data["input_ids"].offsets()[1:].tolist(), data["responses"].offsets().diff().tolist()
    return (slice(end - length - 1, end - 1) for end, length in zip(ends, lengths, strict=True))


def entropy_function(strategy: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from logits to entropies that verl's engine uses itself."""
    if strategy == "megatron":
        from verl.utils.megatron.tensor_parallel import vocab_parallel_entropy

        return vocab_parallel_entropy
    from verl.utils.torch_functional import entropy_from_logits

    return entropy_from_logits


def training_noise(engine: Any, hf_config: Any) -> list[str]:
    """What makes a forward in training mode another one than in evaluation mode: `name=value` of every such setting.

    Args:
        engine: verl's, initialized.
        hf_config: the model's config; parts of it (text, vision) are looked at too.
    """
    names = set(_noise_settings(hf_config.to_dict()))
    names |= set(_noise_settings(vars(engine.tf_config) if hasattr(engine, "tf_config") else {}))  # Megatron's
    for chunk in engine.module if isinstance(engine.module, list) else [engine.module]:
        for part in chunk.modules():
            if isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0:
                names.add(f"{type(part).__name__}={part.p}")
    return sorted(names)


def _noise_settings(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _noise_settings(value)
        elif any(word in str(key) for word in TRAINING_NOISE) and isinstance(value, int | float) and value > 0:
            yield f"{key}={value}"
