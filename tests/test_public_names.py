"""What `import rlmech` shows: one table, and all that follows it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rlmech
from rlmech.public_names import MODULES, PUBLIC, stub


def test_the_type_stub_is_what_the_table_says():
    assert Path(rlmech.__file__).with_name("__init__.pyi").read_text() == stub()


def test_no_public_name_stands_at_two_addresses_with_two_meanings():
    seen: dict[str, object] = {name: getattr(rlmech, name) for name in PUBLIC}
    for module in MODULES:
        for name in importlib.import_module(f"rlmech.{module}").__all__:
            value = getattr(getattr(rlmech, module), name)
            if module in ("plot", "testbed", "zoo"):
                continue
            assert seen.setdefault(name, value) is value, f"{module}.{name}"


def test_no_function_hides_its_module():
    for module in MODULES:
        package = importlib.import_module(f"rlmech.{module}")
        folder = Path(package.__file__).parent
        files = {path.stem for path in folder.glob("*.py")}
        hidden = [name for name in files & set(package.__all__) if not isinstance(getattr(package, name), ModuleType)]
        assert hidden == [], module


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(rlmech, "no_such_name")


@pytest.mark.parametrize("name", ["record", "compare_rollouts", "Scene", "load"])
def test_each_name_can_be_the_first_that_is_used(name):
    """A file of a package that is imported by name must not bring in all modules: that would go in a circle."""
    done = subprocess.run([sys.executable, "-c", f"import rlmech as rlm; rlm.{name}"], capture_output=True, check=False)

    assert done.returncode == 0, done.stderr.decode()[-300:]
