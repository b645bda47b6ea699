"""Attention patterns as CircuitsVis elements that carry their JavaScript with them.

A square pattern is drawn by CircuitsVis's AttentionHeads, unmasked: a policy's entities have no order in time. A
pattern with one query (the ego's) is not square, and AttentionHeads would leave all rows but one blank: it is drawn as
one row of coloured tokens per head. Cost: 1.3 MB of JavaScript, once per page.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.errors import ConfigError, MissingPackageError
from rlmech.plot.saving import ending_among
from rlmech.plot.style import NEGATIVE, POSITIVE, head_colour
from rlmech.results import storable
from rlmech.untyped import JsonObject

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording

NO_BREAK_SPACE = "\u00a0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One CircuitsVis element: its label, its name in the library and its properties."""

    label: str
    name: str
    props: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFigure:
    """CircuitsVis elements below one another; a notebook shows them, `save` writes them as a page of their own.

    Attributes:
        elements: The elements, with their labels.

    Example:
        >>> import numpy as np, rlmech as rlm, xarray as xr
        >>> pattern = xr.DataArray(np.full((2, 1, 3), 1 / 3), dims=("head", "query", "key"))
        >>> [element.label for element in rlm.plot.attention(pattern).elements]
        ['head 0', 'head 1']
    """

    elements: tuple[Element, ...] = field(default_factory=tuple)

    def fragment(self) -> str:
        """The figure as HTML without the library: a page that holds it loads `circuitsvis_js()` once."""
        rows: list[str] = []
        for element in self.elements:
            data = json.dumps({"element": element.name, "props": element.props}).replace("<", "\\u003c")
            label = f'<span class="cv-label">{escape(element.label)}</span>' if element.label else ""
            rows.append(
                f'<div class="cv-row">{label}<div class="cv" id="cv-{uuid4().hex[:12]}"></div>'
                f'<script type="application/json">{data}</script></div>'
            )
        return f'<div class="cv-figure">{"".join(rows)}</div>'

    def _repr_html_(self) -> str:
        return f"<style>{STYLE}</style>{self.fragment()}<script>{circuitsvis_js()}\n{RENDER}</script>"

    def save(self, path: str | Path) -> Path:
        """Write the figure as a self-contained page and return its path.

        Raises:
            ConfigError: The path ends in anything but `.html`: CircuitsVis draws in a browser alone;
                `rlm.plot.heatmap` draws a pattern for a paper.
        """
        target = ending_among(path, (".html",))
        target.write_text(f'<!doctype html><meta charset="utf-8">{self._repr_html_()}', encoding="utf-8")
        return target


@explain_misuse
def attention(pattern: xr.DataArray) -> AttentionFigure:
    """Draw one state's attention pattern.

    Args:
        pattern: Weights `[head query key]`, or `[head key]` for a single query, from 0 to 1; the coordinate `key` names
            the entities.

    Returns:
        One row of coloured tokens per head where there is one query, CircuitsVis's AttentionHeads otherwise.

    Raises:
        ConfigError: Other dimensions, or a pattern that has several queries and is not square.

    Example:
        >>> import xarray as xr
        >>> pattern = xr.DataArray([[0.9, 0.1]], dims=("head", "key"), coords={"key": ["ego", "vehicle_1"]})
        >>> [element.name for element in attention(pattern).elements]
        ['ColoredTokens']
    """
    if not isinstance(pattern, xr.DataArray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            "An attention pattern is drawn from an array with named dimensions.",
            given=f"a {type(pattern).__name__}",
            expected="an xarray.DataArray of head, query and key",
            fix='xr.DataArray(cache[name][0].detach(), dims=("head", "query", "key")), or '
            "rlm.plot.recorded_pattern(recording).isel(step=0)",
        )
    if "query" not in pattern.dims and set(pattern.dims) == {"head", "key"}:
        pattern = pattern.expand_dims("query")
    if set(pattern.dims) != {"head", "query", "key"}:
        raise ConfigError(
            "This is not the attention pattern of one state.",
            given=f"dimensions {list(map(str, pattern.dims))}",
            expected="head, query and key",
            fix="choose one state, e.g. pattern.isel(step=0)",
        )
    weights = pattern.transpose("head", "query", "key")
    heads = [str(name) for name in _names(weights, "head")]
    tokens = _names(weights, "key")
    n_queries, n_keys = weights.sizes["query"], weights.sizes["key"]
    values = np.round(np.asarray(weights.values, dtype=float), 4)
    if n_queries == 1:
        return AttentionFigure(
            elements=tuple(
                Element(
                    label=f"head {name}",
                    name="ColoredTokens",
                    props={
                        "tokens": [f"{NO_BREAK_SPACE}{token}{NO_BREAK_SPACE}" for token in tokens],
                        "values": values[head, 0].tolist(),
                        "minValue": -1,
                        "maxValue": 1,
                        "positiveColor": head_colour(head),
                        "negativeColor": NEGATIVE,
                    },
                )
                for head, name in enumerate(heads)
            )
        )
    if n_queries != n_keys:
        raise ConfigError(
            "CircuitsVis draws square patterns, or the pattern of one query.",
            given=f"{n_queries} queries, {n_keys} keys",
            expected="one query, or as many as keys",
            fix="choose one query, e.g. pattern.isel(query=[0]); rlm.plot.heatmap draws any pattern",
        )
    props = {
        "attention": values.tolist(),
        "tokens": tokens,
        "attentionHeadNames": [f"head {name}" for name in heads],
        "minValue": -1,
        "maxValue": 1,
        "maskUpperTri": False,
        "positiveColor": POSITIVE,
        "negativeColor": NEGATIVE,
    }
    return AttentionFigure(elements=(Element(label="", name="AttentionHeads", props=props),))


@explain_misuse
def recorded_pattern(recording: Recording, name: str | None = None) -> xr.DataArray:
    """The attention that a recording holds, with its axes named.

    Args:
        recording: A recording made with a `hook_pattern` among its names.
        name: The hook point; by default the recording's only pattern.

    Returns:
        Weights `[step head query key]`; `key` has the entities' names where there are as many.

    Raises:
        ConfigError: The recording holds no pattern, or several and none is named.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> env = rlm.make_env("intersection-v2", config={"duration": 1})
        >>> recording = rlm.record(policy, env, seeds=[0], names=["*hook_pattern"], progress=False)
        >>> rlm.plot.recorded_pattern(recording).dims
        ('step', 'head', 'query', 'key')
    """
    patterns = recorded_patterns(recording)
    if name is None and len(patterns) != 1:
        raise ConfigError(
            f"The recording holds {len(patterns)} attention patterns.",
            given="no name",
            expected=f"one of {patterns}" if patterns else "a recording with a hook_pattern",
            fix="name one" if patterns else "record again with names=['*hook_pattern']",
        )
    chosen = name or patterns[0]
    values, axes = recording.activation(chosen), recording.axes(chosen)
    entities = recording.spec.entities
    coords = {axis: list(entities) for axis in ("query", "key") if values.shape[axes.index(axis)] == len(entities)}
    if values.shape[axes.index("query")] == 1 and entities:
        coords["query"] = [entities[0]]
    return storable(xr.DataArray(values, dims=axes, coords=coords, name=chosen))


def recorded_patterns(recording: Recording) -> list[str]:
    """Names of the attention patterns that a recording holds."""
    return [name for name in recording.manifest["activations"] if name.rpartition(".")[2] == "hook_pattern"]


def _names(pattern: xr.DataArray, dim: str) -> list[str]:
    if dim in pattern.coords:
        return [str(value) for value in pattern.coords[dim].values]
    return [str(index) for index in range(pattern.sizes[dim])]


@cache
def circuitsvis_js() -> str:
    """CircuitsVis's own JavaScript, for a `<script>` element; it defines `CircuitsVis` and fetches nothing.

    Raises:
        MissingPackageError: CircuitsVis is not installed.
    """
    try:
        import circuitsvis
    except ImportError as error:
        raise MissingPackageError(
            "Attention is drawn by CircuitsVis, which is not installed.",
            given="no package circuitsvis",
            expected="circuitsvis 1.43 or later",
            fix="pip install circuitsvis",
        ) from error
    bundle = Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js"
    return bundle.read_text(encoding="utf-8").replace("</script", "<\\/script")


STYLE = """
.cv-row { display: flex; align-items: baseline; gap: 10px; margin: 3px 0; }
.cv-label { flex: 0 0 56px; text-align: right; font-size: 12px; color: #616e7c; }
.cv { flex: 1 1 auto; min-width: 0; font-size: 12px; line-height: 1.5; }
"""
RENDER = """
(function () {
  document.querySelectorAll(".cv:not([data-drawn])").forEach(function (place) {
    var figure = JSON.parse(place.nextElementSibling.textContent);
    place.setAttribute("data-drawn", "true");
    CircuitsVis.render(place.id, CircuitsVis[figure.element], figure.props);
  });
})();
"""
