"""Names for values that Python's types say little about, so that a signature says what they are.

Example:
    >>> from rlmech.untyped import JsonObject
    >>> settings: JsonObject = {"duration": 8, "observation": {"type": "Kinematics"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JsonObject = dict[str, Any]
"""A JSON object as Python reads it: a manifest, a card, a configuration, a line of a table."""
Settings = Mapping[str, Any]
"""The same, to be read only: a configuration, keywords, an environment's info, a state by name."""
Variables = dict[str, Any]
"""What xarray takes as variables, coordinates or attributes, in any of its forms."""
Row = tuple[Any, ...]
"""A row of a table, in the order of its columns."""
Stepped = tuple[Any, Any, bool, bool, JsonObject]
"""What an environment's step gives: observation, reward, terminated, truncated and info."""
Args = tuple[Any, ...]
"""Positional arguments of an operation: tensors, nodes of a graph or numbers."""
Kwargs = dict[str, Any]
"""Its keywords."""
