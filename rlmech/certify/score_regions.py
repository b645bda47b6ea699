"""Lower bounds on sums of a policy's scores over boxes of its observations, a box for each row.

    w . scores(x)  >=  w . scores(x0) + slope . (x - x0) - gap          for every x of the row's box

Everything that a search asks of a policy goes through here: rows in blocks that fit the cache, attention unfrozen,
vehicles told apart as long as the network keeps them apart. Cost: a walk backwards for each neuron before a bend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.attribution.readouts import scores_of
from rlmech.core.bounds.balls import Ball
from rlmech.core.bounds.calls import double
from rlmech.core.bounds.groups import Groups
from rlmech.core.bounds.intervals import Interval
from rlmech.core.bounds.region import Region, fused
from rlmech.core.conditions import looked_up
from rlmech.core.graph import Node
from rlmech.core.policy import HookedPolicy
from rlmech.errors import EngineError

Method = Literal["interval", "linear"]
_NUMBERS_AT_ONCE = 2**21
"""Weights in a block: as many as stay in the processor's cache."""
_SLACK = 1e-12
"""Of its terms, for the rounding of a linear bound itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """Lower bounds on sums of scores.

    Attributes:
        low: The bounds.
        base: The linear bounds' values at the observation; those of the whole box for intervals.
        slopes: Their slopes on each array of the observation; empty for intervals.
    """

    low: Float[Tensor, "bound batch"]
    base: Float[Tensor, "bound batch"]
    slopes: tuple[Tensor, ...]


class ScoreRegions:
    """A policy's scores over boxes.

    Args:
        policy: The policy.

    Raises:
        EngineError: It runs on the eager engine, or its scores have another axis.
    """

    def __init__(self, policy: HookedPolicy) -> None:
        self.policy, self.address, self.graph = policy, scores_of(policy), policy.graph_engine.graph
        for node in looked_up(self.graph):
            raise EngineError(
                "The observation is whole numbers that the network looks up: no region lies around one.",
                given=f"{node.dtype}" + (f" at {node.owner!r}" if node.owner else ""),
                expected="an observation of real numbers",
                fix="try each of them: policy(obs)",
            )
        point = next(point for point in policy.hook_dict.values() if point.kind == "output")
        self.n_actions = point.size("action")
        parameter = next(policy.module.parameters(), None)
        self.precision = torch.float32 if parameter is None else parameter.dtype
        self.groups = self._groups()
        widest = max((_count(node) for node in self.graph.nodes if node.has_batch), default=1)
        apart = 1 if self.groups is None else self.groups.count
        self._per_row = 2 * widest * max(1, widest // apart)

    def _groups(self) -> Groups | None:
        """The entities, where the observation is one array of them."""
        axes = next(
            p.axes for n, p in self.policy.hook_dict.items() if self.policy.points[n].address.node.op == "input"
        )
        if len(self.graph.inputs) != 1 or "entity" not in axes[1:]:
            return None
        shape = self.graph.inputs[0].sizes[1:]
        axis = list(axes[1:]).index("entity")
        numbers = torch.arange(shape[axis]).view(*(-1 if place == axis else 1 for place in range(len(shape))))
        replaced = list(fused(self.graph))
        return Groups(self.graph, [self.address.node], of_inputs=[numbers.expand(*shape)], replaced=replaced)

    def lower(
        self,
        arrays: Sequence[Tensor],
        box: Sequence[Interval],
        weights: Float[Tensor, "bound batch action"],
        *,
        method: Method = "linear",
        ball: Ball | None = None,
    ) -> Bounded:
        """Lower bounds on weighted sums of the scores in each row's box.

        Args:
            arrays: Observations, one in each box.
            box: The least and the greatest values of each array.
            weights: The sums, for each row its own.
            method: How they are found.
            ball: A ball that the box is around.

        Raises:
            EngineError: No bound is known of an operation.
        """
        n = len(arrays[0])
        rows = max(1, _NUMBERS_AT_ONCE // self._per_row) if method == "linear" else 512
        found: list[Bounded] = []
        for start in range(0, max(n, 1), rows):
            part = slice(start, start + rows)
            own = None if ball is None else Ball(norm=ball.norm, radii=tuple(radius[part] for radius in ball.radii))
            found.append(
                self._lower(
                    [array[part] for array in arrays],
                    [Interval(each.low[part], each.high[part]) for each in box],
                    weights[:, part].double(),
                    method,
                    own,
                )
            )
        return Bounded(
            low=torch.cat([each.low for each in found], dim=1),
            base=torch.cat([each.base for each in found], dim=1),
            slopes=tuple(torch.cat(parts, dim=1) for parts in zip(*(each.slopes for each in found), strict=True)),
        )

    def _lower(
        self, arrays: Sequence[Tensor], box: Sequence[Interval], weights: Tensor, method: Method, ball: Ball | None
    ) -> Bounded:
        if not len(arrays[0]):
            empty = tuple(weights.new_zeros(len(weights), *array.shape) for array in arrays)
            none = weights.new_zeros(len(weights), 0)
            return Bounded(low=none, base=none, slopes=empty if method == "linear" else ())
        node = self.address.node
        with torch.no_grad():
            region = Region(
                self.graph,
                (node,),
                arrays=[double(array.detach()).double() for array in arrays],
                box=box,
                given={},
                precision=self.precision,
                refined=method == "linear",
                ball=ball,
                groups=self.groups,
            )
            ends = region.interval(node)
            low, high = (self.address.layout.show(end) for end in (ends.low, ends.high))
            by_interval = (weights.clamp(min=0) * low + weights.clamp(max=0) * high).sum(-1)
            if method == "interval":
                return Bounded(low=by_interval, base=by_interval, slopes=())
            upper = region.upper(node, torch.stack([self.address.layout.restore(-row) for row in weights]), "adapted")
            return Bounded(
                low=torch.maximum(-(upper.value + region.largest(upper)), by_interval),
                base=-(upper.value + upper.gap + _SLACK * (upper.value.abs() + upper.gap.abs())),
                slopes=tuple(-slope for slope in upper.slopes),
            )

    def scores(self, arrays: Sequence[Tensor]) -> Float[Tensor, "batch action"]:
        """The policy's own scores, in its own precision."""
        with torch.no_grad():
            program = self.policy.graph_engine.program(returned=[self.address.node])
            return self.address.layout.show(program(tuple(arrays), (), ())[0])


def gap_weights(chosen: Tensor, n_actions: int) -> Float[Tensor, "action batch action"]:
    """The sums that are each action's gap: the chosen action's score less its own; zeros for the chosen one."""
    unit = torch.eye(n_actions, dtype=torch.float64, device=chosen.device)
    return unit[chosen][None] - unit[:, None]


def _count(node: Node) -> int:
    count = 1
    for size in node.sizes:
        count *= abs(size)
    return count
