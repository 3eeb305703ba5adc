"""The actor's loss in a one-pass update: it forms the gap itself (passes.py decides where).

In the first and only update of a rollout batch, log π_old is the log-prob that the update's own forward has just
computed, detached. The teacher's log-probs and the trajectory's B lie beside it, so that each micro-batch's token
advantages follow (sections 3 to 6). verl's loss does the rest. What verl and the metrics need of the old policy
(log-probs, entropy) is kept for afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict
from verl.workers.utils.padding import no_padding_2_padding

from verl_cast import wire
from verl_cast.advantage.base import BaseAdvantage
from verl_cast.advantage.compute import token_advantage
from verl_cast.advantage.rule import Rule
from verl_cast.training.entropy import EntropyFunction, entropy_of

# A row's place in this rank's part of the batch: the field that the worker adds.
ROW = "cast_row"
# The engine's name for the entropy that this loss computes.
ENTROPY = "cast_entropy"


@dataclass(eq=False)
class OnePassLoss:
    """A loss function for verl's engines, around the stock one, for one update.

    verl's engines call it with `model_output` (log_probs and entropy, nested (b, L)) and `data` (nested responses,
    response_mask and teacher_log_probs; (b,) B, correct, kind, scored and ROW) of a micro-batch. It returns the stock
    loss and metrics.

    Attributes:
        stock_loss: verl's own (`ppo_loss` with the actor's config).
        rule: the method in this step.
        gap_is_zero: teacher and policy are the same weights on the same tokens.
        keeps_entropy: the stock loss itself wants the engine's entropy.

    Raises (when called):
        KeyError: the batch holds no teacher log-probs.
        ValueError: a log-probability that counts is NaN or infinite.
    """

    stock_loss: Callable[..., tuple[torch.Tensor, dict]]
    rule: Rule
    gap_is_zero: bool
    keeps_entropy: bool
    _rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, init=False)

    def __call__(
        self,
        model_output: dict[str, torch.Tensor] | None = None,
        data: TensorDict | None = None,
        dp_group: Any = None,
    ) -> tuple[torch.Tensor, dict]:
        self._keep(data, model_output["log_probs"].detach(), self._entropy(model_output))

        old_log_probs = no_padding_2_padding(model_output["log_probs"], data).detach()
        data = data.copy()
        data["old_log_probs"] = old_log_probs
        data["advantages"] = self._advantages(data, old_log_probs)
        return self.stock_loss(model_output=model_output, data=data, dp_group=dp_group)

    def _entropy(self, model_output: dict[str, torch.Tensor]) -> torch.Tensor:
        """The policy's entropy, nested (b, L), without a graph."""
        entropy = model_output["entropy"].detach()
        if not self.keeps_entropy:
            del model_output["entropy"]  # and with it its graph, before the backward
        return entropy

    def _advantages(self, data: TensorDict, old_log_probs: torch.Tensor) -> torch.Tensor:
        fields = ["response_mask"] if self.gap_is_zero else ["response_mask", wire.TEACHER_LOG_PROBS]
        padded = data.select(*fields).to_padded_tensor()
        teacher_log_probs = old_log_probs if self.gap_is_zero else padded[wire.TEACHER_LOG_PROBS]
        base = BaseAdvantage(data[wire.BASE], data[wire.CORRECT], data[wire.KIND])
        mask, scored = padded["response_mask"], data[wire.SCORED]
        return token_advantage(self.rule, base, mask, old_log_probs, teacher_log_probs, scored).advantages

    def _keep(self, data: TensorDict, log_probs: torch.Tensor, entropy: torch.Tensor) -> None:
        rows = zip(data[ROW].tolist(), log_probs.unbind(), entropy.unbind(), strict=True)
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


@dataclass(eq=False)
class OnePassLossOnLogits(OnePassLoss):
    """The same where the stock loss needs no entropy: it is formed from the logits, and so has no graph.

    verl's engines call `process_logits` before the loss (patches/verl/0003b; on stock verl attach.py does).

    Attributes:
        entropy_function: the engine's own.
    """

    keeps_entropy: bool = field(default=False, init=False)
    entropy_function: EntropyFunction = field(kw_only=True)

    def process_logits(
        self, logits: torch.Tensor, data: TensorDict, data_format: str | None = None
    ) -> dict[str, torch.Tensor]:
        """From the micro-batch's scaled logits (b, tokens, V) to their entropies (b, tokens)."""
        return {ENTROPY: entropy_of(logits, data, self.entropy_function)}

    def _entropy(self, model_output: dict[str, torch.Tensor]) -> torch.Tensor:
        return model_output.pop(ENTROPY)
