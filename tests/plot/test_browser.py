"""Pages in a headless Chromium with the network off: everything is drawn, and the console stays silent."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from rlmech.episodes import Recording
from rlmech.plot import Frame, Panel, Section, Steps, SvgFigure, attention, episodes, heatmap
from rlmech.plot import page as write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]
WALK = """<script>
document.addEventListener("drawn", function () {
  var seen = [];
  document.querySelectorAll(".steps").forEach(function (root) {
    var select = root.querySelector("select"), slider = root.querySelector("input");
    Array.from(select.options).forEach(function (option) {
      select.value = option.value;
      select.dispatchEvent(new Event("change"));
      for (var step = 0; step <= Number(slider.max); step += 1) {
        slider.value = step;
        slider.dispatchEvent(new Event("input"));
        seen.push(root.querySelector("output").textContent + "|" + root.querySelectorAll(".stage svg").length);
      }
    });
  });
  document.body.dataset.walked = JSON.stringify(seen);
});
</script>"""


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page as it is after a while, and what its console said."""
    assert CHROMIUM is not None
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=20000",
        "--window-size=1500,1200",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
    ]
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page.resolve().as_uri()], capture_output=True, timeout=240, check=True
    )
    log = done.stderr.decode(errors="replace")
    return done.stdout.decode(), [line for line in log.splitlines() if "CONSOLE" in line]


def drawn(dom: str) -> dict[str, int]:
    """How many figures of each kind there are, and how many of those were drawn."""
    own = re.sub(r"<(script|template).*?</\1>", "", dom, flags=re.DOTALL)
    return {
        "plots": len(re.findall(r'<div class="plot[ "]', own)),
        "plots drawn": len(re.findall(r'<div class="plot js-plotly-plot', own)),
        "patterns": len(re.findall(r'<div class="cv"', own)),
        "patterns drawn": len(re.findall(r'<div class="cv"[^>]*><(?!/div)', own)),
        "failed": len(re.findall(r'class="failed"', own)),
    }


def test_a_page_of_every_kind_of_figure_is_drawn_without_a_network(recording: Recording, tmp_path: Path):
    heat = heatmap(xr.DataArray(np.arange(-3.0, 5.0).reshape(2, 2, 2), dims=("head", "feature", "action")))
    square = attention(xr.DataArray(np.full((2, 3, 3), 1 / 3), dims=("head", "query", "key")))
    panels = [
        Panel(title=title, meaning="", figure=figure, code="x = 1")
        for title, figure in (("Episodes", episodes(recording)), ("Heat", heat), ("Square", square))
    ]
    page = write_page([Section(title="All", panels=tuple(panels))], tmp_path / "page.html")
    page.write_text(page.read_text().replace("</body>", f"{WALK}</body>"))
    dom, console = opened(page, tmp_path / "profile")
    assert console == []
    assert 'data-ready="true"' in dom
    assert "data-errors" not in dom
    found = drawn(dom)
    assert found["failed"] == 0
    assert found["plots"] == found["plots drawn"] == 2  # the scores along the episode, and the heat map
    assert found["patterns"] == found["patterns drawn"] == 3  # two heads of one step, and the square one
    walked = re.search(r'data-walked="([^"]*)"', dom)
    assert walked is not None
    steps = re.findall(r"step (\d+): \w+\|(\d+)", unescape(walked.group(1)))
    assert [int(step) for step, _ in steps] == recording.steps["step"].tolist()
    assert all(int(n_drawings) >= 2 for _, n_drawings in steps)


def test_a_figure_that_cannot_be_drawn_says_so_in_its_place(tmp_path: Path):
    broken = attention(xr.DataArray([[1.0]], dims=("head", "key")))
    panel = Panel(title="T", meaning="", figure=broken)
    page = write_page([Section(title="S", panels=(panel,))], tmp_path / "page.html")
    page.write_text(page.read_text().replace('"props"', '"prop s'))
    dom, _ = opened(page, tmp_path / "profile")
    assert "This figure could not be drawn" in dom
    assert "data-errors" in dom


def test_a_run_without_steps_that_change_still_shows_its_first(tmp_path: Path):
    svg = SvgFigure(svg='<svg xmlns="http://www.w3.org/2000/svg" id="first"><rect width="9" height="9"/></svg>')
    steps = Steps(frames=(Frame(group="run", label="step 0: WAIT", figures=(svg,)),))
    page = write_page(
        [Section(title="S", panels=(Panel(title="T", meaning="", figure=steps),))], tmp_path / "page.html"
    )
    dom, console = opened(page, tmp_path / "profile")
    assert console == []
    assert '<div class="main"><div class="cell"><div class="drawing"><svg' in dom


JUMP = """<script>
document.addEventListener("drawn", function () {
  var seen = [], output = document.querySelector(".controls output"), marks = document.querySelector(".marks");
  var canvas = marks.querySelector("canvas"), box = canvas.getBoundingClientRect();
  function click(place) { place.click(); seen.push(output.textContent); }
  click(marks.querySelectorAll("button")[1]);
  click(marks.querySelectorAll("button")[1]);
  click(marks.querySelectorAll("button")[0]);
  canvas.dispatchEvent(new MouseEvent("click", { clientX: box.left + box.width }));
  seen.push(output.textContent);
  document.body.dataset.walked = seen.join(",") + "," + marks.querySelectorAll("button").length;
});
</script>"""


def test_many_changes_are_a_strip_that_is_clicked_anywhere_and_two_buttons(tmp_path: Path):
    svg = SvgFigure(svg='<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>')
    frames = tuple(
        Frame(group="run", label=f"step {n}", mark="changed" if n % 2 else "", figures=(svg,)) for n in range(400)
    )
    panel = Panel(title="T", meaning="", figure=Steps(frames=frames))
    page = write_page([Section(title="S", panels=(panel,))], tmp_path / "page.html")
    page.write_text(page.read_text().replace("</body>", f"{JUMP}</body>"))
    dom, console = opened(page, tmp_path / "profile")
    assert console == []
    assert 'data-walked="step 1,step 3,step 1,step 399,2"' in dom
