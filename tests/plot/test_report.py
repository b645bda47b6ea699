from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from rlmech.errors import ConfigError
from rlmech.plot import Frame, Panel, Section, Steps, SvgFigure, attention, heatmap
from rlmech.plot import page as write_page
from tests.plot.pages import frames as frames_of
from tests.plot.pages import unpacked

SVG = SvgFigure(svg='<svg xmlns="http://www.w3.org/2000/svg"><rect width="1" height="1"/></svg>')
HEAT = heatmap(xr.DataArray(np.eye(2), dims=("feature", "action")))
PATTERN = attention(xr.DataArray([[0.5, 0.5]], dims=("head", "key")))


def panel(figure: object, **more: str) -> Panel:
    return Panel(
        title=more.get("title", "T"), meaning=more.get("meaning", "M"), figure=figure, code=more.get("code", "")
    )  # type: ignore[arg-type]


def written(path: Path, *panels: Panel, **more: str) -> str:
    page = write_page([Section(title="S", panels=panels)], path / "page.html", **more)  # type: ignore[arg-type]
    return page.read_text(encoding="utf-8")


def test_a_page_loads_nothing_from_anywhere(tmp_path: Path):
    page = written(tmp_path, panel(HEAT), panel(PATTERN), panel(SVG))
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", own)
    assert "@import" not in own
    assert not re.search(r"<script[^>]+src=", page)


def test_each_library_is_in_the_page_once(tmp_path: Path):
    page = written(tmp_path, panel(HEAT), panel(HEAT), panel(PATTERN), panel(PATTERN))
    plotly, circuitsvis = unpacked(page, "library")
    assert "plotly.js v" in plotly
    assert "var CircuitsVis=" in circuitsvis


def test_a_page_with_both_libraries_is_of_two_and_a_half_megabytes_at_most(tmp_path: Path):
    assert len(written(tmp_path, panel(HEAT), panel(PATTERN))) < 2_500_000


def test_a_page_is_written_alike_each_time(tmp_path: Path):
    steps = Steps(frames=(Frame(group="run", label="step 0", figures=(SVG,)),))
    assert written(tmp_path, panel(HEAT), panel(steps)) == written(tmp_path, panel(HEAT), panel(steps))


def test_a_library_that_no_figure_needs_is_left_out(tmp_path: Path):
    page = written(tmp_path, panel(SVG))
    assert len(page) < 100_000


def test_every_entry_of_the_contents_leads_somewhere(tmp_path: Path):
    page = written(tmp_path, panel(SVG, title="One"), panel(SVG, title="Two"))
    targets = re.findall(r'href="#([^"]+)"', page)
    assert {"s1", "s1-1", "s1-2"} <= set(targets)
    assert all(f'id="{target}"' in page for target in targets)


def test_a_panel_shows_its_title_meaning_and_code(tmp_path: Path):
    page = written(tmp_path, panel(SVG, title="Heads", meaning="What each says.", code="x = 1  # one"))
    assert "<h3>Heads</h3>" in page
    assert "What each says." in page
    text = re.sub(r"<[^>]+>", "", page)
    assert "x = 1  # one" in text


def test_what_is_given_is_text_not_markup(tmp_path: Path):
    page = written(tmp_path, panel(SVG, title="<b>", meaning="a < b", code="if a < b: '</pre>'"), title="<i>")
    assert "<h3>&lt;b&gt;</h3>" in page
    assert "a &lt; b" in page
    assert "<title>&lt;i&gt;</title>" in page
    assert page.count("</pre>") == 1


@pytest.mark.parametrize(
    "code", ["x = 1\n\ndef f(a):\n    return f'{a}'\n", "not python (", "s = '''two\nlines'''\ny = 2", "# only\n"]
)
def test_highlighting_keeps_the_code_as_it_is(tmp_path: Path, code: str):
    from html import unescape

    page = written(tmp_path, panel(SVG, code=code))
    shown = re.search(r"<pre>(.*?)</pre>", page, flags=re.DOTALL)
    assert shown is not None
    assert unescape(re.sub(r"<[^>]+>", "", shown.group(1))).strip() == code.strip()


def test_steps_wait_compressed_with_their_labels_and_marks(tmp_path: Path):
    frames = tuple(
        Frame(group="run", label=f"step {i}", mark="change" if i else "", position=i, figures=(SVG,)) for i in range(3)
    )
    page = written(tmp_path, panel(Steps(frames=frames, overviews={"run": SVG})))
    assert [(frame["label"], frame["mark"], frame["position"]) for frame in frames_of(page)] == [
        ("step 0", "", 0),
        ("step 1", "change", 1),
        ("step 2", "change", 2),
    ]
    assert page.count('<template class="group-overview"') == 1


def test_a_page_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path):
    written(tmp_path, panel(SVG), title="old")
    assert "<h1>new</h1>" in written(tmp_path, panel(SVG), title="new")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_page_is_never_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    original = Path.write_text

    def noting(self: Path, *args: str, **kwargs: str) -> int:
        opened.append(self.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", noting)
    written(tmp_path, panel(SVG))
    assert opened
    assert "page.html" not in opened


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = written(tmp_path, panel(SVG), title="old")

    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path, panel(SVG), title="new")
    assert (tmp_path / "page.html").read_text() == old


def test_a_report_without_sections_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="a section and an HTML file"):
        write_page([], tmp_path / "page.html")


def test_a_report_that_is_not_html_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        write_page([Section(title="S", panels=(panel(SVG),))], tmp_path / "page.pdf")


def test_a_drawing_is_saved_as_svg(tmp_path: Path):
    assert SVG.save(tmp_path / "road.svg").read_text() == SVG.svg
    with pytest.raises(ConfigError, match="ending of the path"):
        SVG.save(tmp_path / "road.jpg")
