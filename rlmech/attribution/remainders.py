"""How far a policy can be from its own affine map in a box: a bound for each action's score.

    |score(x) - (J x + c)|  <=  max over the box of what linear bounds on the score exceed the map by

The bounds are the tightest of two kinds of lines, those with the slopes of the observation and those that fit the box.
What the map itself, given in the policy's precision, differs from the exact one is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.circuits.frozen import Frozen
from rlmech.core.bounds.calls import double
from rlmech.core.bounds.intervals import Interval
from rlmech.core.bounds.region import LARGEST_REFINED, Region
from rlmech.core.program import Address

_ROWS_AT_ONCE = 256


def remainder_bounds(
    frozen: Frozen,
    scores_at: Address,
    arrays: Sequence[Tensor],
    boxes: Sequence[Interval],
    jacobians: Sequence[Tensor],
    offset: Tensor,
) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch action"]]:
    """Bounds on how far each score is from an affine map in a box, and how much of them is rounding.

    Args:
        frozen: The policy with its patterns frozen.
        scores_at: Where the scores lie.
        arrays: The observation.
        boxes: Least and greatest values of each array.
        jacobians: Of the map, `[batch action ...]` for each array.
        offset: Of the map.

    Raises:
        EngineError: No bound is known of an operation.
    """
    widest = max(_count(node.shape) for node in frozen.varying)
    rows = max(1, min(_ROWS_AT_ONCE, LARGEST_REFINED // widest**2))
    bounds: list[Tensor] = []
    roundings: list[Tensor] = []
    for start in range(0, max(1, len(offset)), rows):
        part = slice(start, start + rows)
        box = [Interval(each.low[part], each.high[part]) for each in boxes]
        bound, rounding = _bounds(
            frozen, scores_at, [a[part] for a in arrays], box, [j[part] for j in jacobians], offset[part]
        )
        bounds.append(bound)
        roundings.append(rounding)
    return torch.cat(bounds), torch.cat(roundings)


def _bounds(
    frozen: Frozen,
    scores_at: Address,
    arrays: Sequence[Tensor],
    box: Sequence[Interval],
    jacobians: Sequence[Tensor],
    offset: Tensor,
) -> tuple[Tensor, Tensor]:
    real = [array.detach() if array.is_floating_point() else array.to(offset.dtype) for array in arrays]
    n_rows, n_actions = offset.shape
    if not n_rows:
        return offset.double(), offset.double()
    with torch.no_grad():
        patterns = frozen.run(real, frozen.patterns)
    region = Region(
        frozen.policy.graph_engine.graph,
        (scores_at.node,),
        arrays=real,
        box=box,
        given=patterns,
        precision=offset.dtype,
    )
    single = torch.eye(n_actions, dtype=torch.float64, device=offset.device)[:, None].expand(-1, n_rows, -1)
    weights = torch.stack([scores_at.layout.restore(weight) for weight in single])
    tangent = region.upper(scores_at.node, torch.cat([weights, -weights]), "tangent")
    adapted = region.upper(scores_at.node, torch.cat([weights, -weights]), "adapted")
    # with the slopes of the observation the linear bound and the map differ by the gap alone
    most = torch.minimum(tangent.gap, region.largest(adapted, less=tangent.slopes)).unflatten(0, (2, n_actions)).amax(0)
    given, size = _off_map(
        region, tangent.value[:n_actions], [s[:n_actions] for s in tangent.slopes], jacobians, offset
    )
    terms = sum(array[0].numel() for array in arrays) + 2
    # the map's own value in the policy's precision, however it is added up
    evaluated = terms * torch.finfo(offset.dtype).eps * size
    rounding = tangent.rounding[:n_actions] + given + evaluated
    return (most + given + evaluated).T, rounding.T


def _off_map(
    region: Region, value: Tensor, slopes: Sequence[Tensor], jacobians: Sequence[Tensor], offset: Tensor
) -> tuple[Tensor, Tensor]:
    """How far the map can be from the exact one in the box, and the size of its terms, `[action batch]`."""
    at_observation = -value + double(offset).T
    far, size = torch.zeros_like(value), double(offset).T.abs()
    for slope, jacobian, array, box in zip(slopes, jacobians, region.arrays, region.box, strict=True):
        map_ = double(jacobian).transpose(0, 1)
        at_observation = at_observation + (map_ * array).flatten(2).sum(2)
        reach = torch.maximum(box.high - array, array - box.low)
        far = far + ((map_ - slope).abs() * reach).flatten(2).sum(2)
        size = size + (map_.abs() * torch.maximum(box.high.abs(), box.low.abs())).flatten(2).sum(2)
    return far + at_observation.abs(), size


def _count(shape: Sequence[int] | None) -> int:
    count = 1
    for size in shape or ():
        count *= abs(size)
    return count
