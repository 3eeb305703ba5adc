"""Time that the plugin adds to `import verl`, in fresh processes, interleaved with and without it.

    python tests/benchmarks/measure_import.py [ROUNDS]

The script prints milliseconds of three things:
* the plugin's own import after `import verl` (the bound is 50);
* the same import after verl's modules of one kind of process, so that the plugin's hooks on them run too;
* the whole `import verl`, with and without the plugin.

Times are wall clock, except in the lines marked "own time". Those are process time, which other processes on the
machine disturb less.
"""

import argparse
import os
import statistics
import subprocess
import sys

PLUGIN_ALONE = """
import time, {modules}
start = time.{clock}()
import verl_cast.plugin
print(1000 * (time.{clock}() - start))
assert not verl_cast.plugin.problems
"""
# The modules with hooks that verl itself imports in each process. vLLM's server and its workers are left out.
PROCESSES = {
    "any process": "verl",
    "driver": "verl, verl.trainer.main_ppo, verl.utils.config",
    "TaskRunner": "verl, verl.trainer.main_ppo, verl.utils.config, verl.trainer.ppo.v1, verl.workers.engine_workers",
    "actor worker": "verl, verl.workers.engine_workers, verl.trainer.ppo.core_algos",
}
WHOLE = """
import time
start = time.perf_counter()
import verl
print(1000 * (time.perf_counter() - start))
"""


def milliseconds(code: str, policy: str, platform: str = "") -> float:
    env = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": policy, "VERL_PLATFORM": platform}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=7)
    rounds = parser.parse_args().rounds
    alone = PLUGIN_ALONE.format(modules="verl", clock="perf_counter")
    work = {
        "plugin": (alone, "none"),
        "plugin, VERL_PLATFORM=cpu": (alone, "none", "cpu"),
        "import verl, without": (WHOLE, "none"),
        "import verl, with": (WHOLE, "auto"),
    }
    for process, modules in PROCESSES.items():
        work[f"own time, {process}"] = (PLUGIN_ALONE.format(modules=modules, clock="process_time"), "none")
    series = {name: [] for name in work}
    for _ in range(rounds):
        for name, arguments in work.items():
            series[name].append(milliseconds(*arguments))
    for name, values in series.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:28s} {middle:8.1f} ms  ({low:.1f} to {high:.1f}, {rounds} processes)")
    ratio = statistics.median(series["import verl, with"]) / statistics.median(series["import verl, without"])
    print(f"ratio with / without         {ratio:8.3f}")


if __name__ == "__main__":
    main()
