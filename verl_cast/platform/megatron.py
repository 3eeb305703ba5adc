"""verl's Megatron engine without an accelerator: megatron-core 0.16.1 and vanilla mbridge 0.15.1 on gloo.

The engine itself is verl's, unchanged. What stands in its way is that megatron-core and mbridge name "cuda" themselves,
and that vanilla mbridge asks for TransformerEngine's layers. The departures below (cpu.py installs them) are made when
the modules they concern are imported, reach no further than those modules, and first check what they change. verl's
workers import the engine wherever megatron-core is installed, so a seam that changed is reported by the engine, when it
is built, and not by a run that uses FSDP.
Left out: whatever needs TransformerEngine (Megatron-Bridge, packed sequences, context parallelism, FP8), fused kernels,
CUDA streams and graphs.
"""

import copy
import functools
import logging
import types
from collections.abc import Callable

import torch

from verl_cast.platform.cuda_names import TORCH_ON_CPU, pass_for_cuda
from verl_cast.platform.expect import expect_attribute, expect_mentions, expect_parameters
from verl_cast.seams import SeamChanged

# Transformer settings that a CPU leaves no choice about: cpu_config.py refuses other values where the user names them.
TRANSFORMER_CONFIG = {"masked_softmax_fusion": False, "attention_backend": "local"}

# Seams that were found changed in this process.
_changed_seams: list[SeamChanged] = []


def see_the_cpu(module) -> None:
    """Modules that allocate on "cuda" and ask torch.cuda for its device do so on the CPU."""
    if expect_attribute(module, "torch") not in (torch, TORCH_ON_CPU):
        raise SeamChanged(
            f"verl_cast's CPU platform (VERL_PLATFORM=cpu) relies on {module.__name__}.torch being torch."
        )
    module.torch = TORCH_ON_CPU


def fuse_nothing(module) -> None:
    """megatron-core compiles its element-wise functions; its own switch turns that off, before they are defined."""
    expect_parameters(module, "disable_jit_fuser", [])()


def keep_random_states_on_cpu(module) -> None:
    """The states that megatron's tracker puts in and takes out are those of the CPU's generator.

    Its setter goes through torch.cuda's queue of calls for later, which on a machine without CUDA are never made.
    """
    expect_parameters(module, "_get_cuda_rng_state", ["device", "clone", "graph_safe"])
    expect_parameters(module, "_set_cuda_rng_state", ["new_state", "device", "graph_safe"])
    expect_mentions(module.CudaRNGStatesTracker, "fork", "_get_cuda_rng_state", "_set_cuda_rng_state")

    def get_rng_state(device="cuda", clone=False, graph_safe=False):
        return torch.get_rng_state()

    def set_rng_state(new_state, device=-1, graph_safe=False):
        torch.set_rng_state(new_state)

    module._get_cuda_rng_state, module._set_cuda_rng_state = get_rng_state, set_rng_state
    # The tracker warns where the CPU's generator moves while it has the GPU's; here they are one.
    logging.getLogger(module.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


def mask_by_causality_alone(module) -> None:
    """verl gives the attention a mask of the rows' lengths, (batch, length), which TransformerEngine does not look at.

    megatron's own attention would take it for a mask of (query, key) pairs. Rows are padded on the right, so no token
    that counts sees padding, and causality is all the mask that is needed.
    """
    attention = expect_attribute(module, "DotProductAttention")
    parameters = ["self", "query", "key", "value", "attention_mask", "attn_mask_type", "attention_bias"]
    stock = expect_parameters(attention, "forward", [*parameters, "packed_seq_params"])

    @functools.wraps(stock)
    def forward(self, query, key, value, attention_mask=None, *args, **kwargs):
        if attention_mask is not None and attention_mask.dim() == 2:
            if (attention_mask[:, 1:] & ~attention_mask[:, :-1]).any():
                raise NotImplementedError(
                    "VERL_PLATFORM=cpu: megatron's attention got rows that are not padded on the right."
                )
            attention_mask = None
        return stock(self, query, key, value, attention_mask, *args, **kwargs)

    attention.forward = forward


def allow_norms_with_sequence_parallel(module) -> None:
    """megatron refuses torch's norms under sequence parallelism, as they do not mark their weights.

    The mark is all that is missing: it makes megatron sum their gradients over the tensor-parallel ranks.
    """
    norm = expect_attribute(module, "WrappedTorchNorm")
    parameters = ["cls", "config", "hidden_size", "eps", "persist_layer_norm", "zero_centered_gamma", "normalization"]
    stock = expect_parameters(norm, "__new__", parameters)
    expect_mentions(norm, "__new__", "sequence_parallel", "norm_cls")

    @functools.wraps(stock)
    def new(cls, config, *args, **kwargs):
        unmarked = copy.copy(config)
        unmarked.sequence_parallel = False
        result = stock(cls, unmarked, *args, **kwargs)
        for parameter in result.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return result

    norm.__new__ = new


def accept_optimized_cpu_tensors(module) -> None:
    """megatron's optimizers and its clipping recognise parameters and gradients by type names: "torch.cuda.…"."""
    for path, type_name in OPTIMIZERS_BY_MODULE[module.__name__]:
        *owners, name = path.split(".")
        owner = functools.reduce(expect_attribute, owners, module)
        expect_mentions(owner, name, "type", type_name)
        pass_for_cuda(owner, name)


def restore_float32_parameters(module) -> None:
    """The distributed optimizer restores float32 parameters in place, which torch allows outside of autograd only."""
    optimizer = expect_attribute(module, "DistributedOptimizer")
    name = "_set_main_param_and_optimizer_states"
    stock = expect_parameters(optimizer, name, ["self", "model_param", "tensors"])
    expect_mentions(optimizer, name, "copy_")
    setattr(optimizer, name, torch.no_grad()(stock))


def restore_torchs_adam(module) -> None:
    """megatron's checkpoints take the optimizer for one that counts its steps by parameter group, as GPUs have it.

    torch's Adam, which it has here, counts by parameter, and
    * has no state before its first step, when a run is resumed: megatron insists on one, so it is made, as torch does;
    * gets the count from before the restoration back, in one tensor for all parameters, each of which then advances it:
      here each gets a counter of its own, with the number that was saved.
    """
    optimizer = expect_attribute(module, "DistributedOptimizer")
    state_dict = expect_parameters(optimizer, "state_dict", ["self"])
    load_state_dict = expect_parameters(optimizer, "load_state_dict", ["self", "state_dict"])
    expect_mentions(optimizer, "state_dict", "step", "param_groups", "HAVE_APEX_OR_TE")
    expect_mentions(optimizer, "load_state_dict", "step", "param_groups", "HAVE_APEX_OR_TE", "state_dict_state")

    def set_steps(self, step: float):
        for state in self.optimizer.state.values():
            state["step"] = torch.tensor(step)

    @functools.wraps(state_dict)
    def initialized_state_dict(self):
        if not self.optimizer.state:
            self.init_state_fn(self.optimizer, self.config)
            set_steps(self, 0.0)
        return state_dict(self)

    @functools.wraps(load_state_dict)
    def load_state_dict_and_steps(self, state_dict):
        (step,) = {float(group["step"]) for group in state_dict["optimizer"]["param_groups"]}
        load_state_dict(self, state_dict)
        set_steps(self, step)

    optimizer.state_dict, optimizer.load_state_dict = initialized_state_dict, load_state_dict_and_steps


OPTIMIZERS_BY_MODULE = {
    "megatron.core.optimizer.clip_grads": [("clip_grad_by_total_norm_fp32", "torch.cuda.FloatTensor")],
    "megatron.core.optimizer.optimizer": [("Float16OptimizerWithFloat16Params.__init__", "torch.cuda.FloatTensor")],
    "megatron.core.optimizer.distrib_optimizer": [("DistributedOptimizer.__init__", "torch.cuda.BFloat16Tensor")],
}


def exchange_shards_on_cpu(module) -> None:
    """Data-parallel ranks give each other the shards of a checkpoint that they have read, through the GPU."""
    for name in ("exchange_loaded_tensors_gather_rounds", "exchange_loaded_tensors_broadcast"):
        expect_mentions(module, name, "cuda")
        pass_for_cuda(module, name)


def leave_the_model_where_it_is(module) -> None:
    """mbridge moves the model to the GPU after building it, and megatron a tied embedding in between."""
    expect_mentions(module, "get_model", "cuda", "current_device", "build_model")
    pass_for_cuda(module, "get_model")


def build_local_layers(module) -> None:
    """mbridge asks for TransformerEngine's layers; megatron has its own, in plain torch."""
    stock = expect_attribute(module, "get_gpt_decoder_block_spec")
    bridge = expect_attribute(module, "LLMBridge")
    expect_mentions(
        bridge, "_get_transformer_layer_spec", "get_gpt_decoder_block_spec", "use_transformer_engine", "vp_stage"
    )

    @functools.wraps(stock)  # mbridge reads the signature
    def get_gpt_decoder_block_spec(config, use_transformer_engine, *args, **kwargs):
        return stock(config, False, *args, **kwargs)

    module.get_gpt_decoder_block_spec = get_gpt_decoder_block_spec


# Norms that are parts of a linear layer of TransformerEngine, and modules of their own otherwise.
NORM_NAMES = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}


def name_norms_of_local_layers(module) -> None:
    """mbridge's tables of weight names know the norms of TransformerEngine's layers; local ones name them otherwise."""
    bridge = expect_attribute(module, "Bridge")
    stock = expect_parameters(bridge, "_weight_name_mapping_mcore_to_hf", ["self", "mcore_weights_name"])
    expect_mentions(bridge, "_weight_to_hf_format", "_weight_name_mapping_mcore_to_hf")

    @functools.wraps(stock)
    def weight_name_mapping_mcore_to_hf(self, mcore_weights_name):
        for local, fused in NORM_NAMES.items():
            known = {**self._MLP_MAPPING, **self._OTHER_MAPPING}
            if local in mcore_weights_name and not any(local.strip(".") in key for key in known):
                mcore_weights_name = mcore_weights_name.replace(local, fused)
        return stock(self, mcore_weights_name)

    bridge._weight_name_mapping_mcore_to_hf = weight_name_mapping_mcore_to_hf


def set_transformer_config(module) -> None:
    """TRANSFORMER_CONFIG, said on the screen of rank 0: the user need not know which kernels a CPU lacks."""
    stock = expect_parameters(module, "mapping_string_to_attn_backend", ["args"])

    @functools.wraps(stock)
    def mapping_string_to_attn_backend(args):
        if torch.distributed.get_rank() == 0:
            settings = ", ".join(f"{key}={value}" for key, value in TRANSFORMER_CONFIG.items())
            print(f"[verl_cast] VERL_PLATFORM=cpu: megatron's transformer config gets {settings}")
        return stock({**args, **TRANSFORMER_CONFIG})

    module.mapping_string_to_attn_backend = mapping_string_to_attn_backend


def offload_on_leaving(module) -> None:
    """verl's word for where to offload to, "cpu", is the device's own name here, so that its engine would only load.

    Entering a context of the engine loads; every other call with that word means to offload, and does: the parameters'
    buffer gives up its storage to a copy, as on an accelerator.
    """
    engine = expect_attribute(module, "MegatronEngine")
    stock = expect_parameters(engine, "to", ["self", "device", "model", "optimizer", "grad"])
    offloads = ("offload_megatron_model_to_cpu", "offload_megatron_optimizer")
    expect_mentions(engine, "to", *offloads, "load_megatron_model_to_gpu", "load_megatron_optimizer")

    @functools.wraps(stock)
    def to(self, device, model=True, optimizer=True, grad=True):
        if getattr(self, "entering_context", False):
            stock(self, device, model=model, optimizer=optimizer, grad=grad)
            return
        if model:
            module.offload_megatron_model_to_cpu(self.module)
        if optimizer and self.optimizer is not None:
            module.offload_megatron_optimizer(self.optimizer)

    def load_on_entering(context):
        enter = expect_parameters(context, "__enter__", ["self"])

        @functools.wraps(enter)
        def enter_loading(self):
            self.engine.entering_context = True
            try:
                return enter(self)
            finally:
                self.engine.entering_context = False

        context.__enter__ = enter_loading

    engine.to = to
    for name in ("EngineEvalModeCtx", "EngineTrainModeCtx"):
        load_on_entering(expect_attribute(module, name))


def free_no_storage_that_stays(module) -> None:
    """verl frees the storage of a reference policy's parameters once they are offloaded; here it is the same one."""
    expect_parameters(module, "_can_safely_resize_storage", ["tensor"])
    expect_mentions(module, "offload_megatron_model_to_cpu", "_can_safely_resize_storage")
    module._can_safely_resize_storage = lambda tensor: False


def allow_float32(module) -> None:
    """verl trains Megatron in half precision only; in float32 a CPU is faster, and as exact as its FSDP runs."""
    config = expect_attribute(module, "McoreEngineConfig")
    stock = expect_parameters(config, "__post_init__", ["self"])
    expect_mentions(config, "__post_init__", "dtype", "bfloat16", "float16")

    @functools.wraps(stock)
    def post_init(self):
        dtype = self.dtype
        # Its fields are frozen once they are set.
        object.__setattr__(self, "dtype", "bfloat16" if dtype == "float32" else dtype)
        stock(self)
        object.__setattr__(self, "dtype", dtype)

    config.__post_init__ = post_init


def register_megatron_engine(module) -> None:
    """verl registers its Megatron engine for cuda only. Here it also says which seams have changed, if any."""
    engine = expect_attribute(module, "MegatronEngineWithLMHead")
    registry = expect_attribute(module, "EngineRegistry")
    expect_parameters(registry, "register", ["model_type", "backend", "device", "vendor"])
    expect_mentions(engine, "_build_tf_config", "mapping_string_to_attn_backend")
    stock = engine.__init__

    @functools.wraps(stock)
    def init(self, *args, **kwargs):
        if _changed_seams:
            raise _changed_seams[0]
        stock(self, *args, **kwargs)

    engine.__init__ = init
    registry.register(model_type="language_model", backend="megatron", device="cpu")(engine)


# Modules that name "cuda" on the way of a dense language model.
_CORE = "megatron.core"
_NAMES_CUDA = (
    f"{_CORE}.dist_checkpointing.exchange_utils",
    f"{_CORE}.dist_checkpointing.mapping",
    f"{_CORE}.dist_checkpointing.strategies.filesystem_async",
    f"{_CORE}.dist_checkpointing.strategies.fully_parallel",
    f"{_CORE}.dist_checkpointing.strategies.state_dict_saver",
    f"{_CORE}.distributed.distributed_data_parallel",
    f"{_CORE}.distributed.param_and_grad_buffer",
    f"{_CORE}.models.common.embeddings.rotary_pos_embedding",
    f"{_CORE}.optimizer.clip_grads",
    f"{_CORE}.optimizer.distrib_optimizer",
    f"{_CORE}.optimizer.optimizer",
    f"{_CORE}.pipeline_parallel.p2p_communication",
    f"{_CORE}.pipeline_parallel.schedules",
    f"{_CORE}.tensor_parallel.layers",
    f"{_CORE}.tensor_parallel.mappings",
    f"{_CORE}.tensor_parallel.random",
    f"{_CORE}.tensor_parallel.utils",
    f"{_CORE}.transformer.utils",
    f"{_CORE}.utils",
    "mbridge.core.bridge",
    "mbridge.core.util",
    "verl.utils.megatron.tensor_parallel",
    "verl.utils.megatron_utils",
)
SEAMS = (
    *((name, see_the_cpu) for name in _NAMES_CUDA),
    *((name, accept_optimized_cpu_tensors) for name in OPTIMIZERS_BY_MODULE),
    (f"{_CORE}.dist_checkpointing.exchange_utils", exchange_shards_on_cpu),
    (f"{_CORE}.jit", fuse_nothing),
    (f"{_CORE}.optimizer.distrib_optimizer", restore_torchs_adam),
    (f"{_CORE}.optimizer.distrib_optimizer", restore_float32_parameters),
    (f"{_CORE}.tensor_parallel.random", keep_random_states_on_cpu),
    (f"{_CORE}.transformer.dot_product_attention", mask_by_causality_alone),
    (f"{_CORE}.transformer.torch_norm", allow_norms_with_sequence_parallel),
    ("mbridge.core.bridge", name_norms_of_local_layers),
    ("mbridge.core.llm_bridge", build_local_layers),
    ("mbridge.core.util", leave_the_model_where_it_is),
    ("verl.utils.megatron_utils", free_no_storage_that_stays),
    ("verl.utils.megatron_utils", set_transformer_config),
    ("verl.workers.config.engine", allow_float32),
    ("verl.workers.engine.megatron.transformer_impl", offload_on_leaving),
    ("verl.workers.engine.megatron.transformer_impl", register_megatron_engine),
)


def _reported_by_the_engine(departure: Callable[[types.ModuleType], None]) -> Callable[[types.ModuleType], None]:
    @functools.wraps(departure)
    def try_departure(module: types.ModuleType) -> None:
        try:
            departure(module)
        except SeamChanged as error:
            _changed_seams.append(error)

    return try_departure


# mbridge is imported by the engine alone, and by then it is too late to report.
DEPARTURES = tuple(
    (name, departure if name.startswith("mbridge.") else _reported_by_the_engine(departure))
    for name, departure in SEAMS
)
