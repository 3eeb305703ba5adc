"""log π of given responses after given prompts: a plain transformers forward, no training engine.

The model runs in float32 on a CPU and in the checkpoint's own dtype on a GPU. Logits are divided by the sampling
temperature (method section 3); logits and log-softmax are in float32. The responses to one prompt share its forward
(the key-value cache). Models whose state is no key-value cache (state-space models) are not supported.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from verl_cast.teacher.limits import max_positions
from verl_cast.tools.cli import UserError, first_line
from verl_cast.tools.run_parts import MODEL_KEY

SLICE = 1024  # tokens of a response at a time, for the memory of their logits


class Scorer:
    """The run's model, which scores responses.

    Args:
        setup: a `Setup`.

    Raises:
        UserError: transformers cannot load it.
    """

    def __init__(self, setup: Any):
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype, config = torch.float32 if self.device.type == "cpu" else "auto", setup.model_config
        try:
            model = AutoModelForCausalLM.from_pretrained(
                config.local_path, dtype=dtype, trust_remote_code=config.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{MODEL_KEY}={config.path} holds no causal language model that transformers can load; name one "
                f"({first_line(error)})"
            ) from error
        self.model: Any = model.to(self.device).eval()
        self.temperature = float(setup.rollout.temperature)

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
            scored += self._score(prompt, group)
        return scored

    @torch.inference_mode()
    def _score(self, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The prompt runs once; each response continues its cache, a slice at a time."""
        output = self.model(torch.tensor([prompt], device=self.device), use_cache=True, logits_to_keep=1)
        scored = []
        for response in responses:
            cache, last, values = copy.deepcopy(output.past_key_values), output.logits, []
            for ids in torch.tensor([response], device=self.device).split(SLICE, dim=1):
                logits = self.model(ids, past_key_values=cache, use_cache=True).logits
                shifted = torch.cat([last, logits[:, :-1]], dim=1)  # a token's log-prob is in the logits before it
                log_probs = torch.log_softmax(shifted.float() / self.temperature, dim=-1)
                values.append(log_probs.gather(-1, ids[..., None]).flatten())
                last = logits[:, -1:]
            scored.append(torch.cat(values).cpu().numpy())
        return scored
