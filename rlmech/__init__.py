"""rlmech: mechanistic interpretability for reinforcement-learning policies.

These are the names of a first hour; everything else lives in the public module of its subject (`rlmech.patching`,
`rlmech.edges`, `rlmech.attribution`...), whose docstring lists it by task. A name is imported when it is first used, so
that `import rlmech` costs little more than `import torch`.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

from rlmech.public_names import MODULES, PUBLIC

__version__ = version("rlmech")

__all__ = [*PUBLIC, *MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        value = getattr(import_module(PUBLIC[name]), name)
    elif name in MODULES:
        value = import_module(f"rlmech.{name}")
    else:
        raise AttributeError(f"module 'rlmech' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
