"""verl's FSDP engines and torch's FSDP on gloo, without pinned memory."""

import functools
import types

import torch

from verl_cast.platform.expect import expect_attribute, expect_mentions, expect_parameters


def register_fsdp_engine(module) -> None:
    """verl registers its FSDP engine for cuda and npu only; here for the CPU too."""
    engine = expect_attribute(module, "FSDPEngineWithLMHead")
    registry = expect_attribute(module, "EngineRegistry")
    expect_parameters(registry, "register", ["model_type", "backend", "device", "vendor"])
    registry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")(engine)


def sync_fsdp1_states_on_cpu(module) -> None:
    """FSDP1 refuses to broadcast module states on the CPU, because NCCL cannot. gloo can. FSDP2 has no such check."""
    check = "_check_module_states_for_sync_module_states"
    expect_parameters(module, check, ["module_states"])
    expect_mentions(module, "_sync_module_params_and_buffers", check)
    setattr(module, check, lambda module_states: None)


def leave_fsdp1_reference_in_place(module) -> None:
    """verl makes FSDP1 offload a reference policy. Offloading pins memory, which needs an accelerator.

    On the CPU the parameters are already where they are used, so offloading is switched off.
    """
    name = "_init_param_handle_from_params"
    original = expect_parameters(module, name, ["state", "params", "fully_sharded_module"])
    expect_mentions(module, name, "cpu_offload", "offload_params")
    not_offloaded = expect_attribute(module, "CPUOffload")(offload_params=False)

    @functools.wraps(original)
    def init_param_handle_from_params(state, params, fully_sharded_module):
        state.cpu_offload = not_offloaded
        return original(state, params, fully_sharded_module)

    setattr(module, name, init_param_handle_from_params)


def offload_to_pageable_memory(module) -> None:
    """FSDP2 offloads reference policies, and actors with `offload_policy=True`, to pinned memory; here to pageable."""
    original = expect_parameters(module, "CPUOffloadPolicy", ["pin_memory"])
    expect_mentions(expect_attribute(module, "FSDPEngine"), "_build_fsdp_module", "CPUOffloadPolicy", "pin_memory")

    module.CPUOffloadPolicy = lambda pin_memory: original(pin_memory=False)


def leave_parameters_on_cpu(module) -> None:
    """verl moves parameters to the device before use. For FSDP1 it names that device "cpu:cpu", which is invalid."""
    expect_parameters(module, "load_fsdp_model_to_gpu", ["model"])
    module.load_fsdp_model_to_gpu = lambda model: None  # they are already there


def attend_across_ranks(module) -> None:
    """verl exchanges sequence shards for heads only in flash attention. With sdpa, a rank would see only its own shard.

    This adds the same exchange around transformers' sdpa. Position ids keep packed sequences apart, as in verl.
    """
    original = expect_parameters(
        module,
        "sdpa_attention_forward",
        ["module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "kwargs"],
    )
    interface = expect_attribute(module, "AttentionInterface")

    @functools.wraps(original)
    def sdpa_attention_forward(layer, query, key, value, attention_mask, *args, position_ids=None, **kwargs):
        from verl.utils import ulysses

        group = ulysses.get_ulysses_sequence_parallel_group()
        if group is None or position_ids is None:  # as in verl: layers without position ids are not sharded
            kwargs["position_ids"] = position_ids
            return original(layer, query, key, value, attention_mask, *args, **kwargs)
        if position_ids.dim() != 2 or kwargs.get("sliding_window") is not None:
            raise NotImplementedError(
                f"{type(layer).__name__} uses sliding-window attention or several position ids per token. With "
                "VERL_PLATFORM=cpu such a model cannot be trained with ulysses_sequence_parallel_size above 1."
            )
        repeats = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        query, key, value = (
            ulysses.gather_seq_scatter_heads(tensor, seq_dim=2, head_dim=1) for tensor in (query, key, value)
        )
        positions = [torch.empty_like(position_ids) for _ in range(group.size())]
        torch.distributed.all_gather(positions, position_ids.contiguous(), group=group)
        sequence = (torch.cat(positions, dim=-1) == 0).cumsum(-1)
        mask = (sequence[:, None, :, None] == sequence[:, None, None, :]).tril()
        no_head_groups = types.SimpleNamespace()  # replaces the layer: with it, sdpa would repeat the keys again
        output, weights = original(no_head_groups, query, key, value, mask, *args, **kwargs)
        return ulysses.gather_heads_scatter_seq(output, seq_dim=1, head_dim=2), weights

    interface.register("sdpa", sdpa_attention_forward)


DEPARTURES = (
    ("verl.workers.engine.fsdp.transformer_impl", register_fsdp_engine),
    ("verl.workers.engine.fsdp.transformer_impl", offload_to_pageable_memory),
    ("torch.distributed.fsdp._init_utils", sync_fsdp1_states_on_cpu),
    ("torch.distributed.fsdp._init_utils", leave_fsdp1_reference_in_place),
    ("verl.utils.fsdp_utils", leave_parameters_on_cpu),
    ("transformers.modeling_utils", attend_across_ranks),
)
