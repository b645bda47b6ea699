"""A features extractor's class as the user names it: the class, or `module:Class`, or `path/to/file.py:Class`.

What a zip names is never imported; this is what the user says himself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from rlmech.errors import ConfigError, nearest


def extractor_class(given: type[nn.Module] | str) -> type[nn.Module]:
    """The class that the user gives or names.

    Raises:
        ConfigError: There is no such module, file or class, or it is no torch module.
    """
    if isinstance(given, type):
        return given
    place, _, name = given.rpartition(":")
    if not place or not name:
        raise ConfigError(
            "A class is named as module:Class or path/to/file.py:Class.",
            given=f"features_extractor_class={given!r}",
            expected="a module and a class, with a colon between them",
            fix="e.g. features_extractor_class='my_package.extractors:MyExtractor'",
        )
    try:
        if place.endswith(".py"):
            module = _from_file(Path(place).expanduser())
        else:
            with _on_path(Path.cwd()):  # which a command has not on its path, as `python -m` has
                module = importlib.import_module(place)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"{place} cannot be imported: {error}.",
            given=f"features_extractor_class={given!r}",
            expected="a module on the path, or the file of one",
            fix="give the file, path/to/file.py:Class, or add its folder to PYTHONPATH",
        ) from error
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    classes = [key for key, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    close = nearest(name, classes)
    raise ConfigError(
        f"{place} has no features extractor {name!r}.",
        given=f"features_extractor_class={given!r}",
        expected=f"one of {', '.join(classes)}" if classes else "a class of torch modules",
        fix=f"did you mean {close[0]!r}?" if close else "check the name",
    )


def _from_file(file: Path) -> object:
    spec = importlib.util.spec_from_file_location(f"_rlmech_{file.stem}", file.resolve())
    if spec is None or spec.loader is None or not file.is_file():
        raise OSError(f"there is no file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that what it defines can be pickled
    with _on_path(file.resolve().parent):  # a script imports what lies beside it
        spec.loader.exec_module(module)
    return module


@contextmanager
def _on_path(folder: Path) -> Generator[None]:
    """Let modules of a folder be imported, as they are where a script of it runs."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
