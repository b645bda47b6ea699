"""Figures save themselves as what the path's ending says, or say in words why not."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
import xarray as xr

import rlmech as rlm
from rlmech.errors import ConfigError, MissingPackageError
from rlmech.plot import saving

FIRST_BYTES = {".pdf": b"%PDF", ".svg": b"<svg", ".png": b"\x89PNG", ".html": b"<!doctype html>"}
HAS_BROWSER = importlib.util.find_spec("kaleido") and (shutil.which("chromium") or shutil.which("google-chrome"))


def chart():
    return rlm.plot.heatmap(xr.DataArray(np.eye(2), dims=("head", "key")))


def drawing():
    return rlm.plot.scores(np.array([1.0, 2.0]), names=("SLOWER", "FASTER"), taken=1)


@pytest.mark.browser
@pytest.mark.skipif(not HAS_BROWSER, reason="needs kaleido and Chromium")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("make", "ending"), [(chart, ".pdf"), (chart, ".png"), (chart, ".svg"), (drawing, ".pdf")])
def test_a_figure_is_written_as_what_its_path_ends_in(make, ending, tmp_path):
    written = make().save(tmp_path / f"x{ending}").read_bytes()
    assert written.lstrip().startswith(FIRST_BYTES[ending])


def test_pages_and_drawings_need_no_browser(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "find_spec", lambda name: None)
    assert chart().save(tmp_path / "x.html").read_bytes().startswith(FIRST_BYTES[".html"])
    assert drawing().save(tmp_path / "x.svg").read_bytes().startswith(FIRST_BYTES[".svg"])


@pytest.mark.parametrize("make", [chart, drawing])
def test_kaleido_is_asked_for_in_words_before_anything_is_written(make, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as error:
        make().save(tmp_path / "x.pdf")
    assert "rlmech[figures]" in error.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "figure",
    [chart(), drawing(), rlm.plot.attention(xr.DataArray([[0.9, 0.1]], dims=("head", "key")))],
    ids=["chart", "drawing", "attention"],
)
def test_no_page_is_written_into_a_picture(figure, tmp_path):
    with pytest.raises(ConfigError, match="ending of the path"):
        figure.save(tmp_path / "x.jpeg")


def test_every_plot_of_plotly_can_save():
    result = xr.Dataset({"effect": ("site", [1.0, -2.0])}, coords={"hook": ("site", ["a", "b"])})
    result["effect_low"], result["effect_high"] = result["effect"] - 1, result["effect"] + 1
    assert isinstance(rlm.plot.ranking(result), rlm.plot.PlotFigure)
    assert isinstance(chart(), rlm.plot.PlotFigure)
