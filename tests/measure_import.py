"""What the plugin adds to `import verl`: fresh processes, interleaved with and without it.

    python tests/measure_import.py [ROUNDS]

Prints the milliseconds of the plugin's own import on top of an imported verl (the bound is 50), and the whole
`import verl` with and without the plugin side by side.
"""

import os
import statistics
import subprocess
import sys

PLUGIN_ALONE = """
import time, verl
start = time.perf_counter()
import verl_cast.plugin
print(1000 * (time.perf_counter() - start))
assert not verl_cast.plugin.problems
"""
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
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    series = {"plugin": [], "plugin, VERL_PLATFORM=cpu": [], "import verl, without": [], "import verl, with": []}
    for _ in range(rounds):
        series["plugin"].append(milliseconds(PLUGIN_ALONE, "none"))
        series["plugin, VERL_PLATFORM=cpu"].append(milliseconds(PLUGIN_ALONE, "none", "cpu"))
        series["import verl, without"].append(milliseconds(WHOLE, "none"))
        series["import verl, with"].append(milliseconds(WHOLE, "auto"))
    for name, values in series.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:28s} {middle:8.1f} ms  ({low:.1f} to {high:.1f}, {rounds} processes)")
    ratio = statistics.median(series["import verl, with"]) / statistics.median(series["import verl, without"])
    print(f"ratio with / without         {ratio:8.3f}")


if __name__ == "__main__":
    main()
