"""Figures as files, by the ending of the path: pages, and pictures for papers.

A page (`.html`) is written by plotly itself. A picture (`.pdf`, `.svg`, `.png`) is made by Kaleido, which needs Chrome
or Chromium; both are asked for before anything is drawn.
"""

from __future__ import annotations

import base64
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rlmech.errors import ConfigError, MissingPackageError

PICTURES = (".pdf", ".svg", ".png")


class PlotFigure(go.Figure):
    """A plotly figure that writes itself to a file.

    Example:
        >>> import rlmech as rlm
        >>> rlm.plot.PlotFigure().save("empty.html").name
        'empty.html'
    """

    def save(self, path: str | Path, *, width: int | None = None, height: int | None = None) -> Path:
        """Write the figure to a file.

        Args:
            path: Ends in `.html`, a page that opens anywhere, or in `.pdf`, `.svg` or `.png`.
            width: Width of a picture in pixels; by default the figure's own.
            height: Its height likewise.

        Returns:
            The path written.

        Raises:
            ConfigError: Another ending.
            MissingPackageError: A picture is asked for and Kaleido, or a browser for it, is not there.
        """
        target = ending_among(path, (".html", *PICTURES))
        if target.suffix == ".html":
            self.write_html(target, include_plotlyjs=True)
            return target
        return write_picture(self, target, width=width, height=height)


def subplots(**grid: Any) -> PlotFigure:
    """A figure of several panels, as plotly's `make_subplots` lays them out."""
    figure = PlotFigure()
    make_subplots(figure=figure, **grid)
    return figure


def ending_among(path: str | Path, endings: tuple[str, ...]) -> Path:
    """A path whose ending is among those that a figure can be written as.

    Raises:
        ConfigError: It is not.
    """
    target = Path(path)
    if target.suffix not in endings:
        raise ConfigError(
            "The ending of the path does not say what to write.",
            given=repr(str(path)),
            expected=f"a path that ends in {', '.join(endings)}",
            fix=f"e.g. {target.with_suffix(endings[0]).name!r}",
        )
    return target


def write_picture(figure: go.Figure, target: Path, *, width: int | None = None, height: int | None = None) -> Path:
    """Write a plotly figure as a picture.

    Raises:
        MissingPackageError: Kaleido, or a browser for it, is not there.
    """
    if find_spec("kaleido") is None:
        raise MissingPackageError(
            "Pictures of figures are made by Kaleido, which is not installed.",
            given=f"a figure to be written as {target.suffix}",
            expected="the package kaleido, and Chrome or Chromium",
            fix='pip install "rlmech[figures]", or save the figure as .html',
        )
    from choreographer.browsers import chromium

    if chromium.Chromium.find_browser(skip_local=False) is None:
        raise MissingPackageError(
            "Pictures of figures are made with Chrome or Chromium, and there is none.",
            given=f"a figure to be written as {target.suffix}",
            expected="Chrome or Chromium, in the PATH or by the variable BROWSER_PATH",
            fix="install one (plotly_get_chrome fetches it), or save the figure as .html",
        )
    figure.write_image(target, width=width, height=height, scale=2 if target.suffix == ".png" else 1)
    return target


def write_drawing(svg: str, target: Path, *, width: float, height: float) -> Path:
    """Write a drawing of SVG text as a picture of its own size.

    Raises:
        MissingPackageError: Kaleido, or a browser for it, is not there.
    """
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    place = {"xref": "paper", "yref": "paper", "x": 0, "y": 1, "sizex": 1, "sizey": 1, "sizing": "contain"}
    hidden = {"visible": False}
    figure = go.Figure(
        layout={
            "images": [{"source": source, **place}],
            "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
            "xaxis": hidden,
            "yaxis": hidden,
            "paper_bgcolor": "#ffffff",
            "plot_bgcolor": "#ffffff",
        }
    )
    return write_picture(figure, target, width=round(width), height=round(height))
