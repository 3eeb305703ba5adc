"""Numbers as text, in the same form on the whole page."""


def percent(share: float) -> str:
    """0.4567 -> 46 %; one more digit below ten per cent."""
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def signed(value: float, digits: int = 3) -> str:
    """With its sign; the minus is U+2212, not a hyphen."""
    return f"{value:+.{digits}f}".replace("-", "−")


def plain(value: float) -> str:
    """Three digits after the point for small numbers, fewer for large ones."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"
