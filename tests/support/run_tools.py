"""Test tools inside real verl runs, loaded through VERL_USE_EXTERNAL_MODULES. They do not depend on CAST.

* The order of requests at the rollout engine must not make equal runs differ. So every response has its own sampling
  seed, and a batch is sorted by its content.
* With $CAST_DUMP_DIR set, the rows of every update are written to step_<n>.pt there, after the update.
"""

import os
import sys
import zlib
from uuid import uuid4

import torch
import wrapt
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

FIELDS = [
    "prompts",
    "responses",
    "response_mask",
    "rm_scores",
    "old_log_probs",
    "ref_log_prob",
    "teacher_log_probs",
    "advantages",
]


class SeededAgentLoop(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        text = f"{kwargs['raw_prompt']} {kwargs['session_id']} {kwargs['global_steps']}"
        return await super().run({**sampling_params, "seed": zlib.crc32(text.encode()) % 2**31}, **kwargs)


class PromptShownAgentLoop(SeededAgentLoop):
    """The reward function reads the prompt in its `extra_info`."""

    async def run(self, sampling_params, **kwargs):
        output = await super().run(sampling_params, **kwargs)
        output.extra_fields["prompt"] = self.tokenizer.decode(output.prompt_ids)
        return output


class TwoTurnAgentLoop(SeededAgentLoop):
    """The policy generates, a tool answers (its tokens have mask 0), and the policy generates again."""

    async def run(self, sampling_params, **kwargs):
        self.response_length //= 2  # limit of the first turn
        output = await super().run(sampling_params, **kwargs)
        self.response_length *= 2
        tool_ids = self.tokenizer.encode(f"[tool: {len(output.response_ids)}]")
        second = await self.server_manager.generate(
            request_id=uuid4().hex,
            prompt_ids=output.prompt_ids + output.response_ids + tool_ids,
            sampling_params={**sampling_params, "seed": zlib.crc32(bytes(str(output.response_ids), "ascii")) % 2**31},
        )
        room = self.response_length
        output.response_ids = (output.response_ids + tool_ids + list(second.token_ids))[:room]
        output.response_mask = (output.response_mask + [0] * len(tool_ids) + [1] * len(second.token_ids))[:room]
        if output.response_logprobs:
            log_probs = output.response_logprobs + [0.0] * len(tool_ids) + list(second.log_probs)
            output.response_logprobs = log_probs[:room]
        output.num_turns = 4
        return output


def _install(trainer_base):
    trainer = trainer_base.PPOTrainer
    balance_batch, step_once = trainer._balance_batch, trainer._step_once

    def read(batch, fields):
        return trainer_base.tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)

    def balance_batch_in_order_of_content(self, batch, *args, **kwargs):
        batch = balance_batch(self, batch, *args, **kwargs)
        data = read(batch, ["prompts", "responses"])
        content = [(data["prompts"][i].tolist(), data["responses"][i].tolist()) for i in range(len(batch))]
        batch.reorder(sorted(range(len(batch)), key=content.__getitem__))
        return batch

    def dumping_step_once(self, metrics, timing_raw, sample_batch_size):
        batch = step_once(self, metrics, timing_raw, sample_batch_size)
        directory = os.environ.get("CAST_DUMP_DIR")
        if directory:
            data = read(batch, FIELDS)
            rows = [{name: data[name][i].clone() for name in FIELDS if name in data} for i in range(len(batch))]
            os.makedirs(directory, exist_ok=True)
            path = f"{directory}/step_{self.global_steps}.pt"
            privileged = [name for name in sys.modules if ".privileged" in name]
            stored = [partition for partition, items in (trainer_base.tq.kv_list() or {}).items() if items]
            step = {"trainer": type(self).__name__, "rows": rows, "privileged": privileged, "stored": stored}
            torch.save(step, f"{path}.tmp")
            os.replace(f"{path}.tmp", path)
        return batch

    trainer._balance_batch = balance_batch_in_order_of_content
    trainer._step_once = dumping_step_once


wrapt.register_post_import_hook(_install, "verl.trainer.ppo.v1.trainer_base")
