"""The documentation site: its links hold, its scripts run, its generated pages are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rlmech
from docs.generate import error_index, gallery, other_libraries, reference
from docs.generate.__main__ import SEARCH_IN_FILES, assemble, own_scripts
from rlmech import axes

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's sources, the gallery's scripts not run."""
    folder = tmp_path_factory.mktemp("site") / "source"
    pages = [gallery.Page(script.stem.partition("_")[2], script.stem, "", "# A page") for script in gallery.scripts()]
    return folder, assemble(folder, pages)


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page(site):
    folder, nav = site
    listed = {path for paths in nav.values() for path in paths} | {"index.md"}

    assert listed == {str(path.relative_to(folder)) for path in folder.rglob("*.md")}


def test_links_between_pages_lead_to_pages(site):
    folder, _ = site
    broken = [
        (str(page.relative_to(folder)), link)
        for page in folder.rglob("*.md")
        for link in re.findall(r"\]\(([^)#\s]+\.(?:md|png))[)#]", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]

    assert broken == []


def test_links_of_the_repository_lead_to_files():
    root = DOCS.parent
    generated = re.compile(r"^(gallery|reference|errors)/")
    broken = [
        (page.name, link)
        for page in [root / "README.md", root / "CONTRIBUTING.md", *DOCS.glob("*.md")]
        for link in re.findall(r"\]\(([^)#\s]+\.(?:md|png))[)#]", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists() and not generated.match(link)
    ]

    assert broken == []


def test_every_card_of_the_gallery_has_a_small_picture(site):
    folder, _ = site
    cards = (folder / "gallery" / "index.md").read_text(encoding="utf-8")
    for script in gallery.scripts():
        picture = f"{script.stem.partition('_')[2]}.png"
        assert f'<img src="{picture}"' in cards, f"make thumbnails, for {picture}"
        assert (folder / "gallery" / picture).stat().st_size < 40_000


@pytest.mark.slow
@pytest.mark.parametrize("script", gallery.scripts(), ids=lambda path: path.stem)
def test_a_script_of_the_gallery_runs_and_shows_something(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = gallery.run(script)

    assert page.title.endswith("?")
    assert ".output" in page.markdown
    assert len(page.files) > 1  # itself, and a figure


def test_every_public_name_is_in_the_reference():
    assert reference.uncovered() == []
    written = reference.pages()
    for module in rlmech.public_names.MODULES:
        for name in getattr(rlmech, module).__all__:
            assert f"rlm.{module}.{name}" in written[f"reference/{module}.md"], name


def test_the_error_index_tells_of_each_message_how_to_mend_it():
    found = error_index.messages()

    assert {message.error for message in found} >= {"SiteError", "ConfigError", "ParityError", "MissingPackageError"}
    assert len(found) > 500
    assert [message for message in found if not message.fix] == []


def test_the_glossary_has_every_axis_and_no_other():
    rows = re.search(r"\| axis \|.*?\n\n", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.DOTALL)
    assert rows is not None
    assert set(re.findall(r"`(\w+)`", rows[0])) - {'"baseline"'} == set(axes.AXES)


def test_every_answer_to_another_librarys_name_is_on_the_page():
    written = other_libraries.tables()

    for answers in other_libraries.OWNERS.values():
        for name in answers:
            assert f"| `{name}` |" in written


def test_names_that_are_told_apart_by_library_are_answered():
    answered = {name for answers in other_libraries.OWNERS.values() for name in answers}

    assert set().union(*other_libraries.LIBRARIES.values()) <= answered


def test_the_version_to_cite_is_this_one():
    assert f"{{{rlmech.__version__}}}" in (DOCS / "cite.md").read_text(encoding="utf-8")


def test_a_page_loads_nothing_from_a_host_and_search_in_files_is_our_own():
    page = own_scripts(f'<a href="https://x.org"></a><script src="{SEARCH_IN_FILES}"></script>', depth=2)
    assert page == '<a href="https://x.org"></a><script src="../../assets/file_worker.js"></script>'
    assert (DOCS / "assets" / "file_worker.js").is_file()
    with pytest.raises(ValueError, match="more"):
        own_scripts('<script src="https://x.org/more.js"></script>', depth=0)
