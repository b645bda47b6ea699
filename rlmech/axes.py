"""The axis glossary: every public tensor's axes are among these names, and no others."""

from __future__ import annotations

from typing import Literal, get_args

Axis = Literal[
    "batch",
    "step",
    "entity",
    "feature",
    "head",
    "query",
    "key",
    "d_head",
    "d_model",
    "neuron",
    "channel",
    "height",
    "width",
    "action",
    "gate",
    "choice",
    "episode",
    "pair",
    "site",
    "condition",
    "seed",
    "axis_1",
    "axis_2",
    "axis_3",
    "axis_4",
    "axis_5",
]
AXES: tuple[Axis, ...] = get_args(Axis)
