"""Cost of the self-teacher's weights: seconds of a refresh, and of a swap in and out. Not a test.

    python tests/benchmarks/measure_snapshot.py [ROUNDS]

The parameters have the shapes of SmolLM2-135M in float32. With LoRA they are a rank-32 adapter on all linear layers.
The model computes nothing. Every round measures:
* a plain copy of the trainable shard into existing memory, which is the unit;
* a refresh of the snapshot;
* a move of the average;
* a swap in and out.

A swap in and out copies every byte four times, a refresh once.
"""

import argparse
import statistics
import time

import torch

from verl_cast import TeacherConfig
from verl_cast.teacher.shards import trainable_shards
from verl_cast.teacher.weights import SelfTeacher, build_teacher

LAYERS, HIDDEN, MLP, KEY_VALUE, VOCABULARY, RANK = 30, 576, 1536, 192, 49152, 32
LINEARS = {
    "q": (HIDDEN, HIDDEN),
    "k": (KEY_VALUE, HIDDEN),
    "v": (KEY_VALUE, HIDDEN),
    "o": (HIDDEN, HIDDEN),
    "gate": (MLP, HIDDEN),
    "up": (MLP, HIDDEN),
    "down": (HIDDEN, MLP),
}


def module(lora: bool) -> torch.nn.Module:
    """Parameters only, with the shapes and names of the real ones."""
    parameters = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in LINEARS.items():
            if lora:
                parameters[f"{layer}_{name}_a"] = torch.randn(RANK, columns)
                parameters[f"{layer}_{name}_b"] = torch.randn(rows, RANK)
            else:
                parameters[f"{layer}_{name}"] = torch.randn(rows, columns)
        if not lora:
            parameters[f"{layer}_norm_1"] = torch.randn(HIDDEN)
            parameters[f"{layer}_norm_2"] = torch.randn(HIDDEN)
    if not lora:
        parameters["embedding"] = torch.randn(VOCABULARY, HIDDEN)
        parameters["norm"] = torch.randn(HIDDEN)
    result = torch.nn.Module()
    for name, tensor in parameters.items():
        result.register_parameter(name, torch.nn.Parameter(tensor))
    return result


def swap(teacher: SelfTeacher) -> None:
    teacher.policy_moved()
    with teacher.swapped_in():
        pass


def measure(lora: bool, rounds: int) -> float:
    policy = module(lora)
    live = trainable_shards(policy)
    snapshot = build_teacher(TeacherConfig(refresh_interval=1), policy)
    average = build_teacher(TeacherConfig(weights="ema"), policy)
    for teacher in (snapshot, average):
        teacher.refresh(0)
    plain = {name: tensor.clone() for name, tensor in live.items()}
    before = {name: tensor.clone() for name, tensor in live.items()}
    work = {
        "plain copy of the shard": lambda: [plain[name].copy_(tensor) for name, tensor in live.items()],
        "refresh of the snapshot": lambda: snapshot.refresh(1),
        "move of the average": lambda: average.refresh(1),
        "swap in and out": lambda: swap(snapshot),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    assert all(torch.equal(before[name], tensor) for name, tensor in live.items()), "the policy is as it was"
    unit = statistics.median(seconds["plain copy of the shard"])
    mib = sum(tensor.nbytes for tensor in live.values()) / 2**20
    print(f"{'LoRA' if lora else 'full'}: {len(live)} tensors, {mib:.0f} MiB, {torch.get_num_threads()} threads")
    for name, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{1000 * min(times):.1f} to {1000 * max(times):.1f} ms"
        print(f"  {name:26s}{1000 * middle:9.1f} ms  ({spread})  {middle / unit:6.2f} x")
    return statistics.median(seconds["swap in and out"]) / mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=15)
    rounds = parser.parse_args().rounds
    full, lora = measure(False, rounds), measure(True, rounds)
    print(f"milliseconds of a swap for each MiB of the shard: full {1000 * full:.3f}, LoRA {1000 * lora:.3f}")


if __name__ == "__main__":
    main()
