"""A drawing as SVG text: opens anywhere, prints sharply, needs no network and no JavaScript."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from rlmech.errors import ConfigError


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
        """Write the drawing to an `.svg` file and return its path."""
        target = Path(path)
        if target.suffix != ".svg":
            raise ConfigError(
                "A drawing is saved as SVG.", given=str(path), expected="a path that ends in .svg", fix="use .svg"
            )
        target.write_text(self.svg, encoding="utf-8")
        return target


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
