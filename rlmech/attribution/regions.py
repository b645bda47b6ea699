"""Linear regions: which one an observation lies in, and how far it is to the nearest gate.

    margin = min over boundaries |pre(x)| / |d pre / d x|        Euclidean, over the whole observation

The quotient is the distance to a gate's own hyperplane, continued beyond the region; the least of them is the distance
to the region's border exactly, since the boundary met first is met inside the region. Attention patterns and masks are
frozen. Cost of `region_margins`: one tangent pass for each number of an observation, fewer where numbers stay apart
(`boundary_slopes`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int64, Shaped
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.boundary_slopes import Plan, boundaries, plan_of, steepness
from rlmech.attribution.readouts import array, as_variables, made_by, scores_of
from rlmech.circuits.frozen import Frozen, freeze
from rlmech.core.acting import as_numpy
from rlmech.core.curve_table import SMOOTH
from rlmech.core.graph import Node, depends_on_input
from rlmech.core.observation import Observation
from rlmech.core.operations.reading import behaviour, record_of
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EngineError
from rlmech.results import storable

FROZEN = "attention patterns and masks as on each observation"
_NUMBERS_AT_ONCE = 2**24
POSITION = np.dtype("<U64")
"""A position along the axes of a hook point, as text; eight axes of a million neurons fit."""


@explain_misuse
def region_margins(policy: HookedPolicy, obs: Observation) -> xr.Dataset:
    """How far each observation can move before a gate turns, and which gate that is.

    Exact for piecewise linear policies: every move shorter than the margin stays in the region, and the shortest way
    out is as long as it. Where there is attention, of the policy with its patterns frozen.

    Args:
        policy: A policy that is piecewise linear but for its attention, and for a last curve of each score that only
            rises, such as tanh on the actions of SAC and TD3: the regions are those of what it squashes.
        obs: A batch of observations.

    Returns:
        `margin[batch]` in units of the observation as the network sees it, infinite where no gate depends on it;
        `nearest_gate[batch]`, the hook name of the gate; `nearest_position[batch]`, the neuron's place along the hook
        point's axes, e.g. `3, 12`, and a place in the window last for a pool; `region[batch]` as in `local_affine`.

    Raises:
        EngineError: The policy runs on the eager engine, or something on the way bends between its gates; there
            `local_affine` with a box bounds instead how far the tangent is off.
        AttentionError: A softmax is on the way that belongs to no verified attention block.

    Source:
        Croce, Andriushchenko and Hein 2019, *Provable Robustness of ReLU networks via Maximization of Linear Regions*,
        arXiv 1810.07481, section 2.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.attribution.regions import region_margins
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]])), net[0].bias.data.zero_()
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 2))
        >>> region_margins(policy, torch.tensor([[1.0, 0.5]])).margin.item()  # min(5 / 5, 0.5 / 1)
        0.5
    """
    policy = policy.fitting(obs)
    return margins_of(policy, policy.coerce(obs))


def margins_of(policy: HookedPolicy, observed: Sequence[Tensor]) -> xr.Dataset:
    """The same from the tensors of an observation."""
    frozen = freeze(policy, (before_squashing(policy),), curves="tangent")
    if frozen.curves:
        first = frozen.curves[0]
        raise EngineError(
            f"There is no linear region to leave: {first.node.op!r} in {first.name!r} is a curve.",
            given=type(policy.module).__name__,
            expected="a network that is piecewise linear up to a last curve that only rises, such as tanh on an action",
            fix="rlm.attribution.local_affine(policy, obs, box=...) bounds how far the tangent is off in a box",
        )
    arrays = tuple(variable.detach() for variable in as_variables(observed, policy))
    size, n = sum(value[0].numel() for value in arrays) if len(arrays[0]) else 1, len(arrays[0])
    shapes = _one_row(frozen, arrays) if n else [[] for _ in frozen.gates]
    widths = [sum(map(math.prod, own)) for own in shapes]
    plan = plan_of(frozen, [math.prod(value.shape[1:]) for value in arrays])
    rows = max(1, _NUMBERS_AT_ONCE // (size * max(1, sum(widths))))
    margin, place, region = [np.zeros(0)], [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for start in range(0, n, rows):
        part = tuple(value[start : start + rows] for value in arrays)
        distances, ids = _distances(frozen, plan, part, widths)
        nearest = distances.min(1) if distances.shape[1] else None
        closest = nearest.values if nearest else distances.new_full((len(part[0]),), torch.inf)
        margin.append(as_numpy(closest))
        place.append((nearest.indices if nearest else torch.zeros(len(part[0]), dtype=torch.long)).cpu().numpy())
        region.append(ids)
    margins = np.concatenate(margin[1:] or margin)
    names, positions = _where(frozen, shapes, np.concatenate(place), margins)
    data = {
        "margin": array(margins, ("batch",), units="1"),
        "nearest_gate": ("batch", names),
        "nearest_position": ("batch", positions),
        "region": ("batch", region_names(np.concatenate(region))),
    }
    return storable(xr.Dataset(data), made_by(policy, "region_margins", frozen=FROZEN, distance="Euclidean"))


def before_squashing(policy: HookedPolicy) -> Node:
    """What the scores are made of by functions of each number that only rise: where those of SAC and TD3 are linear.

    Scales, offsets and moves of elements are passed too; the scores' own node where there is no such function.
    """
    node = before = scores_of(policy).node
    while True:
        record = record_of(node)
        reads = [read for read in node.inputs() if depends_on_input(read) and read.op != "sym_size"]
        if len(reads) != 1:
            return before
        acts = behaviour(node, reads)
        if acts == "curve" and record.curve in SMOOTH:
            if not SMOOTH[record.curve](*node.args[1:], **node.kwargs).rises:
                return before
            before = reads[0]
        elif acts != "affine" or not (record.keeps_elements or record.moves == "elementwise"):
            return before
        node = reads[0]


def region_ids(frozen: Frozen, values: dict[Node, Tensor]) -> Int64[np.ndarray, " batch"]:
    """A number for each row's linear region: a hash of the sides of all gates, the same only where these are.

    Args:
        frozen: The frozen policy.
        values: Of what its gates read.
    """
    sides = [boundary.side.flatten(1) for gate in frozen.gates for boundary in gate.boundaries(values)]
    if not sides:
        n = values[frozen.ends[0]].shape[0]
        return np.zeros(n, dtype=np.int64)
    packed = np.packbits(torch.cat(sides, dim=1).cpu().numpy(), axis=1)
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in packed)
    return np.frombuffer(digests, dtype=np.int64)


def region_names(ids: Int64[np.ndarray, " batch"]) -> Shaped[np.ndarray, " batch"]:
    """Regions as texts of 16 hexadecimal digits: a file of netCDF's classic format holds no number of 64 bits."""
    return np.char.mod("%016x", ids.view(np.uint64)) if len(ids) else np.zeros(0, dtype="<U16")


def name_type(frozen: Frozen) -> np.dtype[Any]:
    """The dtype of texts that holds the name of each gate."""
    return np.dtype(f"<U{max((len(gate.name) for gate in frozen.gates), default=1)}")


def gate_reads(frozen: Frozen) -> tuple[Node, ...]:
    """All that the gates of a frozen policy read."""
    return tuple(dict.fromkeys(read for gate in frozen.gates for read in gate.reads))


def _distances(
    frozen: Frozen, plan: Plan, arrays: Sequence[Tensor], widths: Sequence[int]
) -> tuple[Tensor, np.ndarray]:
    """Distance of each row to each boundary, `[batch, boundary]`, and the rows' regions."""
    with torch.no_grad():
        values = frozen.run(arrays, (*gate_reads(frozen), *frozen.patterns, *frozen.ends))
    patterns = [values[pattern] for pattern in frozen.patterns]
    height = boundaries(frozen.gates, values, arrays[0], len(arrays[0]))
    steep = steepness(frozen, plan, arrays, patterns, widths=widths)
    distance = torch.where(steep > 0, height.abs() / steep, torch.inf)
    return distance, region_ids(frozen, values)


def _one_row(frozen: Frozen, arrays: Sequence[Tensor]) -> list[list[tuple[int, ...]]]:
    """The shapes of the boundaries of each gate, for one row."""
    with torch.no_grad():
        values = frozen.run([value[:1] for value in arrays], (*gate_reads(frozen), *frozen.ends))
    return [[tuple(b.distance.shape[1:]) for b in gate.boundaries(values)] for gate in frozen.gates]


def _where(
    frozen: Frozen, shapes: Sequence[Sequence[tuple[int, ...]]], places: np.ndarray, margins: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The gate's name, and the position within it, of places along all boundaries."""
    names, positions = np.zeros(len(places), dtype=name_type(frozen)), np.zeros(len(places), dtype=POSITION)
    pieces = [(gate.name, shape) for gate, own in zip(frozen.gates, shapes, strict=True) for shape in own]
    starts = np.cumsum([0, *(math.prod(shape) for _, shape in pieces)])
    near = np.isfinite(margins)  # where there is no gate both texts stay empty
    piece_of = np.searchsorted(starts, places, side="right") - 1
    for number in np.unique(piece_of[near]).tolist():
        name, shape = pieces[number]
        rows = np.flatnonzero(near & (piece_of == number))
        index = np.stack(np.unravel_index(places[rows] - starts[number], shape), axis=1)
        names[rows], positions[rows] = name, [", ".join(map(str, place)) for place in index.tolist()]
    return names, positions
