"""Figures as one HTML page that opens anywhere, with no network: plotly.js and CircuitsVis are in it, once each.

A page is a list of sections, a section a list of panels; a panel has a title, a figure, one line on what it means and
the code that makes it. A panel may have steps: the same figures at many moments, of which one is shown at a time. What
is large, the libraries and the moments, lies in the page compressed (gzip, in base64) and is unpacked by the browser,
one of 2023 or later. Cost: about 2 MB of JavaScript in the page. Nothing is computed here.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import keyword
import os
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError
from rlmech.plot.attention_heads import STYLE as ATTENTION_STYLE
from rlmech.plot.attention_heads import AttentionFigure, circuitsvis_js
from rlmech.plot.svg import SvgFigure

Figure = go.Figure | SvgFigure | AttentionFigure


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The figures of one moment.

    Attributes:
        group: The run that it belongs to, e.g. `episode 3`.
        label: The moment, e.g. `step 4: FASTER`.
        figures: What is shown: the first large, the second beside it, further ones below.
        mark: Why one would jump here, e.g. `IDLE → FASTER`; empty for an ordinary moment.
        position: Where the moment lies on the x axis of its group's overview.

    Example:
        >>> import rlmech as rlm
        >>> drawing = rlm.plot.SvgFigure(svg="<svg></svg>")
        >>> rlm.plot.Frame(group="episode 3", label="step 4: FASTER", figures=(drawing,), mark="changed").label
        'step 4: FASTER'
    """

    group: str
    label: str
    figures: tuple[Figure, ...]
    mark: str = ""
    position: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Moments, one of which is shown at a time.

    Attributes:
        frames: The moments, those of a group in order.
        overviews: For each group a figure that stays while its steps change; the step shown is marked on it.
        start: Which of the moments is shown first.

    Example:
        >>> import rlmech as rlm
        >>> drawing = rlm.plot.SvgFigure(svg="<svg></svg>")
        >>> frames = tuple(rlm.plot.Frame(group="episode 3", label=f"step {n}", figures=(drawing,)) for n in range(2))
        >>> len(rlm.plot.Steps(frames=frames).frames)
        2
    """

    frames: tuple[Frame, ...]
    overviews: dict[str, Figure] = field(default_factory=dict)
    start: int = 0

    def __post_init__(self) -> None:
        if not self.frames:
            raise ConfigError("There are no steps to show.", given="no frames", expected="one or more", fix="add one")
        if not 0 <= self.start < len(self.frames):
            raise ConfigError(
                "The first moment to show is not there.",
                given=f"start={self.start}",
                expected=f"0 to {len(self.frames) - 1}",
                fix="start=0 shows the first",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A figure with its title, one line on what it means, and the code that makes it.

    Example:
        >>> import rlmech as rlm
        >>> drawing = rlm.plot.SvgFigure(svg="<svg></svg>")
        >>> rlm.plot.Panel(title="A drawing", meaning="It is empty.", figure=drawing).title
        'A drawing'
    """

    title: str
    meaning: str
    figure: Figure | Steps
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Panels under one heading.

    Example:
        >>> import rlmech as rlm
        >>> drawing = rlm.plot.SvgFigure(svg="<svg></svg>")
        >>> panel = rlm.plot.Panel(title="A drawing", meaning="It is empty.", figure=drawing)
        >>> rlm.plot.Section(title="Drawings", panels=(panel,)).title
        'Drawings'
    """

    title: str
    panels: tuple[Panel, ...]
    text: str = ""


@explain_misuse
def page(
    sections: Sequence[Section],
    path: str | Path,
    *,
    title: str = "rlmech",
    subtitle: str = "",
    facts: Sequence[tuple[str, str]] = (),
    setup: str = "",
) -> Path:
    """Write figures as one self-contained page.

    Args:
        sections: What the page shows, in order.
        path: The `.html` file to write; its folders are made. An old page is replaced once the new one is complete.
        title: Title of the page.
        subtitle: One sentence below it.
        facts: Numbers to show first, as (name, value).
        setup: Code that the panels' code starts from, shown once.

    Returns:
        The path written.

    Raises:
        ConfigError: No section, or a path that is not an HTML file.

    Example:
        >>> import rlmech as rlm
        >>> drawing = rlm.plot.SvgFigure(svg="<svg></svg>")
        >>> panel = rlm.plot.Panel(title="A drawing", meaning="It is empty.", figure=drawing)
        >>> rlm.plot.page([rlm.plot.Section(title="Drawings", panels=(panel,))], "report.html").name
        'report.html'
    """
    target = Path(path)
    if not sections or target.suffix not in (".html", ".htm"):
        raise ConfigError(
            "A page needs a section and an HTML file.",
            given=f"{len(sections)} sections, path {str(path)!r}",
            expected="one section or more, and a path that ends in .html",
            fix="e.g. rlm.plot.page([rlm.plot.Section(...)], 'report/index.html')",
        )
    for section in sections:
        if not isinstance(section, Section):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                "A page is made of sections.",
                given=f"a {type(section).__name__}",
                expected="rlm.plot.Section, which holds rlm.plot.Panel, which holds a figure",
                fix="rlm.plot.Section(title=..., panels=(rlm.plot.Panel(title=..., meaning=..., figure=figure),))",
            )
    written = _page(sections, title=title, subtitle=subtitle, facts=facts, setup=setup)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        unfinished.write_text(written, encoding="utf-8")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _page(
    sections: Sequence[Section], *, title: str, subtitle: str, facts: Sequence[tuple[str, str]], setup: str
) -> str:
    body = "".join(_section(number, section) for number, section in enumerate(sections, start=1))
    contents = "".join(
        f'<li><a href="#s{number}">{escape(section.title)}</a><ul>'
        + "".join(
            f'<li><a href="#s{number}-{index}">{escape(panel.title)}</a></li>'
            for index, panel in enumerate(section.panels, start=1)
        )
        + "</ul></li>"
        for number, section in enumerate(sections, start=1)
    )
    tiles = "".join(f'<div class="fact"><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in facts)
    figures = [figure for section in sections for panel in section.panels for figure in _all_figures(panel.figure)]
    libraries = ""
    if any(isinstance(figure, go.Figure) for figure in figures):
        libraries += _library(get_plotlyjs)
    if any(isinstance(figure, AttentionFigure) for figure in figures):
        libraries += _library(circuitsvis_js)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_asset('page.css')}{ATTENTION_STYLE}</style>\n</head>\n<body>\n"
        f'<nav><a class="brand" href="#top">rlmech</a><ol>{contents}</ol></nav>\n<main id="top">\n'
        f'<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p>'
        f'<dl class="facts">{tiles}</dl>{_code(setup, "The code that everything below starts from")}</header>\n'
        f"{body}</main>\n{libraries}<script>{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _section(number: int, section: Section) -> str:
    panels = "".join(_panel(f"s{number}-{index}", panel) for index, panel in enumerate(section.panels, start=1))
    text = f'<p class="text">{escape(section.text)}</p>' if section.text else ""
    return f'<section id="s{number}"><h2>{escape(section.title)}</h2>{text}{panels}</section>\n'


def _panel(anchor: str, panel: Panel) -> str:
    drawn = _steps(panel.figure) if isinstance(panel.figure, Steps) else _figure(panel.figure)
    return (
        f'<article class="panel" id="{anchor}"><h3>{escape(panel.title)}</h3>'
        f'<p class="meaning">{escape(panel.meaning)}</p>{drawn}'
        f"{_code(panel.code, 'The code that makes this')}</article>"
    )


def _steps(steps: Steps) -> str:
    groups = list(dict.fromkeys(frame.group for frame in steps.frames))
    options = "".join(f"<option>{escape(group)}</option>" for group in groups)
    frames = [
        {
            "group": frame.group,
            "label": frame.label,
            "mark": frame.mark,
            "position": frame.position,
            "cells": [f'<div class="cell">{_figure(figure)}</div>' for figure in frame.figures],
        }
        for frame in steps.frames
    ]
    overviews = "".join(
        f'<template class="group-overview" data-group="{escape(group, quote=True)}">{_figure(figure)}</template>'
        for group, figure in steps.overviews.items()
    )
    return (
        f'<div class="steps" data-start="{steps.start}"><div class="controls">'
        f'<label class="group"{"" if len(groups) > 1 else " hidden"}>'
        f'<select aria-label="run">{options}</select></label>'
        '<button class="previous" aria-label="previous step">◀</button>'
        '<input type="range" min="0" value="0" aria-label="step">'
        '<button class="next" aria-label="next step">▶</button><output></output></div>'
        '<div class="marks"></div><div class="stage"><div class="main"></div>'
        '<div class="beside"><div class="side"></div><div class="overview"></div></div><div class="below"></div></div>'
        f"{_packed(json.dumps(frames), 'frames')}{overviews}</div>"
    )


def _figure(figure: Figure) -> str:
    if isinstance(figure, SvgFigure):
        return f'<div class="drawing">{figure.svg}</div>'
    if isinstance(figure, AttentionFigure):
        return figure.fragment()
    data = str(figure.to_json()).replace("<", "\\u003c")
    layout: Any = figure.layout
    height = layout.height or 420
    return (
        f'<div class="plot" style="height:{height}px"></div><script type="application/json" class="plot-data">'
        f"{data}</script>"
    )


def _all_figures(figure: Figure | Steps) -> list[Figure]:
    if isinstance(figure, Steps):
        return [one for frame in figure.frames for one in frame.figures] + list(figure.overviews.values())
    return [figure]


@cache
def _library(code: Callable[[], str]) -> str:
    """A library's JavaScript, packed."""
    return _packed(code(), "library") + "\n"


def _packed(content: str, kind: str) -> str:
    """Text that the page unpacks when it opens; the same text is packed the same."""
    packed = base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()
    return f'<script type="application/gzip" class="{kind}">{packed}</script>'


def _asset(name: str) -> str:
    return files("rlmech.plot").joinpath(name).read_text(encoding="utf-8")


def _code(code: str, summary: str) -> str:
    if not code.strip():
        return ""
    return (
        f'<details class="code"><summary>{escape(summary)}</summary><pre>{_highlighted(code.strip())}</pre></details>'
    )


def _highlighted(code: str) -> str:
    """Python with its comments, strings, numbers and keywords marked; anything else as it is."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError):
        return escape(code)
    lines = code.splitlines(keepends=True)
    written, row, column = "", 1, 0

    def up_to(to_row: int, to_column: int) -> str:
        nonlocal row, column
        part = ""
        while row < to_row and row <= len(lines):
            part, row, column = part + lines[row - 1][column:], row + 1, 0
        if row <= len(lines):
            part += lines[row - 1][column:to_column]
        column = to_column
        return escape(part)

    for token in tokens:
        written += up_to(*token.start)
        kind = _kind(token)
        content = up_to(*token.end)
        written += f'<i class="{kind}">{content}</i>' if kind and content else content
    return written


def _kind(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.NAME and keyword.iskeyword(token.string):
        return "kw"
    return {tokenize.COMMENT: "co", tokenize.STRING: "st", tokenize.NUMBER: "nu"}.get(token.type, "")
