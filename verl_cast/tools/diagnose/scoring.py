"""log π of given responses after given prompts: a plain transformers forward, no training engine.

The model runs in float32 on a CPU and in the checkpoint's own dtype on a GPU. Logits are divided by the sampling
temperature (method section 3); logits and log-softmax are in float32. The responses to one prompt share its forward
(the key-value cache). Models whose state is no key-value cache (state-space models) are not supported.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from verl_cast.teacher.limits import max_positions
from verl_cast.tools.cli import UserError, first_line

MAX_ROWS = 16  # responses to one prompt that share a batch
MAX_LOGITS = 2**27  # logits of a batch at a time, half a GiB in float32


class Scorer:
    """A model that scores responses.

    Args:
        path: directory or hub name of a Hugging Face causal language model.
        temperature: of the sampling.

    Raises:
        UserError: transformers cannot load it.
    """

    def __init__(self, path: str, temperature: float, trust_remote_code: bool = False):
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
                f"one ({first_line(error)})"
            ) from error
        self.model: Any = model.to(self.device).eval()
        self.temperature = temperature

    def log_probs(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]], label: str
    ) -> list[np.ndarray]:
        """
        Args:
            prompts: token ids of P prompts.
            responses: to each prompt, token ids of its responses; none may be empty.
            label: of the progress bar.

        Returns:
            for every response, in order, (T,) float32, log π of its tokens in nats.

        Raises:
            UserError: a prompt with its response is longer than the model allows.
        """
        longest = max(len(p) + max(map(len, group)) for p, group in zip(prompts, responses, strict=True))
        limit = max_positions(self.model.config.get_text_config())
        if limit is not None and longest > limit:
            raise UserError(
                f"a context with its response is {longest} tokens long, but max_position_embeddings allows {limit}; "
                "use a shorter context or a smaller data.max_response_length."
            )
        scored: list[np.ndarray] = []
        pairs = zip(prompts, responses, strict=True)
        for prompt, group in tqdm(pairs, total=len(prompts), desc=f"scoring ({label})", leave=False, disable=None):
            for start in range(0, len(group), MAX_ROWS):
                scored += self._score(prompt, group[start : start + MAX_ROWS])
        return scored

    @torch.inference_mode()
    def _score(self, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The prompt runs once; the responses continue its cache, a slice of their width at a time."""
        number, before = len(responses), len(prompt)
        output = self.model(torch.tensor([prompt], device=self.device), use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        cache.batch_repeat_interleave(number)
        rows = [torch.tensor(list(response), device=self.device) for response in responses]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        mask = torch.cat([mask.new_ones(number, before), mask], dim=1)
        values = [self._gather(output.logits.expand(number, -1, -1), ids[:, :1])]  # from the prompt's last token
        stride = max(1, MAX_LOGITS // (number * output.logits.shape[-1]))
        for begin in range(0, ids.shape[1] - 1, stride):
            end = min(begin + stride, ids.shape[1] - 1)
            part = self.model(
                ids[:, begin:end],
                attention_mask=mask[:, : before + end],
                position_ids=torch.arange(before + begin, before + end, device=self.device).expand(number, -1),
                past_key_values=cache,
                use_cache=True,
            )
            values.append(self._gather(part.logits, ids[:, begin + 1 : end + 1]))
        log_probs = torch.cat(values, dim=1).cpu().numpy()
        return [log_probs[i, : len(response)] for i, response in enumerate(responses)]

    def _gather(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """log π of the tokens `ids` (N, T), from their logits (N, T, vocabulary), float32."""
        log_probs = torch.log_softmax(logits.float() / self.temperature, dim=-1)
        return log_probs.gather(-1, ids[..., None]).squeeze(-1)
