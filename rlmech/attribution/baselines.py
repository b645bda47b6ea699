"""Baselines that an attribution may start from: the same entities there as in the observation.

On the straight line from a baseline of zeros, absent entities, to the observation, every entity appears half-way: what
is integrated is then mostly the mask's jump, which no gradient sees. Such baselines are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlmech.attribution.readouts import observed_arrays
from rlmech.core.conditions import conditions, keys_of
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ObservationError


def baseline_arrays(policy: HookedPolicy, obs: Observation, baseline: Observation) -> tuple[Tensor, ...]:
    """The baseline as checked tensors, one row for each observation.

    Args:
        policy: The policy.
        obs: The observations.
        baseline: As many rows, or one row for all.

    Raises:
        ObservationError: Another number of rows, or other entities present than in the observation.
    """
    arrays, start = policy.coerce(obs), policy.coerce(baseline)
    n = len(arrays[0])
    if len(start[0]) not in (1, n):
        raise ObservationError(
            "The baseline does not go with the observations.",
            given=f"{len(start[0])} baseline rows for {n} observations",
            expected=f"1 row or {n}",
            fix="give one baseline for all, or one for each observation in the same order",
        )
    start = tuple(value.expand_as(whole) for value, whole in zip(start, arrays, strict=True))
    held = keys_of(conditions(policy.graph_engine.graph)) if policy.engine == "graph" else frozenset[str]()
    for observed, own, other in zip(observed_arrays(policy), arrays, start, strict=True):
        if observed.key in held and not torch.equal(own, other):
            raise ObservationError(
                "The baseline leaves other actions open than the observation: there is nothing between two masks.",
                given=f"{observed.key or 'masks'} that differ",
                expected="the observation's own mask in the baseline",
                fix=f"baseline = {{**baseline, {observed.key!r}: obs[{observed.key!r}]}}",
            )
    differing = _differing(policy, arrays, start) if n else torch.zeros(0, dtype=torch.bool)
    if bool(differing.any()):
        feature = policy.spec.presence
        presence = f"baseline[..., {policy.spec.presence_index}] = obs[..., {policy.spec.presence_index}]"
        raise ObservationError(
            "The baseline has other entities present than the observation: the line between them crosses the mask.",
            given=f"{int(differing.sum())} of {n} rows whose mask differs, first row {int(differing.nonzero()[0])}",
            expected="a baseline whose entities are present exactly where the observation's are",
            fix=f"keep {feature!r}: {presence}" if feature else "give the baseline the observation's mask",
        )
    return start


def _differing(policy: HookedPolicy, arrays: tuple[Tensor, ...], start: tuple[Tensor, ...]) -> Tensor:
    """Which rows have another mask than their baseline."""
    differing = torch.zeros(len(arrays[0]), dtype=torch.bool, device=arrays[0].device)
    index = policy.spec.presence_index
    if index is not None and len(arrays) == 1 and arrays[0].ndim == 3:
        differing |= ((arrays[0][..., index] < 0.5) != (start[0][..., index] < 0.5)).any(1)
    points = [policy.points[b.names["mask"]] for b in policy.attention.values() if "mask" in b.names]
    if points and policy.engine == "graph":
        program = policy.graph_engine.program(returned=[point.address.node for point in points])
        with torch.no_grad():
            for point, a, b in zip(points, program(arrays, (), ()), program(start, (), ()), strict=True):
                differing |= (point.address.layout.show(a) != point.address.layout.show(b)).flatten(1).any(1)
    return differing
