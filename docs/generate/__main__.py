"""Assemble the site's sources in `build/docs/source` and build them: `python -m docs.generate`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from docs.generate import error_index, gallery, other_libraries, reference

ROOT = Path(__file__).resolve().parents[2]
DOCS, BUILD = ROOT / "docs", ROOT / "build" / "docs"
SEARCH_IN_FILES = "https://unpkg.com/iframe-worker/shim"
"""What Zensical's pages load so that search works in pages that are opened as files."""
NAV: dict[str, list[str]] = {
    "Start": ["start.md", "opens.md", "tour.md", "command_line.md", "coming_from.md"],
    "Gallery": ["gallery/index.md"],
    "Understand": [
        "understand.md",
        "exact.md",
        "intervals.md",
        "episodes.md",
        "proofs.md",
        "features.md",
        "cluster.md",
        "speed.md",
    ],
    "Atlas": ["atlas.md"],
    "Experiments": [],
    "Reference": ["reference/index.md", "reference/rlmech.md"],
    "Errors": ["errors/index.md"],
    "Project": ["cite.md", "changelog.md", "contributing.md", "release.md"],
}
_MOVED = [  # links of the repository -> links of the site
    (r"\]\(docs/", "]("),
    (r"\]\(\.\./README\.md", "](index.md"),
    (r"\]\((\.\./)?CONTRIBUTING\.md", "](contributing.md"),
    (r"\]\((\.\./)?CHANGELOG\.md", "](changelog.md"),
    (r"\]\(\.\./(?=experiments/)", "]("),
]


def assemble(target: Path, pages: list[gallery.Page]) -> dict[str, list[str]]:
    """Write all sources of the site, by hand and generated, into a folder; the navigation is returned.

    Args:
        target: The folder; emptied first.
        pages: The gallery's pages, as run.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    written = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
    for name, file in (
        ("index.md", "README.md"),
        ("changelog.md", "CHANGELOG.md"),
        ("contributing.md", "CONTRIBUTING.md"),
    ):
        written[name] = (ROOT / file).read_text(encoding="utf-8")
    for name, text in written.items():
        for pattern, moved in _MOVED:
            text = re.sub(pattern, moved, text)
        written[name] = text
    written["coming_from.md"] += "\n" + other_libraries.tables()
    written |= reference.pages() | error_index.pages()
    written |= {f"gallery/{page.name}.md": page.markdown for page in pages}
    written["gallery/index.md"] = gallery.index(pages)
    experiments = sorted((ROOT / "experiments").glob("*/README.md"))
    written |= {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in experiments}
    for name, text in written.items():
        _write(target / name, text)
    for page in pages:
        for name, text in page.files.items():
            _write(target / "gallery" / name, text)
    for picture in [*DOCS.glob("*.png"), *DOCS.glob("gallery/*.png"), *DOCS.glob("assets/*")]:
        _copy(picture, target / picture.relative_to(DOCS))
    for picture in (ROOT / "experiments").glob("*/*.png"):
        _copy(picture, target / picture.relative_to(ROOT))
    nav = {name: list(paths) for name, paths in NAV.items()}
    listed = {path for paths in nav.values() for path in paths} | {"index.md", "glossary.md"}
    nav["Understand"] += [name for name in written if "/" not in name and name not in listed]  # guides of their own
    nav["Gallery"] += [f"gallery/{page.name}.md" for page in pages]
    nav["Experiments"] += [str(path.relative_to(ROOT)) for path in experiments]
    nav["Reference"] += [name for name in written if re.match(r"reference/(?!index|rlmech)", name)] + ["glossary.md"]
    nav["Errors"] += [name for name in written if re.match(r"errors/(?!index)", name)]
    _llms(target, nav, written)
    return nav


def build() -> None:
    """Run the gallery, assemble the sources, and build the site strictly."""
    from plotly.offline import get_plotlyjs

    nav = assemble(BUILD / "source", gallery.run_all())
    _write(BUILD / "source" / "assets" / "plotly.min.js", get_plotlyjs())
    listed = ", ".join(f"{{ {json.dumps(name)} = {json.dumps(paths)} }}" for name, paths in nav.items())
    config = (DOCS / "zensical.toml").read_text(encoding="utf-8")
    _write(BUILD / "zensical.toml", config.replace("nav = []", f'nav = ["index.md", {listed}]'))
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict", "--clean"]
    if failed := subprocess.run(command, cwd=BUILD, check=False).returncode:
        sys.exit(failed)
    for path in (BUILD / "site").rglob("*.html"):
        depth = len(path.relative_to(BUILD / "site").parts) - 1
        _write(path, own_scripts(path.read_text(encoding="utf-8"), depth=depth))


def own_scripts(page: str, *, depth: int) -> str:
    """A page that loads nothing from elsewhere: the generator's search takes a script from a host of its choice.

    Args:
        page: HTML.
        depth: How many folders it lies below the site's root.

    Raises:
        ValueError: It loads something else from a host.
    """
    page = page.replace(SEARCH_IN_FILES, "../" * depth + "assets/file_worker.js")
    loaded = re.findall(r"<(?:script|img|link rel=.?stylesheet.?)[^>]*(?:src|href)=.?(https?://[^\s>]+)", page)
    if loaded:
        raise ValueError(f"a page loads {loaded[0]}; put it into docs/assets")
    return page


def _llms(target: Path, nav: dict[str, list[str]], written: dict[str, str]) -> None:
    """`llms.txt`, a map of the site for language models, and `llms-full.txt`, the pages written by hand in one."""
    lines = [
        f"# rlmech {version('rlmech')}",
        "",
        "> Mechanistic interpretability for reinforcement-learning policies.",
        "",
    ]
    for section, paths in nav.items():
        lines += [f"## {section}", ""]
        for path in paths:
            heading = next((line[2:] for line in written[path].splitlines() if line.startswith("# ")), path)
            lines.append(f"- [{heading}]({path.removesuffix('.md').replace('README', 'index')}.html)")
        lines.append("")
    _write(target / "llms.txt", "\n".join(lines))
    by_hand = ["index.md", *(path for name in ("Start", "Understand") for path in nav[name]), "glossary.md"]
    _write(target / "llms-full.txt", "\n\n".join(written[path] for path in by_hand))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)


if __name__ == "__main__":
    build()
