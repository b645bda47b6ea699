"""rlmech: mechanistic interpretability for reinforcement-learning policies.

These are the names of a first hour; everything else lives in the public module of its subject (`rlmech.patching`,
`rlmech.edges`, `rlmech.attribution`...), whose docstring lists it by task. A name is imported when it is first used, so
that `import rlmech` costs little more than `import torch`.
"""

from importlib.metadata import version

from rlmech.public_names import MODULES, PUBLIC, lazy

__version__ = version("rlmech")

__all__ = [*PUBLIC, *MODULES]  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__, __dir__ = lazy(__name__, PUBLIC, MODULES)
