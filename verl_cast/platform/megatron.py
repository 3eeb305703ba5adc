"""verl's Megatron engine without an accelerator: megatron-core 0.16.1 and vanilla mbridge 0.15.1 on gloo.

The engine is verl's own, unchanged. Two things would stop it: megatron-core and mbridge name "cuda" themselves, and
vanilla mbridge asks for TransformerEngine's layers. Each departure below runs when its module is imported. It first
checks the code that it changes, and has no effect outside its module. cpu.py installs the departures.

verl's workers import the engine wherever megatron-core is installed, even in runs with FSDP. So a changed seam raises
only when a Megatron engine is built.
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

# The transformer settings that a CPU requires. cpu_config.py also refuses masked_softmax_fusion=True.
TRANSFORMER_CONFIG = {"masked_softmax_fusion": False, "attention_backend": "local"}

# Seams that were found changed in this process.
_changed_seams: list[SeamChanged] = []


def see_the_cpu(module) -> None:
    """Make a module that allocates on "cuda", or asks torch.cuda for its device, use the CPU."""
    if expect_attribute(module, "torch") not in (torch, TORCH_ON_CPU):
        raise SeamChanged(
            f"verl_cast's CPU platform (VERL_PLATFORM=cpu) relies on {module.__name__}.torch being torch."
        )
    module.torch = TORCH_ON_CPU


def fuse_nothing(module) -> None:
    """megatron-core compiles its element-wise functions. Its own switch turns that off before they are defined."""
    expect_parameters(module, "disable_jit_fuser", [])()


def keep_random_states_on_cpu(module) -> None:
    """Make megatron's tracker of random states read and set the CPU's generator.

    Its own setter puts a lazy call into torch.cuda's queue. Without CUDA these calls are never made.
    """
    expect_parameters(module, "_get_cuda_rng_state", ["device", "clone", "graph_safe"])
    expect_parameters(module, "_set_cuda_rng_state", ["new_state", "device", "graph_safe"])
    expect_mentions(module.CudaRNGStatesTracker, "fork", "_get_cuda_rng_state", "_set_cuda_rng_state")

    def get_rng_state(device="cuda", clone=False, graph_safe=False):
        return torch.get_rng_state()

    def set_rng_state(new_state, device=-1, graph_safe=False):
        torch.set_rng_state(new_state)

    module._get_cuda_rng_state, module._set_cuda_rng_state = get_rng_state, set_rng_state
    # The tracker warns if the CPU's generator changes while it uses the GPU's. Here they are the same.
    logging.getLogger(module.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


def mask_by_causality_alone(module) -> None:
    """verl passes the attention a padding mask of shape (batch, length), which TransformerEngine ignores.

    megatron's own attention would read it as a mask of (query, key) pairs. Rows are padded on the right, so the causal
    mask already hides padding from all real tokens. The padding mask is dropped.
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
    """megatron refuses torch's norms with sequence parallelism, because they do not mark their weights.

    Only the mark is missing. It makes megatron sum the weights' gradients over the tensor-parallel ranks.
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
    """megatron's optimizers and gradient clipping recognise tensors by type names such as "torch.cuda.FloatTensor"."""
    for path, type_name in OPTIMIZERS_BY_MODULE[module.__name__]:
        *owners, name = path.split(".")
        owner = functools.reduce(expect_attribute, owners, module)
        expect_mentions(owner, name, "type", type_name)
        pass_for_cuda(owner, name)


def restore_float32_parameters(module) -> None:
    """The distributed optimizer restores float32 parameters in place. torch allows that only under `no_grad`."""
    optimizer = expect_attribute(module, "DistributedOptimizer")
    name = "_set_main_param_and_optimizer_states"
    stock = expect_parameters(optimizer, name, ["self", "model_param", "tensors"])
    expect_mentions(optimizer, name, "copy_")
    setattr(optimizer, name, torch.no_grad()(stock))


def restore_torchs_adam(module) -> None:
    """megatron's checkpoints expect an optimizer that counts steps per parameter group, as the ones for GPUs do.

    Here the optimizer is torch's Adam, which counts steps per parameter. Two things go wrong and are corrected:
    * To resume a run, megatron needs the optimizer's state. torch's Adam has none before its first step, so it is
      created as torch creates it.
    * After a load, Adam has the step count from before the load, in one tensor that all parameters share. Each of them
      would advance it. Here each parameter gets its own counter with the saved count.
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
    """Data-parallel ranks exchange loaded checkpoint shards as GPU tensors; here as CPU tensors."""
    for name in ("exchange_loaded_tensors_gather_rounds", "exchange_loaded_tensors_broadcast"):
        expect_mentions(module, name, "cuda")
        pass_for_cuda(module, name)


def leave_the_model_where_it_is(module) -> None:
    """mbridge moves the built model to the GPU, and megatron a tied embedding during the build. Here both stay."""
    expect_mentions(module, "get_model", "cuda", "current_device", "build_model")
    pass_for_cuda(module, "get_model")


def build_local_layers(module) -> None:
    """mbridge asks for TransformerEngine's layers; here it gets megatron's own, in plain torch."""
    stock = expect_attribute(module, "get_gpt_decoder_block_spec")
    bridge = expect_attribute(module, "LLMBridge")
    expect_mentions(
        bridge, "_get_transformer_layer_spec", "get_gpt_decoder_block_spec", "use_transformer_engine", "vp_stage"
    )

    @functools.wraps(stock)  # mbridge reads the signature
    def get_gpt_decoder_block_spec(config, use_transformer_engine, *args, **kwargs):
        return stock(config, False, *args, **kwargs)

    module.get_gpt_decoder_block_spec = get_gpt_decoder_block_spec


# Names of norms: modules of their own in local layers -> parts of a linear layer in TransformerEngine.
NORM_NAMES = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}


def name_norms_of_local_layers(module) -> None:
    """mbridge's tables of weight names have the norms of TransformerEngine's layers. Local layers use other names."""
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
    """Apply TRANSFORMER_CONFIG, so that users need not know which kernels a CPU lacks. Rank 0 prints it."""
    stock = expect_parameters(module, "mapping_string_to_attn_backend", ["args"])

    @functools.wraps(stock)
    def mapping_string_to_attn_backend(args):
        if torch.distributed.get_rank() == 0:
            settings = ", ".join(f"{key}={value}" for key, value in TRANSFORMER_CONFIG.items())
            print(f"[verl_cast] VERL_PLATFORM=cpu: megatron's transformer config gets {settings}")
        return stock({**args, **TRANSFORMER_CONFIG})

    module.mapping_string_to_attn_backend = mapping_string_to_attn_backend


def offload_on_leaving(module) -> None:
    """verl's engine offloads if `to` gets "cpu". Here that is also the device's name, so the engine would only load.

    Now `to` loads while a context of the engine is entered, and offloads in every other call. Offloading copies the
    parameters' buffer and frees its storage, as on an accelerator.
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
    """verl frees the old storage of a reference policy's offloaded parameters. Here they still use that storage."""
    expect_parameters(module, "_can_safely_resize_storage", ["tensor"])
    expect_mentions(module, "offload_megatron_model_to_cpu", "_can_safely_resize_storage")
    module._can_safely_resize_storage = lambda tensor: False


def allow_float32(module) -> None:
    """verl allows Megatron in half precision only. On a CPU, float32 is faster, and as exact as in FSDP runs."""
    config = expect_attribute(module, "McoreEngineConfig")
    stock = expect_parameters(config, "__post_init__", ["self"])
    expect_mentions(config, "__post_init__", "dtype", "bfloat16", "float16")

    @functools.wraps(stock)
    def post_init(self):
        dtype = self.dtype
        # verl's configs freeze a field once it is set.
        object.__setattr__(self, "dtype", "bfloat16" if dtype == "float32" else dtype)
        stock(self)
        object.__setattr__(self, "dtype", dtype)

    config.__post_init__ = post_init


def register_megatron_engine(module) -> None:
    """verl registers its Megatron engine for cuda only; here for the CPU too. The engine raises if a seam changed."""
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


# Modules that name "cuda" and that a dense language model uses.
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


# The engine imports mbridge after it has checked `_changed_seams`, so mbridge's departures raise at once.
DEPARTURES = tuple(
    (name, departure if name.startswith("mbridge.") else _reported_by_the_engine(departure))
    for name, departure in SEAMS
)
