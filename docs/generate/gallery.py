"""The gallery: scripts of `# %%` cells, run, with what they print and draw written below each cell.

A script begins with a docstring: its question, an empty line, and the answer in a few sentences. A cell that starts
with `# %% [markdown]` is text. What a cell prints, and its last expression, is shown; plotly's figures stay live.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

THUMBNAIL = (640, 480)
"""The largest width and height of a card's picture, in pixels: twice what it is shown in."""
FOLDER = Path(__file__).resolve().parents[1] / "gallery"
_PLOT = '<div id="{name}" class="figure" style="height:{height}px"></div>\n<script src="{name}.js"></script>\n'
_DRAW = "Plotly.newPlot({name!r}, {figure}.data, {figure}.layout, {{responsive: true, displaylogo: false}});"


@dataclass
class Page:
    """A script that was run: its Markdown, the files that it draws, by name, and its first figure."""

    name: str
    title: str
    answer: str
    markdown: str = ""
    files: dict[str, str] = field(default_factory=dict[str, str])
    figure: Any = None


def scripts() -> list[Path]:
    """The gallery's scripts, in order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def run_all(workers: int = 2) -> list[Page]:
    """Run every script, each in a process of its own."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return list(pool.map(run, scripts()))


def draw_thumbnails() -> None:
    """Run every script and keep its first figure as the picture on its card; needs Kaleido and a Chromium."""
    for script in scripts():
        page = run(script)
        if page.figure is not None:
            _reduced(page.figure.save(FOLDER / f"{page.name}.png"))


def _reduced(picture: Path) -> None:
    """Make a picture as small as a card shows it, in few colours."""
    with Image.open(picture) as drawn:
        drawn.thumbnail(THUMBNAIL)
        drawn.convert("RGB").quantize(64).save(picture, optimize=True)


def run(script: Path) -> Page:
    """Run a script and keep what it shows.

    Args:
        script: The script.
    """
    source = script.read_text(encoding="utf-8")
    first, *cells = re.split(r"^# %%", source, flags=re.MULTILINE)
    title, _, answer = (ast.get_docstring(ast.parse(first)) or "").partition("\n\n")
    name = script.stem.partition("_")[2]
    page = Page(name, title, " ".join(answer.split()))
    parts = [f"# {title}", "", answer, "", f"[Download this page as a script]({script.name}).", ""]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    drawn = False
    for cell in cells:
        kind, _, body = cell.partition("\n")
        if kind.strip() == "[markdown]":
            parts += [re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip(), ""]
            continue
        parts += ["```python", body.strip(), "```", ""]
        printed, value = _execute(body, namespace, str(script))
        if printed.strip():
            parts += ["``` { .text .output }", printed.rstrip(), "```", ""]
        shown = "" if value is None else _show(value, page)
        drawn |= ".js" in shown
        parts += [shown, ""]
    if drawn:
        parts.insert(1, '\n<script src="../assets/plotly.min.js"></script>\n')
    page.markdown = "\n".join(parts)
    page.files[script.name] = source
    return page


def index(pages: list[Page]) -> str:
    """The gallery's first page: a card for each script."""
    lines = [
        "# Gallery",
        "",
        "One question a page, asked of a policy that is shipped, answered by code that was run when this site was "
        "built. Each takes seconds on one core; every page is also a script.",
        "",
        '<div class="cards" markdown>',
        "",
    ]
    for page in pages:
        picture = f'<img src="{page.name}.png" alt="" loading="lazy">' if (FOLDER / f"{page.name}.png").exists() else ""
        words = f"<strong>{page.title}</strong><span>{page.answer}</span>"
        lines.append(f'<a class="card" href="{page.name}.html">{picture}{words}</a>')
    return "\n".join([*lines, "", "</div>", ""])


def _execute(body: str, namespace: dict[str, Any], file: str) -> tuple[str, Any]:
    """Run a cell; what it printed, and the value of its last line where that is an expression."""
    tree = ast.parse(body, file)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, file, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), file, "eval"), namespace)
    return printed.getvalue(), value


def _show(value: Any, page: Page) -> str:
    """A value as Markdown: figures as files beside the page, all else as text."""
    import plotly.graph_objects as go

    import rlmech as rlm

    name = f"{page.name}-{len(page.files) + 1}"
    if page.figure is None and isinstance(value, go.Figure | rlm.plot.SvgFigure):
        page.figure = value
    if isinstance(value, go.Figure):
        layout: Any = value.layout
        page.files[f"{name}.js"] = _DRAW.format(name=name, figure=f"({value.to_json()})")
        return _PLOT.format(name=name, height=layout.height or 420)
    if isinstance(value, rlm.plot.SvgFigure):
        page.files[f"{name}.svg"] = value.svg
        return f"![]({name}.svg){{ .figure }}"
    if type(value).__module__.startswith("pandas"):
        return f"``` {{ .text .output }}\n{value.to_string()}\n```"
    return f"``` {{ .text .output }}\n{value}\n```"
