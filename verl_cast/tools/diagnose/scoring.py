"""log π of given responses after given prompts: one plain transformers forward per batch, no training engine.

The model runs in float32 on a CPU and in the checkpoint's own dtype on a GPU. Logits are divided by the sampling
temperature (method section 3); logits and log-softmax are in float32. The responses to one prompt share its forward
(the key-value cache). Limits on the tokens and on the logits of a batch bound the memory.

Not supported: adapters that are not merged, and models whose state is no key-value cache (state-space models).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from verl_cast.teacher.limits import max_positions
from verl_cast.tools.cli import UserError

MAX_BATCH_TOKENS = 8192
MAX_LOGIT_BYTES = 2**29
_CHUNK = 256  # rows of logits that are normalized at a time


class Scorer:
    """A model that scores responses.

    Args:
        path: directory or hub name of a Hugging Face causal language model.
        temperature: of the sampling.
        pad_token_id: any token; padding is masked.
    """

    def __init__(self, path: str, temperature: float, pad_token_id: int, trust_remote_code: bool = False):
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if self.device.type == "cpu" else "auto"
        try:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise UserError(
                f"actor_rollout_ref.model.path={path} holds no causal language model that transformers can load; name "
                f"one ({str(error).strip().splitlines()[0]})"
            ) from error
        self.model: Any = model.to(self.device).eval()
        self.temperature = temperature
        self.pad_token_id = pad_token_id
        self.dtype = str(self.model.dtype).removeprefix("torch.")

    def log_probs(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], label: str, alone: bool = False
    ) -> list[np.ndarray]:
        """
        Args:
            prompts, responses: token ids of N rows; no prompt may be empty.
            label: of the progress bar.
            alone: every row in a batch of its own, without padding.

        Returns:
            N arrays (T,) float32, log π of every response token, in nats.

        Raises:
            UserError: a row is longer than the model allows.
        """
        lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
        limit = max_positions(self.model.config.get_text_config())
        if limit is not None and max(lengths, default=0) > limit:
            raise UserError(
                f"a context with its response is {max(lengths)} tokens long, but max_position_embeddings allows "
                f"{limit}; use a shorter context or a smaller data.max_response_length."
            )
        result: list[np.ndarray] = [np.zeros(0, np.float32)] * len(lengths)
        with tqdm(total=sum(lengths), desc=label, unit=" tokens", unit_scale=True, leave=False, disable=None) as bar:
            for rows in [[i] for i in range(len(lengths))] if alone else self._batches(prompts, responses):
                scored = self._score([prompts[i] for i in rows], [responses[i] for i in rows])
                for i, values in zip(rows, scored, strict=True):
                    result[i] = values
                bar.update(sum(lengths[i] for i in rows))
        return result

    def _batches(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[list[int]]:
        """Row numbers of every batch: rows with the same prompt and similar lengths, as many as the bounds allow."""
        vocabulary = self.model.config.get_text_config().vocab_size
        longest: dict[tuple, int] = {}  # by prompt, so that its responses stay together
        for p, r in zip(prompts, responses, strict=True):
            longest[tuple(p)] = max(longest.get(tuple(p), 0), len(r))
        order = sorted(
            range(len(prompts)), key=lambda i: (longest[tuple(prompts[i])], len(prompts[i]), tuple(prompts[i]))
        )
        batches: list[list[int]] = []
        prompt = response = 0
        for i in order:
            prompt, response = max(prompt, len(prompts[i])), max(response, len(responses[i]))
            size = len(batches[-1]) + 1 if batches else 1
            fits = (
                size * (prompt + response) <= MAX_BATCH_TOKENS and size * response * vocabulary * 4 <= MAX_LOGIT_BYTES
            )
            if batches and fits:
                batches[-1].append(i)
            else:
                batches.append([i])
                prompt, response = len(prompts[i]), len(responses[i])
        return batches

    @torch.inference_mode()
    def _score(self, prompts: list[Sequence[int]], responses: list[Sequence[int]]) -> list[np.ndarray]:
        """Score one batch. A prompt is run once for all its responses; logits are computed only for response tokens."""
        unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        of_prompt = {prompt: i for i, prompt in enumerate(unique)}
        rows = torch.tensor([of_prompt[tuple(prompt)] for prompt in prompts], device=self.device)
        prompt_ids, prompt_mask = self._padded(unique, left=True)
        output = self.model(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            position_ids=(prompt_mask.cumsum(dim=1) - 1).clamp_min(0),
            logits_to_keep=1,
            use_cache=True,
        )
        cache = output.past_key_values
        cache.batch_select_indices(rows)
        ids, mask = self._padded(responses, left=False)
        width = ids.shape[1]
        values = [self._gather(output.logits[rows], ids[:, :1])]  # from the prompt's last token
        start = prompt_mask.sum(dim=1)[rows, None]
        vocabulary = output.logits.shape[-1]
        stride = max(1, MAX_LOGIT_BYTES // (4 * vocabulary * len(responses)))
        for begin in range(0, width - 1, stride):
            end = min(begin + stride, width - 1)
            part = self.model(
                input_ids=ids[:, begin:end],
                attention_mask=torch.cat([prompt_mask[rows], mask[:, :end]], dim=1),
                position_ids=start + torch.arange(begin, end, device=self.device),
                past_key_values=cache,
                use_cache=True,
            )
            values.append(self._gather(part.logits, ids[:, begin + 1 : end + 1]))
        log_probs = torch.cat(values, dim=1).cpu().numpy()
        return [log_probs[i, : len(response)] for i, response in enumerate(responses)]

    def _padded(self, rows: Sequence[Sequence[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, (rows, longest); at least one column."""
        width = max(1, max(map(len, rows)))
        ids = torch.full((len(rows), width), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(len(row))
            ids[i, place] = torch.tensor(list(row), dtype=ids.dtype)
            mask[i, place] = 1
        return ids.to(self.device), mask.to(self.device)

    def _gather(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """log π of the tokens `ids` (N, T), from their logits (N, T, vocabulary), float32."""
        parts = zip(logits.flatten(0, 1).split(_CHUNK), ids.flatten().split(_CHUNK), strict=True)
        values = [
            torch.log_softmax(chunk.float() / self.temperature, dim=-1).gather(-1, of_chunk[:, None]).squeeze(-1)
            for chunk, of_chunk in parts
        ]
        return torch.cat(values).view_as(ids)
