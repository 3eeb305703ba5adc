"""The diagnosis as text for a terminal of 100 columns."""

import textwrap
from pathlib import Path
from typing import Any

from verl_cast.tools.diagnose.direction import setting_in_words
from verl_cast.tools.diagnose.gaps import is_noise

WIDTH = 100
SIDE_NAMES = {"right": "correct", "wrong": "wrong"}  # by the keys of the results


def text(result: dict[str, Any]) -> str:
    lines: list[str] = []
    if result["contexts"] is not None:
        lines += _contexts(result["contexts"])
    lines += _direction(result)
    if result["gaps"] is not None:
        lines += _gaps(result["gaps"], result["rollouts"]["noise_p99"])
    return "\n".join(lines)


def short(context: str) -> str:
    """A template file's name without its directory."""
    return Path(context).name


def number(value: float | None, form: str = "+.2f") -> str:
    return "-" if value is None else format(value, form)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def interval(bounds: Any, form: str = "+.2f") -> str:
    return "" if bounds is None else f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def _wrap(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH - 2, initial_indent="  ", subsequent_indent="    ", break_long_words=False)


def _heading(words: str) -> list[str]:
    return ["", words, "-" * min(len(words), WIDTH)]


def _contexts(contexts: dict[str, Any]) -> list[str]:
    lines = _heading(f"Contexts: {contexts['problems']} problems x {contexts['samples']} samples")
    lines.append(
        f"  {'context':26s}{'accuracy':>8s}  {'95 % interval':14s}{'teacher - student':>25s}{'tokens':>9s}"
        f"{'cut off':>9s}"
    )
    for one in [contexts["student"], *contexts["teachers"]]:
        is_student = one is contexts["student"]
        name = "student" if is_student else f"teacher ({short(one['context'])})"
        difference = one.get("difference")
        words = "" if is_student else f"{difference['value']:+.2f} ({interval(difference['interval'])})"
        lines.append(
            f"  {name[:28]:28s}{one['accuracy']:6.2f}  {interval(one['interval'], '.2f'):14s}{words:>25s}"
            f"{one['length_mean']:9.1f}{percent(one['truncated_share']):>9s}"
        )
    for one in contexts["teachers"]:
        own = "this run's teacher" if one["context"] == contexts["own_context"] else "as a teacher"
        words = {"better": "better than the student", "worse": "WORSE than the student", "undecided": "undecided"}
        lines.append(f"  {short(one['context'])}, {own}: {words[one['verdict']]}")
    if contexts["same"]:
        lines += _wrap(
            "This run's context is `same`: teacher and student read the same prompt, so there is nothing to compare."
        )
    return lines


def _direction(result: dict[str, Any]) -> list[str]:
    rollouts, settings = result["rollouts"], result["settings"]
    lines = _heading("Expected direction of training")
    lines += _wrap(
        f"{rollouts['trajectories']} trajectories ({rollouts['right']} correct, {rollouts['wrong']} wrong), "
        f"{rollouts['tokens']} tokens, {rollouts['about']}. The noise of the scoring forward is "
        f"{rollouts['noise_p99']:.1e} nats."
    )
    if rollouts["distance"] is not None:
        lines += _wrap(
            f"The scoring model differs from the rollouts' policy by {rollouts['distance']:.3f} nats per token on "
            "average. If that is large, name the checkpoint of that step (actor_rollout_ref.model.path) and the "
            "run's temperature."
        )
    own = next((one for one in result["direction"] if one["context"] == settings["context"]), None)
    if own is not None:
        for sentence in own["in_words"]:
            lines += _wrap(sentence)
    lines.append("")
    lines.append(
        f"  {'teacher':22s}{'gap':>7s}{'g>0':>6s}{'corr. with correctness':>26s}{'in group':>10s}{'AUC':>7s}"
        f"{'A correct':>10s}{'A wrong':>9s}"
    )
    for one in result["direction"]:
        gap, relation, now = one["gap"]["all"], one["relation"], one["as_configured"]
        correlation = relation["correlation"]
        words = number(correlation["value"])
        if correlation["interval"] is not None:
            words += f" ({interval(correlation['interval'])})"
        lines.append(
            f"  {short(one['context'])[:22]:22s}{gap['mean']:7.2f}{percent(gap['positive']):>6s}{words:>26s}"
            f"{number(relation['correlation_in_group']['value']):>10s}{number(relation['auc']['value'], '.2f'):>7s}"
            f"{number(now['advantage_right']):>10s}{number(now['advantage_wrong']):>9s}"
        )
    if own is not None and own["levers"]:
        lines += _levers(own, settings)
    return lines


def _levers(own: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    lines = _heading("Levers: tokens that keep the verifier's sign, correct / wrong responses")
    zones = list(dict.fromkeys(row["gap_deadzone"] for row in own["levers"]))
    lines.append("  " + f"{'gap_deadzone':26s}" + "".join(f"{zone:>14g}" for zone in zones))
    for setting in dict.fromkeys(setting_in_words(row) for row in own["levers"]):
        cells = [
            f"{percent(row['verifier_sign_right'])} / {percent(row['verifier_sign_wrong'])}"
            for row in own["levers"]
            if setting_in_words(row) == setting
        ]
        lines.append(f"  {setting:26s}" + "".join(f"{cell:>14s}" for cell in cells))
    lines += _wrap(
        f"gap_weight (λ, here {settings['gap_weight']:g}) only scales advantages: no value of it changes a sign."
    )
    return lines


def _gaps(gaps: dict[str, Any], noise: float) -> list[str]:
    lines = _heading(f"Gaps of two teachers: answer-free ({short(gaps['context'])}) and privileged (sees the answer)")
    names = {"answer_free": "answer-free", "privileged": "privileged"}
    lines.append(
        f"  {'':12s}{'responses':10s}{'tokens':>8s}{'mean':>8s}{'p05':>8s}{'p50':>8s}{'p95':>8s}{'g>0':>7s}{'g<0':>7s}"
        f"{'AUC':>6s}{'corr.':>8s}"
    )
    for name, label in names.items():
        for side in ("right", "wrong"):
            d, relation = gaps["gap"][name][side], gaps["relation"][name]
            tail = (
                f"{number(relation['auc']['value'], '.2f'):>6s}{number(relation['correlation']['value']):>8s}"
                if side == "right"
                else ""
            )
            lines.append(
                f"  {label if side == 'right' else '':12s}{SIDE_NAMES[side]:10s}{d['tokens']:8d}"
                + "".join(f"{number(d[key]):>8s}" for key in ("mean", "p05", "p50", "p95"))
                + f"{percent(d['positive']):>7s}{percent(d['negative']):>7s}{tail}"
            )
    lines += ["", f"  {'agreement in sign (by chance)':34s}{'all':>18s}{'correct':>18s}{'wrong':>18s}"]
    for i, row in enumerate(gaps["agreement"]["all"]):
        cells = [
            f"{percent(gaps['agreement'][side][i]['share'])} ({percent(gaps['agreement'][side][i]['by_chance'])})"
            for side in ("all", "right", "wrong")
        ]
        above = "all tokens" if row["above"] == 0 else f"both |g| > {row['above']:.2g} nats"
        above += " (noise)" if is_noise(row["above"], noise) else ""
        lines.append(f"  {above:34s}" + "".join(f"{cell:>18s}" for cell in cells))
    for title, key in (("by position", "positions"), ("by class", "classes")):
        lines += ["", f"  {title:16s}{'':8s}{'answer-free: mean gap':>24s}{'privileged: mean gap':>24s}{'agree':>8s}"]
        lines.append(f"  {'':16s}{'tokens':>8s}" + f"{'correct':>12s}{'wrong':>12s}" * 2)
        for row in gaps[key]:
            means = "".join(
                f"{number(row[f'{name}_{side}']['mean']):>12s}" for name in names for side in ("right", "wrong")
            )
            lines.append(f"  {row['part']:16s}{row['tokens']:8d}{means}{percent(row['agreement']):>8s}")
    return lines
