"""Merges a verl checkpoint into a Hugging Face model, by verl's own merger.

The command is `python -m verl_cast.tools.evaluate.merge KIND CHECKPOINT CONFIG TARGET [--trust-remote-code]`. KIND is
fsdp or megatron; CONFIG is a directory with config and tokenizer. It runs in a separate process, because either merger
leaves much memory allocated. The merger for Megatron also starts a process group; it needs CUDA and TransformerEngine.

From LoRA shards, verl's merger writes the base model to TARGET and the adapter to TARGET/lora_adapter. Shards with the
adapter alone (`actor.checkpoint.save_lora_only`) have no base model: TARGET then holds only the adapter.
"""

import argparse
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoConfig
from verl.model_merger.base_model_merger import ModelMergerConfig
from verl.model_merger.fsdp_model_merger import FSDPModelMerger, merge_non_dtensor_shards
from verl.utils import hf_tokenizer


class ExactFSDPModelMerger(FSDPModelMerger):
    """verl's merger of FSDP1 and FSDP2 shards, without its rounding of every tensor to bfloat16."""

    @torch.no_grad()
    def _load_and_merge_state_dicts(self, world_size, total_shards, mesh_shape, mesh_dim_names):
        shards = [
            torch.load(
                Path(self.config.local_dir) / f"model_world_size_{world_size}_rank_{rank}.pt",
                map_location="cpu",
                weights_only=False,  # DTensors; a checkpoint is as trusted as the run that wrote it
                mmap=True,
            )
            for rank in range(total_shards)
        ]
        return {name: self._merge(name, [shard[name] for shard in shards]) for name in shards[0]}

    def _merge(self, name: str, parts: list[torch.Tensor]) -> torch.Tensor:
        if not isinstance(parts[0], DTensor):
            return merge_non_dtensor_shards(name, parts)
        # The last dimension of verl's meshes, ("fsdp",) and ("ddp", "fsdp"), is the sharded one.
        return self._merge_by_placement([part.to_local() for part in parts], parts[0].placements[-1])

    def save_hf_model_and_tokenizer(self, state_dict):
        if any("lora_" not in name for name in state_dict):
            return super().save_hf_model_and_tokenizer(state_dict)
        self.save_lora_adapter(state_dict)
        tokenizer = hf_tokenizer(self.hf_model_config_path, trust_remote_code=self.config.trust_remote_code)
        tokenizer.save_pretrained(self.config.target_dir)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("fsdp", "megatron"))
    parser.add_argument("checkpoint")
    parser.add_argument("config")
    parser.add_argument("target")
    parser.add_argument("--trust-remote-code", action="store_true")
    args = parser.parse_args()
    if args.kind == "fsdp":
        merger_class = ExactFSDPModelMerger
    else:
        from verl.model_merger.megatron_model_merger import MegatronModelMerger as merger_class
    hf_config = AutoConfig.from_pretrained(args.config, trust_remote_code=args.trust_remote_code)
    merger = merger_class(
        ModelMergerConfig(
            operation="merge",
            backend=args.kind,
            local_dir=args.checkpoint,
            target_dir=args.target,
            hf_model_config_path=args.config,
            tie_word_embedding=hf_config.tie_word_embeddings,
            trust_remote_code=args.trust_remote_code,
        )
    )
    merger.merge_and_save()
    merger.cleanup()


if __name__ == "__main__":
    main()
