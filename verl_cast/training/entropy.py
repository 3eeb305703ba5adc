"""The policy's entropy during a one-pass update: from the logits of its forward, without a graph.

verl's engines hand the logits to the loss function on request. The entropy is formed piece by piece, so that no second
tensor as large as the logits exists.
"""

from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDict

# From logits (..., V) to entropies (...), nats.
EntropyFunction = Callable[[torch.Tensor], torch.Tensor]

# Bytes of float32 logits in one piece. On an accelerator this bounds the memory that is taken while activations are
# held (their backward takes far more later); under tensor parallelism every piece costs three all-reduces. On a CPU a
# piece stays in its cache.
PIECE_BYTES, PIECE_BYTES_CPU = 2**28, 2**21


def entropy_function(strategy: str) -> EntropyFunction:
    """The function that verl's engine itself uses.

    Args:
        strategy: verl's name of the engine: fsdp, fsdp2 or megatron.
    """
    if strategy == "megatron":
        from verl.utils.megatron.tensor_parallel import vocab_parallel_entropy

        return vocab_parallel_entropy
    from verl.utils.torch_functional import entropy_from_logits

    return entropy_from_logits


@torch.no_grad()
def entropy_of(logits: torch.Tensor, data: TensorDict, function: EntropyFunction) -> torch.Tensor:
    """Entropies (b, tokens), nats, of logits (b, tokens, V), which are left as they are.

    Where all rows lie one after the other, the entropy of prompt tokens is left out (0): nobody reads it.

    Args:
        data: the micro-batch: nested input_ids and responses.
    """
    logits = logits.detach()
    rows, tokens, vocabulary = logits.shape
    at_once = PIECE_BYTES_CPU if logits.device.type == "cpu" else PIECE_BYTES
    size = max(1, at_once // (4 * rows * vocabulary))

    def of(part: torch.Tensor) -> torch.Tensor:
        return torch.cat([function(piece).float() for piece in part.split(size, dim=1)], dim=1)

    if rows > 1 or tokens != data["input_ids"].values().shape[0]:  # padded, or a part of them (sequence parallel)
        return of(logits)
    entropy = torch.zeros(1, tokens, device=logits.device)
    for response in _predicting_responses(data):
        entropy[:, response] = of(logits[:, response])
    return entropy


def _predicting_responses(data: TensorDict) -> Iterator[slice]:
    """Where, in rows one after the other, the logits predict each response: one place before its tokens."""
    ends, lengths = data["input_ids"].offsets()[1:].tolist(), data["responses"].offsets().diff().tolist()
    return (slice(end - length - 1, end - 1) for end, length in zip(ends, lengths, strict=True))
