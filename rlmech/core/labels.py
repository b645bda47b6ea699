"""Which entity stands in which row of an activation, found by moving one entity at a time and looking what changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rlmech.axes import Axis
from rlmech.core.axis_names import IMAGE, numbered
from rlmech.core.cells import GATES
from rlmech.core.engine import Engine
from rlmech.core.hook_point import HookRegistry
from rlmech.core.observation import ObservationFormat
from rlmech.core.points import Point
from rlmech.spec import PolicySpec

Labels = dict[str, tuple[str, ...]]
CHANNELS_LAST: tuple[Axis, ...] = ("batch", "height", "width", "channel")


def observed_images(points: Mapping[str, Point], images: Collection[str], spec: PolicySpec) -> dict[str, Point]:
    """The points, the axes of observed images named where no convolution names them.

    They are where the spec names what lies along three axes of these sizes, and only one order of them fits; else where
    the observation space says that it is an image, which has its channels first then.

    Args:
        points: By name.
        images: Keys of the observations that are images.
        spec: What observations mean.
    """
    height, width, channel = (len(spec.labels.get(axis, ())) for axis in CHANNELS_LAST[1:])
    orders: dict[tuple[object, ...], tuple[Axis, ...]] = {
        (channel, height, width): IMAGE,
        (height, width, channel): CHANNELS_LAST,
    }
    told = orders if len(orders) == 2 and height and width and channel else {}
    named: dict[str, Point] = {}
    for name, point in points.items():
        is_free = point.kind == "observation" and point.axes == numbered(4)
        shape = tuple(point.address.layout.canonical_shape[1:])
        axes = told.get(shape, IMAGE if name.partition(".")[2] in images else None)
        named[name] = replace(point, axes=axes) if is_free and axes is not None else point
    return named


def entity_labels(
    engine: Engine, points: Mapping[str, Point], observation: ObservationFormat, spec: PolicySpec
) -> dict[str, Labels]:
    """Names along the axes of every hook point.

    A row of an activation gets an entity's name where that entity alone moves it. A row that several entities move
    (past self-attention), or none, gets no name, and then its axis has none at all.
    """
    labels: dict[str, Labels] = {name: {} for name in points}
    for name, point in points.items():
        last = point.address.layout.canonical_shape[-1]
        if "gate" in point.axes:
            labels[name]["gate"] = GATES[point.address.layout.canonical_shape[point.axes.index("gate")]]
        if "action" in point.axes and spec.actions and last == len(spec.actions):
            labels[name]["action"] = spec.actions
        if "choice" in point.axes and point.address.layout.canonical_shape[1] == len(spec.choices):
            labels[name]["choice"] = spec.choices
        if point.kind == "observation" and last == len(spec.features):
            labels[name]["feature"] = tuple(feature.name for feature in spec.features)
        if point.kind == "observation":
            sizes = zip(point.axes, point.address.layout.canonical_shape, strict=True)
            labels[name] |= {axis: spec.labels[axis] for axis, n in sizes if len(spec.labels.get(axis, ())) == n > 0}
    shape = observation.shapes.get("")
    if shape is not None and not observation.is_sequence and len(shape) == 2 and len(spec.entities) == shape[0]:
        moved = _moved_rows(engine, observation, n_entities=shape[0], presence=spec.presence_index)
        for name, rows in moved.items():
            owners = [_single(row) for row in rows]
            if all(owner is not None for owner in owners):
                labels[name]["entity"] = tuple(spec.entities[owner] for owner in owners if owner is not None)
        _label_attention(engine, labels)
    return labels


def _label_attention(engine: Engine, labels: dict[str, Labels]) -> None:
    """Queries and keys are named as the rows that they are made of."""
    for block in engine.attention.values():
        roles = (("query", "q"), ("key", "v"), ("key", "k"))  # the values' rows name the keys where these are no points
        rows = {axis: block.names[role] for axis, role in roles if role in block.names}
        for axis, source in rows.items():
            names = labels[source].get("entity")
            for name in block.names.values():
                sizes = dict(
                    zip(engine.points[name].axes, engine.points[name].address.layout.canonical_shape, strict=True)
                )
                if names and sizes.get(axis) == len(names):  # type: ignore[call-overload]
                    labels[name][axis] = names


def _moved_rows(
    engine: Engine, observation: ObservationFormat, *, n_entities: int, presence: int | None
) -> dict[str, Tensor]:
    """For each point with an entity axis: `[row, moved entity]`, True where the row changes."""
    names = tuple(name for name, point in engine.points.items() if "entity" in point.axes[1:2])
    base, *others = observation.samples(1)  # the others: the state
    features = [i for i in range(base.shape[-1]) if i != presence]

    def values(scene: Tensor) -> dict[str, Tensor]:
        # a batch each: what a row gives depends, in its last bit, on its place among others
        with torch.no_grad():
            return engine.run((scene, *others), names, HookRegistry(), {})[1]

    before = values(base)
    moved: dict[str, list[Tensor]] = {name: [] for name in before}
    for entity in range(n_entities):
        scene = base.clone()
        scene[0, entity, features] += 0.37
        for name, value in values(scene).items():
            moved[name].append((value != before[name])[0].flatten(1).any(-1))
    return {name: torch.stack(rows, 1) for name, rows in moved.items()}


def _single(moved: Tensor) -> int | None:
    entities = moved.nonzero().reshape(-1)
    return int(entities[0]) if len(entities) == 1 else None
