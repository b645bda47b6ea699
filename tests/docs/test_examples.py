"""The README's Python blocks and the docstrings' examples run as they stand."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import rlmech
from rlmech.errors import ArgumentError
from rlmech.public_names import MODULES as PUBLIC_MODULES
from rlmech.public_names import PUBLIC

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(rlmech.__path__, "rlmech.")
    if not module.name.endswith("._kernel")  # plain C, loaded by ctypes, not a module of Python's
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_python_blocks_of_a_document_run_in_order(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(document), "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert results.failed == 0


def test_every_public_name_is_there_and_says_what_it_is():
    for name in rlmech.__all__:
        assert getattr(rlmech, name).__doc__, name


def public_things() -> dict[str, object]:
    """Every public class and function by its address."""
    found = {name: getattr(rlmech, name) for name in PUBLIC}
    for module in PUBLIC_MODULES:
        package = importlib.import_module(f"rlmech.{module}")
        found |= {f"{module}.{name}": getattr(package, name) for name in package.__all__}
    return {name: thing for name, thing in found.items() if inspect.isclass(thing) or inspect.isfunction(thing)}


def test_every_public_class_and_function_has_an_example():
    assert [name for name, thing in public_things().items() if ">>>" not in (thing.__doc__ or "")] == []


FUNCTIONS = [name for name, thing in public_things().items() if inspect.isfunction(thing)]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith("testbed.")])
def test_every_public_function_explains_a_wrong_call(name):
    with pytest.raises(ArgumentError):
        public_things()[name](no_such_argument=0)
