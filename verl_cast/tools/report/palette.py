"""The page's colours, each for the light and for the dark mode.

Text has a contrast of at least 4.5 on every ground that it stands on (tests/unit/tools/test_report.py measures it).
"""

LIGHT, DARK = 0, 1

# Of the page: CSS variables. `ground` is the page's, `card` that of boxes and figures.
PAGE = {
    "ink": ("#22282e", "#e4e8eb"),
    "soft": ("#5b656e", "#a9b3bb"),
    "line": ("#e1e5e8", "#343b42"),
    "border": ("#c5ccd2", "#4d565e"),
    "ground": ("#f6f7f8", "#14171a"),
    "card": ("#ffffff", "#1d2125"),
    "chip": ("#e9ecee", "#30373d"),
    "accent": ("#0069a6", "#6db9ec"),
    "on-accent": ("#ffffff", "#10161b"),
    "blue-chip": ("#d8e9f4", "#1d3f57"),
    "blue-ink": ("#00507d", "#b5dcf6"),
    "orange-chip": ("#f8dfcd", "#573520"),
    "warning": ("#b3261e", "#ff9a90"),
    "warning-ground": ("#fdf5f4", "#2c1d1c"),
    "look": ("#8a5c00", "#e3b341"),
    "look-line": ("#d9a514", "#b98a1c"),
    "ok": ("#2b7448", "#6cc48d"),
    "hover": ("#f0f5f9", "#262d33"),
    "chosen": ("#e0eef7", "#1f3647"),
    "correct-line": ("#4f97c4", "#4f97c4"),
    "wrong-line": ("#d98a52", "#d98a52"),
}

# Of runs. In the light mode Okabe and Ito's, safe for colour-blind readers. The first two also mark positive and
# negative advantages.
RUNS = (
    ("#0072b2", "#4aa8e0"),
    ("#d55e00", "#f2894a"),
    ("#009e73", "#2cc295"),
    ("#cc79a7", "#e29cc4"),
    ("#a97c00", "#d6ab3c"),
    ("#56b4e9", "#9ed8f7"),
    ("#555555", "#b4b9be"),
)

# Of figures, besides runs. Bars (drawing.py) have the same colours in both modes.
FIGURES = {
    "ink": ("#33393f", "#d3d9de"),
    "grid": ("#eceef0", "#2d343a"),
    "axis": ("#c8cdd2", "#59626a"),
    "zero": ("#9aa3ab", "#7f8a93"),
    "card": PAGE["card"],
}

# Of tokens, from 0 to the largest value: (red, green, blue) for no, the most positive and the most negative value.
TOKENS = {
    "none": ((255, 255, 255), (29, 33, 37)),
    "positive": ((97, 159, 203), (28, 92, 140)),
    "negative": ((232, 151, 94), (150, 75, 24)),
}


def run(place: int) -> tuple[str, str]:
    """The colours of the page's run number `place`, from 0."""
    return RUNS[place % len(RUNS)]


def css(mode: int) -> str:
    """Declarations of all CSS variables."""
    pairs = {**PAGE, **{f"run-{place}": pair for place, pair in enumerate(RUNS)}}
    return " ".join(f"--{name}: {pair[mode]};" for name, pair in pairs.items())


def dark_figures() -> dict[str, str]:
    """Colour in a figure in the light mode -> colour in the dark mode. Figures are drawn in the light mode."""
    return dict((*RUNS, *FIGURES.values()))
