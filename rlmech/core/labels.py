"""Which entity stands in which row of an activation, found by moving one entity at a time and looking what changes."""

from __future__ import annotations

import torch
from torch import Tensor

from rlmech.core.engine import Engine
from rlmech.core.hook_point import HookRegistry
from rlmech.core.observation import ObservationFormat
from rlmech.spec import PolicySpec

Labels = dict[str, tuple[str, ...]]


def entity_labels(engine: Engine, observation: ObservationFormat, spec: PolicySpec) -> dict[str, Labels]:
    """Names along the axes of every hook point.

    A row of an activation gets an entity's name where that entity alone moves it; a row that several entities move (after
    self-attention) or none does gets no name, and then the axis has none at all.
    """
    labels: dict[str, Labels] = {name: {} for name in engine.points}
    for name, point in engine.points.items():
        if "action" in point.axes and spec.actions and point.address.layout.canonical_shape[-1] == len(spec.actions):
            labels[name]["action"] = spec.actions
        if point.kind == "observation" and len(spec.features) == point.address.layout.canonical_shape[-1]:
            labels[name]["feature"] = tuple(feature.name for feature in spec.features)
    shape = observation.shapes.get("")
    if shape is None or len(shape) != 2 or len(spec.entities) != shape[0]:
        return labels
    moved = _moved_rows(engine, observation, n_entities=shape[0], presence=spec.presence_index)
    for name, rows in moved.items():
        owners = [_single(row) for row in rows]
        if all(owner is not None for owner in owners):
            names = tuple(spec.entities[owner] for owner in owners if owner is not None)
            labels[name]["entity"] = names
    for block in engine.attention.values():
        for axis, role in (("query", "q"), ("key", "k")):
            names = labels[block.names[role]].get("entity")  # type: ignore[index]
            for name in block.names.values():
                point = engine.points[name]
                if names and axis in point.axes and point.address.layout.canonical_shape[point.axes.index(axis)] == len(names):  # type: ignore[arg-type]
                    labels[name][axis] = names
    return labels


def _moved_rows(
    engine: Engine, observation: ObservationFormat, *, n_entities: int, presence: int | None
) -> dict[str, Tensor]:
    """For each point with an entity axis: `[row, moved entity]`, True where the row changes."""
    names = tuple(name for name, point in engine.points.items() if "entity" in point.axes[1:2])
    base = observation.samples(1)[0]
    scenes = base.repeat(n_entities + 1, 1, 1)
    features = [i for i in range(base.shape[-1]) if i != presence]
    for entity in range(n_entities):
        for feature in features:
            scenes[entity + 1, entity, feature] += 0.37
    with torch.no_grad():
        _, values = engine.run((scenes,), names, HookRegistry(), {})
    return {name: (value[1:] != value[:1]).flatten(2).any(-1).T for name, value in values.items()}


def _single(moved: Tensor) -> int | None:
    entities = moved.nonzero().reshape(-1)
    return int(entities[0]) if len(entities) == 1 else None
