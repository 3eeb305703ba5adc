"""Laws and costs of the self-teacher on one accelerator: `bash tests/run_gpu.sh`. Not a test.

Every part runs in a process of its own, so that one that fails leaves the others alone:

    laws     the engine laws (tests/support/engine_laws.py), a layout of engine and precision each
    noise    the engine's noise floor in bf16: the policy scored twice, and the teacher in the context `plain`
    swap     seconds of a refresh and of a swap, against plain copies between host and device
    step     seconds, peak memory and weights of a step: GRPO, CAST in one pass and in two

The model of the last three is made here, with Qwen3's architecture and about 0.5 billion parameters (on a CPU: tiny).
Its head is scaled so that its logits have the spread of a trained model's; noise depends on their size.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACTOR, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"
FSDP, MCORE = f"{ACTOR}.fsdp_config", f"{ACTOR}.megatron"
FSDP_BF16 = f"+{FSDP}.mixed_precision={{param_dtype:bf16,reduce_dtype:fp32,buffer_dtype:fp32}}"
OFFLOAD = (f"{FSDP}.param_offload=True", f"{FSDP}.optimizer_offload=True")
PACKED = (
    f"{MODEL}.use_remove_padding=True",
    f"{MODEL}.enable_gradient_checkpointing=True",
    f"{MODEL}.override_config.attn_implementation=flash_attention_2",
)
# layout: (engine, overrides, package that it needs)
LAYOUTS: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "fsdp2, float32": ("fsdp2", (), None),
    "fsdp2, float32, offload": ("fsdp2", OFFLOAD, None),
    "fsdp2, bf16": ("fsdp2", (FSDP_BF16,), None),
    "fsdp2, bf16, flash-attn": ("fsdp2", (FSDP_BF16, *PACKED), "flash_attn"),
    "fsdp, float32": ("fsdp", (f"{FSDP}.fsdp_size=1",), None),
    "fsdp, bf16": ("fsdp", (FSDP_BF16,), None),
    "megatron, float32": ("megatron", (), "megatron.core"),
    "megatron, bf16, offload": (
        "megatron",
        (f"{MCORE}.dtype=bfloat16", f"{MCORE}.param_offload=True", f"{MCORE}.optimizer_offload=True"),
        "megatron.core",
    ),
}
PACKAGES = ("vllm", "flash_attn", "megatron.core", "transformer_engine")
LIMIT = 240  # seconds of a part

# name of a size: hidden size, layers, vocabulary, response tokens, rows
SIZES = {"tiny": (64, 2, 300, 48, 4), "0.5b": (1024, 24, 151936, 1024, 8)}


def installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


# ------------------------------------------------------------------------------------------------- parts, in processes


def laws(directory: Path, layout: str) -> dict[str, Any]:
    import engine_laws

    engine, overrides, _ = LAYOUTS[layout]
    engine_laws.main(str(directory), engine, ",".join(engine_laws.LAWS), *overrides)
    return {"laws": len(engine_laws.LAWS)}


def made_model(directory: Path, size: str) -> None:
    """A model of this size in `directory`/made, and the tiny tokenizer beside it."""
    import tiny
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hidden, layers, vocabulary, *_ = SIZES[size]
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64),
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64 if hidden > 64 else 32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(4 / (0.02 * math.sqrt(hidden)))  # logits with a standard deviation of about 4
    model.save_pretrained(directory / "made")
    tiny.tokenizer().save_pretrained(directory / "made")


def made_rank(directory: Path, size: str) -> Any:
    """A `Rank` with the made model under FSDP2 in bf16, and a batch of long responses."""
    import torch
    from worker_rank import Rank, batch

    *_, vocabulary, length, rows = SIZES[size]
    attention = PACKED if installed("flash_attn") and on_accelerator() else ()
    overrides = [f"{MODEL}.path={directory / 'made'}", FSDP_BF16, *attention, f"{ACTOR}.optim.lr=1e-5"]
    rank = Rank(directory, "fsdp2", overrides)
    rank.data = batch(0, rows, torch.linspace(length // 2, length, rows).int().tolist(), vocabulary)
    return rank


def on_accelerator() -> bool:
    from verl.utils.device import get_device_name

    return get_device_name() != "cpu"


def noise(directory: Path, size: str) -> dict[str, Any]:
    """The 99 % quantile, in nats, of the gap between two scorings of the same tokens by the same weights."""
    this = made_rank(directory, size)
    this.init_teacher(context="plain")
    config = this.worker.actor.engine_config
    floors = {"same": (this.log_probs_again() - this.log_probs()).abs()}
    first = this.teacher_log_probs()
    config.infer_micro_batch_size_per_gpu = 1
    floors["plain"] = (this.teacher_log_probs() - first).abs()
    return {f"noise_p99_{name}": float(values.float().quantile(0.99)) for name, values in floors.items()} | {
        f"noise_mean_{name}": float(values.mean()) for name, values in floors.items()
    }


def swap(directory: Path, size: str) -> dict[str, Any]:
    import torch
    from verl.utils.device import get_device_id, get_device_name

    from verl_cast import TeacherConfig
    from verl_cast.teacher.weights import build_teacher

    on_device = get_device_name() != "cpu"
    device = torch.device(get_device_name(), get_device_id()) if on_device else torch.device("cpu")
    hidden, layers, *_ = SIZES[size]
    module = torch.nn.Module()
    for number in range(8 * layers):
        parameter = torch.nn.Parameter(torch.randn(2 * hidden, hidden, device=device))
        module.register_parameter(f"p{number}", parameter)
    shard = [parameter.detach() for parameter in module.parameters()]
    num_bytes = sum(tensor.nbytes for tensor in shard)

    def seconds(work: Callable[[], Any], rounds: int = 5) -> float:
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            work()
            if on_device:
                torch.accelerator.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    flat = torch.empty(num_bytes // 4, device=device)
    host = torch.empty(num_bytes // 4, pin_memory=on_device)
    to_device = seconds(lambda: flat.copy_(host, non_blocking=True))
    to_host = seconds(lambda: host.copy_(flat, non_blocking=True))
    found = {"shard_gib": num_bytes / 2**30, "to_device_gbs": num_bytes / to_device / 1e9}
    found["to_host_gbs"] = num_bytes / to_host / 1e9
    for pinned in (True, False):
        teacher = build_teacher(TeacherConfig(refresh_interval=1), module)
        teacher.pins_memory = pinned
        teacher.refresh(0)
        before = [tensor.clone() for tensor in shard]

        def in_and_out(teacher=teacher) -> None:
            teacher.policy_moved()
            with teacher.swapped_in():
                pass

        name = "pinned" if pinned else "pageable"
        found[f"refresh_{name}_seconds"] = seconds(lambda teacher=teacher: teacher.refresh(1))
        found[f"swap_{name}_seconds"] = seconds(in_and_out)
        found[f"swap_{name}_ratio"] = found[f"swap_{name}_seconds"] / (2 * (to_device + to_host))
        assert all(torch.equal(one, other) for one, other in zip(before, shard, strict=True)), "the policy is as it was"
    return found


def step(directory: Path, size: str) -> dict[str, Any]:
    """A step of GRPO, of CAST in one pass and in two: from the same weights, on the same rows."""
    import torch
    from verl.utils.device import get_torch_device

    from verl_cast import CastConfig, wire
    from verl_cast.advantage.base import MIXED, BaseAdvantage
    from verl_cast.advantage.cast import CastRule
    from verl_cast.advantage.compute import token_advantage

    this = made_rank(directory, size)
    device, rows = get_torch_device(), len(this.data)
    value = torch.tensor([0.7, -1.0, 1.0, -0.7]).repeat(-(-rows // 4))[:rows]
    base = BaseAdvantage(value, value > 0, torch.full((rows,), MIXED))
    lengths = this.data["responses"].offsets().diff()
    start = this.parameters()
    # From here on a teacher of its own weights: the swap takes part in every step.
    this.init_teacher(context="plain")

    def back_to_the_start() -> None:
        this.engine.optimizer.state.clear()
        with this.engine.eval_mode(), torch.no_grad():
            for name, tensor in this.live().items():
                tensor.copy_(start[name])
        this.worker.self_teacher.policy_moved()

    def advantages(old: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        mask = this.data["response_mask"].to_padded_tensor(0)
        padded = (this.nested(values).to_padded_tensor(0.0) for values in (old, teacher))
        shaped = token_advantage(CastRule(CastConfig()), base, mask, *padded).advantages
        return this.nested(torch.cat([row[:length] for row, length in zip(shaped, lengths, strict=True)]))

    def grpo() -> torch.Tensor | None:
        old = this.log_probs()
        flat = torch.repeat_interleave(value, lengths)
        this.update(old_log_probs=this.nested(old), advantages=this.nested(flat))
        return None

    def one_pass() -> torch.Tensor:
        teacher = this.teacher_log_probs()
        fields = {wire.BASE: base.value, wire.CORRECT: base.correct, wire.KIND: base.kind}
        fields[wire.SCORED] = torch.ones(rows, dtype=torch.bool)
        this.update_in_one_pass(**fields, teacher_log_probs=this.nested(teacher))
        return teacher - this.responses_of(this.log_probs_of_update()["log_probs"])

    def two_passes() -> torch.Tensor:
        old, teacher = this.log_probs(), this.teacher_log_probs()
        this.update(old_log_probs=this.nested(old), advantages=advantages(old, teacher))
        return teacher - old

    arms = {"grpo": grpo, "one_pass": one_pass, "two_passes": two_passes}
    times: dict[str, list[float]] = {name: [] for name in arms}
    peaks, gaps, weights = {}, {}, {}
    for round_number in range(3):  # the first one warms up
        for name, run in arms.items():
            back_to_the_start()
            if on_accelerator():
                device.reset_peak_memory_stats()
            started = time.perf_counter()
            gaps[name] = run()
            if on_accelerator():
                device.synchronize()
                peaks[name] = device.max_memory_allocated() / 2**30
            if round_number > 0:
                times[name].append(time.perf_counter() - started)
            if round_number == 0 and name != "grpo":
                weights[name] = this.parameters()
    seconds = {name: statistics.median(values) for name, values in times.items()}
    found: dict[str, Any] = {f"step_{name}_seconds": value for name, value in seconds.items()}
    found |= {f"step_{name}_ratio": seconds[name] / seconds["grpo"] for name in ("one_pass", "two_passes")}
    found |= {f"peak_{name}_gib": value for name, value in peaks.items()}
    one, two = gaps["one_pass"], gaps["two_passes"]
    found["gap_abs_mean"] = float(two.abs().mean())
    found["gap_one_pass_minus_two_abs_mean"] = float((one - two).abs().mean())
    found["gap_signs_that_differ"] = float((torch.sign(one) != torch.sign(two)).float().mean())
    pairs = [(one, weights["two_passes"][name]) for name, one in weights["one_pass"].items()]
    found["weights_one_pass_minus_two_abs_max"] = max(float((one - two).abs().max()) for one, two in pairs)
    found["weights_step_abs_max"] = max(
        float((start[name] - w).abs().max()) for name, w in weights["two_passes"].items()
    )
    return found


PARTS: dict[str, Callable[[Path, str], dict[str, Any]]] = {"noise": noise, "swap": swap, "step": step}


# -------------------------------------------------------------------------------------------------- all parts together


def run_part(arguments: list[str], environment: dict[str, str], log: Path) -> tuple[dict[str, Any] | None, str]:
    """What a part found, and its error where it failed."""
    with log.open("w") as file:
        try:
            done = subprocess.run(
                [sys.executable, __file__, *arguments],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
            )
            status = done.returncode
        except subprocess.TimeoutExpired:
            return None, f"not done after {LIMIT} s"
    text = log.read_text(errors="replace")
    if status == 0:
        return json.loads(text.rstrip().splitlines()[-1]), ""
    lines = text.rstrip().splitlines() or ["no output"]
    held = sum(line.startswith("law ") and ": holds" in line for line in lines)
    after = f" (after {held} laws that hold)" if held else ""
    error = next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])
    return None, f"{error[:200]}{after}; {log}"


def environment_of(device: str) -> dict[str, str]:
    rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    # The laws compare bits: kernels that add in any order would break them.
    repeatable = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
    platform_ = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    return {**os.environ, **rank, **repeatable, **(platform_ if device == "cpu" else {}), "HF_HUB_OFFLINE": "1"}


def described(device: str) -> dict[str, str]:
    import torch
    import verl

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("run_gpu: no NVIDIA GPU is visible (torch.cuda.is_available() is False). Use --device cpu.")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or 'CPU'}, no GPU"
    return {"device": name, "python": platform.python_version(), "torch": torch.__version__, "verl": verl.__version__}


def check_installed() -> None:
    from importlib.metadata import entry_points

    if not any(point.name == "cast" for point in entry_points(group="verl.plugins")):
        raise SystemExit("run_gpu: verl_cast is not installed in this environment: pip install --no-deps -e .")


def main() -> None:
    parser = argparse.ArgumentParser(prog="run_gpu.sh", description="Laws and costs of CAST on one accelerator.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), help="of the made model; default: 0.5b, on a CPU tiny")
    parser.add_argument("--layouts", nargs="*", choices=tuple(LAYOUTS), default=tuple(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    args = parser.parse_args()
    size = args.size or ("tiny" if args.device == "cpu" else "0.5b")
    check_installed()
    about = described(args.device)
    started = time.monotonic()
    table: list[tuple[str, str]] = []
    about |= {package: "installed" if installed(package) else "missing" for package in PACKAGES}
    numbers: dict[str, Any] = {"about": about, "size": size, "laws": {}, "skipped": {}, "failed": {}}

    print(f"run_gpu: {about}", flush=True)

    def note(name: str, text: str) -> None:
        table.append((name, text))
        print(f"[{time.monotonic() - started:4.0f} s] {name}: {text}", flush=True)

    directory = Path(tempfile.mkdtemp(prefix="run_gpu_"))
    import tiny

    tiny.write_for_engine_laws(directory)
    for layout in args.layouts:
        needs = LAYOUTS[layout][2]
        missing = needs if needs is not None and not installed(needs) else None
        if layout.startswith("megatron") and args.device == "cuda" and not installed("transformer_engine"):
            missing = missing or "transformer_engine"
        if layout.endswith("flash-attn") and args.device == "cpu":
            missing = "a GPU"
        if missing is not None:
            numbers["skipped"][f"laws: {layout}"] = f"{missing} is missing"
            note(f"laws: {layout}", f"skipped, {missing} is missing")
            continue
        arguments = ["--part", "laws", layout, str(directory)]
        found, problem = run_part(arguments, environment_of(args.device), directory / f"laws_{len(table)}.log")
        numbers["laws"][layout] = found is not None
        if found is None:
            numbers["failed"][f"laws: {layout}"] = problem
        note(f"laws: {layout}", f"FAILED: {problem}" if found is None else f"{found['laws']} hold")
    made_model(directory, size)
    for part in PARTS:
        arguments = ["--part", part, size, str(directory)]
        found, problem = run_part(arguments, environment_of(args.device), directory / f"{part}.log")
        if found is None:
            numbers["failed"][part] = problem
            note(part, f"FAILED: {problem}")
            continue
        numbers |= found
        for name, value in found.items():
            note(name, f"{value:.3g}")
    if args.device == "cpu":
        numbers["skipped"]["peak memory"] = "a CPU has no device memory"
        note("peak memory", "skipped, a CPU has no device memory")
    numbers["seconds"] = time.monotonic() - started
    print_table(about, size, table, numbers["seconds"])
    if args.out is not None:
        args.out.write_text(json.dumps(numbers, indent=1))
    sys.exit(1 if numbers["failed"] else 0)


def print_table(about: dict[str, str], size: str, table: list[tuple[str, str]], seconds: float) -> None:
    print(f"\n{about['device']}; {about}; model {size}; {seconds:.0f} s\n\n| what | found |\n|---|---|")
    for name, text in table:
        print(f"| {name} | {text} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part, what, directory_ = sys.argv[2:]
        work = {"laws": laws, **PARTS}[part]
        import torch
        import verl  # noqa: F401  (loads the plugin, and the CPU platform where it is asked for)

        torch.use_deterministic_algorithms(True, warn_only=True)
        print(json.dumps(work(Path(directory_), what)), flush=True)
        os._exit(0)
    main()
