"""The figures, from the numbers that `run.py` writes; nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from claims import CLAIMS, Claim
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from right_of_way import ENOUGH
from road import ARMS
from scenes import ALONG

Numbers = dict[str, Any]
INK, MUTED, RULE = "#1f2933", "#616e7c", "#d9dee4"
VERDICTS = {"holds": "#1b7f4b", "does not hold": "#c8322b", "cannot be told": "#8a94a0"}
TRAININGS = {"zoo": "#0072b2", "seed 1": "#d55e00", "seed 2": "#009e73"}
HEADS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
STYLE = {
    "font.size": 9, "axes.edgecolor": RULE, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5,
    "axes.titlelocation": "left", "legend.frameon": False, "savefig.dpi": 130, "figure.constrained_layout.use": True,
}  # fmt: skip


def draw(numbers: Numbers, out: Path) -> list[Path]:
    """Draw all figures into a folder."""
    made: list[Path] = []
    with mpl.rc_context(STYLE):
        for make in (overview, direction, approach, intent, clear, right_of_way, crashes):
            made.append(out / f"{make.__name__}.png")
            make(numbers).savefig(made[-1])
    return made


def overview(numbers: Numbers) -> Figure:
    """Every claim in every checkpoint, with its verdict."""
    names = list(numbers["driving"])
    figure = Figure(figsize=(14, 1.6 + 0.26 * len(names)))
    axes = figure.subplots(1, len(CLAIMS) + 1, sharey=True)
    for axis, claim in zip(axes, CLAIMS, strict=False):
        _claim(axis, claim, [numbers["findings"][name][claim.name] for name in names])
    _rule(axes[-1], [numbers["driving"][name].get("turned") for name in names])
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    for axis in axes:
        axis.tick_params(axis="y", length=0)
        for i in range(1, len(names)):
            if names[i].split(" at ")[0] != names[i - 1].split(" at ")[0]:
                axis.axhline(i - 0.5, color=RULE, linewidth=1)
    for name, colour in VERDICTS.items():
        axes[0].plot([], [], "o", color=colour, label=name)
    axes[0].plot([], [], color="#b9c2cc", linewidth=5, label="its weights shuffled, 19 times")
    axes[0].plot([], [], color=INK, linestyle=":", label="enough to bear the claim out")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _claim(axis: Axes, claim: Claim, found: Sequence[Numbers]) -> None:
    axis.set_title(_wrapped(claim.says))
    axis.set_xlabel(claim.unit)
    for row, one in enumerate(found):
        chance = one["shuffled"]
        axis.plot([min(chance), max(chance)], [row, row], color="#b9c2cc", linewidth=5, solid_capstyle="butt")
        _point(axis, one["effect"], row, VERDICTS[one["verdict"]])
    if claim.none > 0:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.axvline(claim.none, color=RULE, zorder=0)
    axis.axvline(claim.enough, color=INK, linestyle=":", linewidth=1, zorder=0)


def _rule(axis: Axes, found: Sequence[Numbers | None]) -> None:
    axis.set_title(_wrapped("the right of way changes what it does"))
    axis.set_xlabel("share of SLOWER, less by")
    for row, one in enumerate(found):
        if one is not None:
            less = {"value": -one["slower"]["value"], "low": -one["slower"]["high"], "high": -one["slower"]["low"]}
            _point(axis, less, row, VERDICTS[one["verdict"]])
    axis.axvline(0, color=RULE, zorder=0)
    axis.axvline(ENOUGH, color=INK, linestyle=":", linewidth=1, zorder=0)


def direction(numbers: Numbers) -> Figure:
    """Where each head's attention to a vehicle goes, by the arm that it is put on."""
    finals = _finals(numbers)
    figure = Figure(figsize=(3.2 * len(finals) + 0.6, 3.0))
    axes = np.atleast_1d(figure.subplots(1, len(finals), sharey=True))
    for axis, (name, one) in zip(axes, finals, strict=True):
        value, low, high = (np.array(part) for part in one["curves"]["profiles"])
        for head in range(value.shape[1]):
            at = np.arange(len(ARMS)) + (head - 1.5) * 0.2
            reach = [value[:, head] - low[:, head], high[:, head] - value[:, head]]
            axis.bar(at, value[:, head], 0.18, yerr=reach, color=HEADS[head], ecolor=INK, label=f"head {head}")
        axis.axhline(1 / len(ARMS), color=INK, linestyle=":", linewidth=1)
        axis.set_xticks(range(len(ARMS)), [f"from the {arm}" for arm in ARMS])
        axis.set_title(f"{name}: {one['direction']['verdict']}")
    axes[0].set_ylabel("share of the head's attention\nto one vehicle put on each road")
    axes[0].legend(ncols=2)
    return figure


def approach(numbers: Numbers) -> Figure:
    """Attention by distance, of vehicles on their way in and on their way out."""
    finals = _finals(numbers)
    figure = Figure(figsize=(3.2 * len(finals) + 0.6, 3.0))
    axes = np.atleast_1d(figure.subplots(1, len(finals), sharey=True))
    nothing = numbers["findings"]["zoo at 0k"]
    for axis, (name, one) in zip(axes, finals, strict=True):
        for which, label, colour in (
            ("approach", "on its way in", "#0072b2"),
            ("leaving", "on its way out", "#d55e00"),
        ):
            value, low, high = (np.array(part, dtype=float) for part in one["curves"][which])
            axis.plot(ALONG, value, color=colour, label=label)
            axis.fill_between(ALONG, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(ALONG, nothing["curves"]["approach"][0], color=MUTED, linestyle=":", label="untrained, on its way in")
        axis.set_xlabel("from the intersection [m]")
        axis.set_title(f"{name}: {one['approach']['verdict']}")
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("attention to the vehicle,\nmean of heads")
    axes[0].legend()
    return figure


def intent(numbers: Numbers) -> Figure:
    """Attention to a vehicle half-way through a turn: heading straight on, and heading along the turn."""
    return _before_and_after(
        numbers, "intent", {"turn out of the ego's way": (0, 1), "turn into the ego's way": (2, 3)},
        ticks=("heading\nstraight on", "heading\nalong the turn"), label="attention to the vehicle,\nmean of heads",
    )  # fmt: skip


def clear(numbers: Numbers) -> Figure:
    """Attention to the ego as it was, with the way clear, and with others moved away instead."""
    return _before_and_after(
        numbers, "clear", {"who could cross": (0, 1), "as many others": (2, 3)},
        ticks=("as it was", "moved\nfar away"), label="attention to the ego,\nmean of heads",
    )  # fmt: skip


def _before_and_after(
    numbers: Numbers, name: str, contrasts: dict[str, tuple[int, int]], *, ticks: tuple[str, str], label: str
) -> Figure:
    finals = _finals(numbers)
    figure = Figure(figsize=(2.7 * len(finals) + 0.6, 3.0))
    axes = np.atleast_1d(figure.subplots(1, len(finals), sharey=True))
    for axis, (policy, one) in zip(axes, finals, strict=True):
        value, low, high = (np.array(part) for part in one["curves"][name])
        for (what, (before, after)), colour in zip(contrasts.items(), ("#0072b2", "#d55e00"), strict=True):
            at = [before, after]
            reach = [value[at] - low[at], high[at] - value[at]]
            axis.errorbar([0, 1], value[at], yerr=reach, marker="o", color=colour, label=what, capsize=3)
        axis.set_xticks([0, 1], ticks)
        axis.set_xlim(-0.3, 1.3)
        axis.set_title(f"{policy}: {one[name]['verdict']}")
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel(label)
    axes[0].legend()
    return figure


def right_of_way(numbers: Numbers) -> Figure:
    """What changes when the ego gets the right of way, episode by episode."""
    shown = {"share of SLOWER": "slower", "in like states": "matched", "attention to the ego": "to_ego"}
    rates = {"crash rate": "crashed", "arrival rate": "arrived"}
    rows = [(name, one["turned"]) for name, one in numbers["driving"].items() if "turned" in one]
    figure = Figure(figsize=(13, 1.5 + 0.3 * len(rows)))
    axes = figure.subplots(1, len(shown) + len(rates) + 1, sharey=True)
    panels = [(title, lambda one, key=key: one[key]) for title, key in shown.items()]
    panels += [(title, lambda one, key=key: one["outcomes"][key]) for title, key in rates.items()]
    panels.append(("mean speed [m/s]", lambda one: one["outcomes"]["speed"]))
    for axis, (title, pick) in zip(axes, panels, strict=True):
        for row, (name, one) in enumerate(rows):
            _point(axis, pick(one), row, TRAININGS[name.split(" at ")[0]])
        axis.axvline(0, color=RULE, zorder=0)
        axis.set_title(title)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [f"{name} ({one['n_pairs']} pairs)" for name, one in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel("with the right of way, less without it; same seeds, 95 % intervals", fontsize=9)
    return figure


def crashes(numbers: Numbers) -> Figure:
    """Collision rates along training."""
    figure = Figure(figsize=(6.5, 3.2))
    axis = figure.subplots()
    for number, (training, colour) in enumerate(TRAININGS.items()):
        mine = [(name, one) for name, one in numbers["driving"].items() if name.split(" at ")[0] == training]
        steps = np.array([float(name.split(" at ")[1].rstrip("k")) + 0.4 * number for name, _ in mine])
        for rule, line, filled in (("horizontal", "-", colour), ("vertical", "", "white")):
            found = [(step, one[rule]["crashed"]) for step, (_, one) in zip(steps, mine, strict=True) if rule in one]
            value, low, high = (np.array([rate[part] for _, rate in found]) for part in ("value", "low", "high"))
            at = np.array([step for step, _ in found]) + (1.2 if rule == "vertical" else 0.0)
            axis.errorbar(at, value, yerr=[value - low, high - value], color=colour, marker="o", markersize=5,
                          label=training if line else None, markerfacecolor=filled, linestyle=line, linewidth=1.5,
                          capsize=2)  # fmt: skip
    axis.set_xlabel("trained for [thousand steps]; open: with the right of way")
    axis.set_ylabel("crash rate")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def _finals(numbers: Numbers) -> list[tuple[str, Numbers]]:
    last = {name.split(" at ")[0]: name for name in numbers["driving"]}
    return [(name, numbers["findings"][name]) for name in last.values()]


def _point(axis: Axes, estimate: Numbers, row: int, colour: str) -> None:
    axis.plot([estimate["low"], estimate["high"]], [row, row], color=colour, linewidth=2)
    axis.plot([estimate["value"]], [row], "o", color=colour, markersize=5)


def _wrapped(text: str) -> str:
    words, lines = iter(text.split()), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 26:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
