"""Tables and pictures of the study, from the raw results.

    python examples/study/results.py             writes the tables into README.md, and three pictures
    python examples/study/results.py --tables    the tables alone

A number is a difference from GRPO in percentage points: the mean over seeds, with the 95 % bootstrap interval over
seeds. Both arms of a difference saw the same problems.
"""

import argparse
import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from course import ARMS

from verl_cast.tools.stats import mean_interval

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
STUDIES = ("knows", "arithmetic", "arithmetic_long", "through_verl", "through_verl_loop")
OUTCOMES = {
    "course": lambda run: 100 * run["course"],
    "end": lambda run: 100 * run["held_out"][-1][1],
}
FITNESS = ("fit", "equal", "unfit")
DENSITIES = ("rare", "sparse", "medium", "dense")
CELLS = [f"{density}_{fitness}" for density in DENSITIES for fitness in FITNESS]


class Runs:
    """All runs of a study, by cell, arm and seed."""

    def __init__(self, lines: Sequence[str]):
        runs = [json.loads(line) for line in lines]
        self._found = {(run["cell"], run["arm"], run["seed"]): run for run in runs}
        self.seconds = sum(run["seconds"] for run in runs)

    @classmethod
    def read(cls, study: str) -> "Runs":
        path = HERE / "raw" / f"{study}.jsonl"
        return cls(path.read_text().splitlines() if path.exists() else [])

    def __len__(self) -> int:
        return len(self._found)

    def since(self, first_seed: int) -> "Runs":
        """The runs of this seed and later ones."""
        return Runs([json.dumps(run) for (_, _, seed), run in self._found.items() if seed >= first_seed])

    def of(self, cell: str, arm: str) -> dict[int, dict]:
        """Seed -> run. GRPO has no teacher: its runs stand under the fit context and hold for all."""
        cell = f"{density_of(cell)}_fit" if arm == "grpo" else cell
        return {seed: run for (c, a, seed), run in sorted(self._found.items()) if (c, a) == (cell, arm)}

    def cells(self) -> list[str]:
        return [cell for cell in CELLS if any(self.differences(cell, arm, OUTCOMES["course"]).size for arm in ARMS)]

    def rows(self) -> list[tuple[str, str]]:
        """(cell, arm) of every pair that has run; GRPO comes first."""
        return [(cell, arm) for cell in CELLS for arm in ARMS if any((c, a) == (cell, arm) for c, a, _ in self._found)]

    def differences(self, cell: str, arm: str, outcome: Callable[[dict], float]) -> np.ndarray:
        """(N,) the arm's outcome less GRPO's, for every seed that has both."""
        if arm == "grpo":
            return np.array([])
        return paired(self.of(cell, arm), self.of(cell, "grpo"), outcome)


def paired(ours: dict[int, dict], theirs: dict[int, dict], outcome: Callable[[dict], float]) -> np.ndarray:
    """(N,) ours less theirs, for every seed that both have."""
    return np.array([outcome(ours[seed]) - outcome(theirs[seed]) for seed in ours if seed in theirs])


def density_of(cell: str) -> str:
    return cell.rpartition("_")[0]


def interval(values: np.ndarray) -> tuple[float, float]:
    return mean_interval(values, seed=0)


def entry(differences: np.ndarray) -> str:
    """Bold where the interval leaves out 0."""
    if not differences.size:
        return ""
    mean = f"{differences.mean():+.1f}"
    if len(differences) == 1:
        return mean
    low, high = interval(differences)
    return f"{f'**{mean}**' if low > 0 or high < 0 else mean} ({low:+.1f}, {high:+.1f})"


def table(runs: Runs, outcome: str, arms: Sequence[str]) -> str:
    """A row a cell, a column an arm; GRPO's own mean stands first."""
    lines = ["| cell | seeds | GRPO | " + " | ".join(f"`{arm}`" for arm in arms) + " |"]
    lines.append("|---|---|---|" + "---|" * len(arms))
    for cell in runs.cells():
        value = OUTCOMES[outcome]
        grpo = np.array([value(run) for run in runs.of(cell, "grpo").values()])
        differences = [runs.differences(cell, arm, value) for arm in arms]
        counts = sorted({len(d) for d in differences if d.size})
        seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        entries = " | ".join(entry(d) for d in differences)
        lines.append(f"| {cell} | {seeds} | {grpo.mean():.1f} | {entries} |")
    return "\n".join(lines)


NO_TRUST = ("exact", "exact_deadzone", "no_flip", "zero_variance", "zero_variance_small")
TRUSTED = ("exact_trusted", "tenth_trusted", "tenth_deadzone_trusted", "small_trusted")
NO_TEACHER = ("wrong_third", "wrong_tenth")
CONTRAST = ("contrast", "contrast_trusted")
PRETRAINED = ("exact", "tenth_deadzone", "no_flip", "weights_only")
PRETRAINED_TRUSTED = ("tenth_trusted", "tenth_deadzone_trusted")
FRESH_FROM = 110  # the first seed that nobody had seen when `tenth_deadzone` was chosen
TABLES = {
    "knows start": lambda: start_table(),
    "knows course": lambda: table(Runs.read("knows"), "course", NO_TRUST),
    "knows end": lambda: table(Runs.read("knows"), "end", NO_TRUST),
    "knows dead zone": lambda: dead_zone_table(Runs.read("knows")),
    "knows trust": lambda: trust_table(Runs.read("knows")),
    "knows no teacher": lambda: both_outcomes({label(arm): (Runs.read("knows"), arm) for arm in NO_TEACHER}),
    "knows contrast": lambda: both_outcomes({label(arm): (Runs.read("knows"), arm) for arm in CONTRAST}),
    "knows weights": lambda: both_outcomes({label("weights_only"): (Runs.read("knows"), "weights_only")}),
    "arithmetic": lambda: pretrained_table(PRETRAINED, {"": "arithmetic", ", 30 steps": "arithmetic_long"}),
    "arithmetic trust": lambda: pretrained_table(PRETRAINED_TRUSTED, {"": "arithmetic"}),
    "through verl": lambda: verl_table(Runs.read("through_verl"), Runs.read("through_verl_loop")),
}


def both_outcomes(columns: dict[str, tuple[Runs, str]]) -> str:
    """Course and end beside one another. `columns`: heading -> the runs, and the arm that is compared with GRPO."""
    heads = ["cell", *(f"{name}, {outcome}" for name in columns for outcome in OUTCOMES)]
    cells = dict.fromkeys(cell for runs, _ in columns.values() for cell in runs.cells())
    rows = []
    for cell in cells:
        differences = [runs.differences(cell, arm, of) for runs, arm in columns.values() for of in OUTCOMES.values()]
        if any(values.size for values in differences):
            rows.append([cell, *map(entry, differences)])
    return markdown(heads, rows)


def trust_table(runs: Runs) -> str:
    """The arms with measured trust, and how often trust was given; where a cell lacks an arm, its entry is empty."""
    arms = [(arm, name) for arm in TRUSTED for name in OUTCOMES]
    heads = ["cell", "seeds", *(f"{label(arm)}, {name}" for arm, name in arms), "runs with a trusted step"]
    rows = []
    for cell in CELLS:
        found = runs.of(cell, TRUSTED[0])
        if not found:
            continue
        differences = [runs.differences(cell, arm, OUTCOMES[name]) for arm, name in arms]
        seeds = ", ".join(str(len(values)) for values in differences[:: len(OUTCOMES)])
        given = sum(any(run["trusted"]) for run in found.values())
        rows.append([cell, seeds, *map(entry, differences), f"{given} of {len(found)}"])
    return markdown(heads, rows)


def dead_zone_table(runs: Runs) -> str:
    """The arms with a small base and a dead zone, the chosen one also on the seeds that nobody had seen."""
    columns = {label(arm): (runs, arm) for arm in ("small_deadzone", "tenth_deadzone")}
    fresh = f"{label('tenth_deadzone')} from seed {FRESH_FROM} on"
    return both_outcomes(columns | {fresh: (runs.since(FRESH_FROM), "tenth_deadzone")})


def pretrained_table(arms: Sequence[str], studies: dict[str, str]) -> str:
    """A row a cell: GRPO's own outcomes, then every arm's differences from it, and how many seeds each arm has.

    Args:
        studies: what follows a cell's name -> the study.
    """
    heads = ["cell", "seeds", *(f"{label(arm)}, {outcome}" for arm in ("grpo", *arms) for outcome in OUTCOMES)]
    rows = []
    for suffix, study in studies.items():
        runs = Runs.read(study)
        for cell in runs.cells():
            grpo = runs.of(cell, "grpo").values()
            row = [f"{np.mean([value(run) for run in grpo]):.1f}" for value in OUTCOMES.values()]
            differences = [runs.differences(cell, arm, value) for arm in arms for value in OUTCOMES.values()]
            if not any(values.size for values in differences):
                continue
            seeds = ", ".join(str(values.size) for values in differences[:: len(OUTCOMES)])
            rows.append([cell + suffix, seeds, *row, *map(entry, differences)])
    return markdown(heads, rows)


def verl_table(verl: Runs, loop: Runs) -> str:
    """The same runs through verl and in the loop, on the same problems: a row a cell and arm."""
    names = [f"{outcome}: {what}" for outcome in OUTCOMES for what in ("verl", "loop", "loop less verl")]
    rows = []
    for cell, arm in verl.rows():
        ours, theirs = loop.of(cell, arm), verl.of(cell, arm)
        entries = []
        for value in OUTCOMES.values():
            for runs in (theirs, ours):
                entries.append(f"{np.mean([value(run) for run in runs.values()]):.1f}" if runs else "")
            entries.append(entry(paired(ours, theirs, value)))
        entries += [entry(verl.differences(cell, arm, value)) for value in OUTCOMES.values()]
        rows.append([cell, label(arm), f"{len(theirs)}, {len(ours)}", *entries])
    heads = ["cell", "arm", "seeds: verl, loop", *names]
    return markdown([*heads, *(f"verl: {outcome}, less GRPO" for outcome in OUTCOMES)], rows)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def label(arm: str) -> str:
    return "GRPO" if arm == "grpo" else f"`{arm}`"


def start_table() -> str:
    """Accuracy and share of mixed groups of every density's student."""
    from knows import STUDENTS

    rows = [(density, start()[context]) for density, context in STUDENTS.items()]
    return "\n".join(
        [
            "| | " + " | ".join(density for density, _ in rows) + " |",
            "|---|" + "---|" * len(rows),
            "| student right | " + " | ".join(f"{found['correct']:.3f}" for _, found in rows) + " |",
            "| mixed groups | " + " | ".join(f"{100 * found['mixed']:.0f} %" for _, found in rows) + " |",
        ]
    )


def written(page: str) -> str:
    """The page with today's tables between its marks."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if begin in page:
            pattern = re.escape(begin) + ".*?" + re.escape(end)
            text = f"{begin}{make()}\n{end}"
            page = re.sub(pattern, lambda _, text=text: text, page, flags=re.DOTALL)
    return page


# ----------------------------------------------------------------------------------------------------------- pictures

# Okabe and Ito's colours, which colour-blind readers can tell apart; the lines differ in their dashes, too.
STYLES = {
    "grpo": ("#000000", "-"),
    "exact": ("#D55E00", "-"),
    "no_flip": ("#999999", "--"),
    "zero_variance": ("#0072B2", "-."),
    "zero_variance_small": ("#009E73", "--"),
    "tenth_deadzone": ("#CC79A7", ":"),
}
LABELS = {
    "grpo": "GRPO",
    "exact": "exact",
    "no_flip": "no_flip",
    "zero_variance": "zero_variance",
    "zero_variance_small": "zero_variance_small",
    "tenth_deadzone": "tenth_deadzone",
    "exact_trusted": "exact_trusted",
}
MAP = (("exact", "no_flip", "zero_variance"), ("zero_variance_small", "tenth_deadzone", "exact_trusted"))


@functools.cache
def start() -> dict[str, dict[str, float]]:
    return json.loads((HERE / "raw" / "knows_start.json").read_text())


def mixed_at_the_start(density: str) -> str:
    from knows import STUDENTS

    return f"{100 * start()[STUDENTS[density]]['mixed']:.0f} %"


def style(pyplot) -> None:
    pyplot.rcParams.update({"font.size": 9, "figure.dpi": 120, "figure.facecolor": "white"})
    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})


def draw_courses(runs: Runs, block: int, path: Path) -> None:
    """Reward by step: mean over seeds, and the middle 80 % of the seeds as a band."""
    from matplotlib import pyplot

    style(pyplot)
    figure, axes = pyplot.subplots(3, 4, figsize=(11, 7), sharex=True, sharey=True, layout="constrained")
    for row, fitness in zip(axes, FITNESS, strict=True):
        for axis, density in zip(row, DENSITIES, strict=True):
            for arm, (colour, dashes) in STYLES.items():
                found = [run["reward"] for run in runs.of(f"{density}_{fitness}", arm).values()]
                if not found:
                    continue
                steps = block * (np.arange(len(found[0])) + 0.5)
                axis.plot(steps, np.mean(found, axis=0), dashes, color=colour, lw=1.6, label=LABELS[arm])
                axis.fill_between(steps, *np.quantile(found, (0.1, 0.9), axis=0), color=colour, alpha=0.15, lw=0)
            axis.grid(alpha=0.25, lw=0.5)
            if fitness == "fit":
                axis.set_title(f"{density}: {mixed_at_the_start(density)} mixed groups", fontsize=9)
        row[0].set_ylabel(f"{fitness} context\nreward, %")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save(figure, path)


def draw_pretrained(loop: Runs, verl: Runs, verl_loop: Runs, path: Path) -> None:
    """Reward by step of the cells and arms that have run through verl: a thin line a seed, a thick one their mean."""
    from arithmetic import PLAN
    from matplotlib import pyplot

    style(pyplot)
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), sharex=True, sharey=True, layout="constrained")
    panels = {"loop": (loop, PLAN.block), "verl": (verl, 1), "loop, on verl's problems": (verl_loop, 1)}
    for axis, (title, (runs, block)) in zip(axes, panels.items(), strict=True):
        for cell, arm in verl.rows():
            found = [run["reward"] for run in runs.of(cell, arm).values()]
            if not found:
                continue
            # Six problems a step: means of two steps, as the loop's raw file has them.
            rewards = np.array(found, dtype=float).reshape(len(found), -1, PLAN.block // block).mean(axis=-1)
            steps = PLAN.block * (np.arange(rewards.shape[1]) + 0.5)
            colour, _ = STYLES[arm]
            dashes, context = (":", ", unfit context") if cell.endswith("_unfit") else ("-", "")
            name = LABELS[arm] + context
            axis.plot(steps, rewards.T, dashes, color=colour, lw=0.6, alpha=0.5)
            axis.plot(steps, rewards.mean(axis=0), dashes, color=colour, lw=2, label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
        axis.set_xticks(range(0, PLAN.steps + 1, 5))
        axis.grid(alpha=0.25, lw=0.5)
    axes[0].set_ylabel("reward, %")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save(figure, path)


def draw_map(runs: Runs, path: Path) -> None:
    """A panel a setting: fitness of the context by share of mixed groups, coloured by the difference from GRPO."""
    from matplotlib import pyplot
    from matplotlib.colors import TwoSlopeNorm

    style(pyplot)
    rows = [(arms, outcome) for arms in MAP for outcome in OUTCOMES]
    figure, axes = pyplot.subplots(len(rows), 3, figsize=(11, 10.5), layout="constrained", sharey=True)
    norm = TwoSlopeNorm(0, -60, 30)
    for row, (arms, outcome) in zip(axes, rows, strict=True):
        for axis, arm in zip(row, arms, strict=True):
            image = axis.imshow(draw_panel(axis, runs, arm, outcome), cmap="PuOr", norm=norm, aspect="auto")
            axis.set_xticks(range(len(DENSITIES)), [mixed_at_the_start(density) for density in DENSITIES])
            axis.set_yticks(range(len(FITNESS)), FITNESS)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            if outcome == "course":
                axis.set_title(LABELS[arm], fontsize=10, fontweight="bold")
            else:
                axis.set_xlabel("mixed groups at the start")
        row[0].set_ylabel({"course": "reward over the course", "end": "held out, at the end"}[outcome])
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01, aspect=30)
    bar.set_label("difference from GRPO, points")
    save(figure, path)


def draw_panel(axis, runs: Runs, arm: str, outcome: str) -> np.ndarray:
    """Write the numbers of a panel, and return the means (fitness, density)."""
    means = np.full((len(FITNESS), len(DENSITIES)), np.nan)
    for (y, x), _ in np.ndenumerate(means):
        differences = runs.differences(f"{DENSITIES[x]}_{FITNESS[y]}", arm, OUTCOMES[outcome])
        if not differences.size:
            continue
        means[y, x], (low, high) = differences.mean(), interval(differences)
        text = {"ha": "center", "va": "center", "color": "black" if -35 < means[y, x] < 17 else "white"}
        axis.text(x, y - 0.14, signed(means[y, x]), fontsize=11, fontweight="bold", **text)
        axis.text(x, y + 0.22, f"{signed(low)} to {signed(high)}", fontsize=8.5, **text)
    return means


def signed(value: float) -> str:
    """A whole number with its sign; 0 has none."""
    rounded = round(value)
    return f"{rounded:+d}".replace("-", "−") if rounded else "0"


def save(figure, path: Path) -> None:
    """In 256 colours, which makes a small file."""
    from PIL import Image

    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="draw no pictures")
    args = parser.parse_args()
    PAGE.write_text(written(PAGE.read_text()))
    for study in STUDIES:
        runs = Runs.read(study)
        print(f"{study}: {len(runs)} runs, {runs.seconds:.0f} seconds")
    if not args.tables:
        from knows import PLAN

        draw_courses(Runs.read("knows"), PLAN.block, HERE / "courses.png")
        draw_map(Runs.read("knows"), HERE / "map.png")
        smollm = [Runs.read(study) for study in ("arithmetic", "through_verl", "through_verl_loop")]
        draw_pretrained(*smollm, HERE / "pretrained.png")


if __name__ == "__main__":
    main()
