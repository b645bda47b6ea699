"""A drawing as SVG text: opens anywhere, prints sharply, needs no network and no JavaScript."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rlmech.plot.saving import ending_among, write_drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class SvgFigure:
    """A vector drawing.

    Attributes:
        svg: The drawing, one `<svg>` element.

    Example:
        >>> import rlmech as rlm
        >>> rlm.plot.SvgFigure(svg="<svg></svg>").save("empty.svg").name
        'empty.svg'
    """

    svg: str

    def _repr_html_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Write the drawing to a file and return its path.

        Args:
            path: Ends in `.svg`, or in `.pdf` or `.png`, which Kaleido makes.

        Raises:
            ConfigError: Another ending.
            MissingPackageError: Kaleido, or a browser for it, is asked for and not there.
        """
        target = ending_among(path, (".svg", ".pdf", ".png"))
        if target.suffix == ".svg":
            target.write_text(self.svg, encoding="utf-8")
            return target
        box = re.search(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"', self.svg)
        width, height = (float(side) for side in box.groups()) if box else (700.0, 500.0)
        return write_drawing(self.svg, target, width=width, height=height)


def tag(element: str, content: str = "", /, **attributes: str | float) -> str:
    """One SVG element; `class_` and `stroke_width` stand for `class` and `stroke-width`, numbers get two decimals."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_written(value)}"' for name, value in attributes.items()
    )
    return f"<{element}{written}>{content}</{element}>" if content else f"<{element}{written}/>"


def text(content: str, /, *, element: str = "text", **attributes: str | float) -> str:
    """An element that holds text: escaped, what it says and no more."""
    return tag(element, escape(content), **attributes)


def _written(value: str | float) -> str:
    if isinstance(value, str):
        return escape(value, quote=True)
    return f"{value:.2f}".rstrip("0").rstrip(".")
