"""Branch and bound on boxes of observations: the largest radius without a change of action, from below and above.

    certified = min over boxes that are open of their distance,      attacked = distance of the nearest change found

What surrounds the state is cut into boxes. The nearest open one is bounded: it is closed where the action cannot change
in it, else it is cut in two where the bound loses most, and the states that the bound points at are tried. Anytime:
both numbers hold whenever it stops, and they meet where it runs long enough. Many states at once, a few boxes of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rlmech.certify.attack import Attack
from rlmech.certify.score_regions import ScoreRegions, gap_weights
from rlmech.core.bounds.intervals import Interval

_AT_ONCE = 4
"""Boxes of one state that are bounded together."""
_CLOSE = 1e-2
"""How near the two numbers are, relatively, where the search for a state ends."""
_MOST_SLABS = 16
"""Numbers that move up to which what is certified already is cut out at the start."""


class Branching:
    """The open boxes around many states, as numbers of flat observations.

    Args:
        regions: The policy's bounds.
        attack: What was found from above, which goes on being improved.
        radius: How far is looked.
        certified: What is certified already.
    """

    def __init__(
        self, regions: ScoreRegions, attack: Attack, *, radius: Float[Tensor, " batch"], certified: Tensor
    ) -> None:
        self.regions, self.attack = regions, attack
        self.certified = certified.clone()
        self.limit = radius
        self.at, self.reach = _flat([a.double() for a in attack.arrays]), _flat(attack.reach)
        self.least, self.most = _flat([x.low for x in attack.limits]), _flat([x.high for x in attack.limits])
        self.shapes = [array.shape[1:] for array in attack.arrays]
        self.spent = torch.zeros(len(radius), dtype=torch.long)
        self.weights = gap_weights(attack.chosen, regions.n_actions)
        far = torch.minimum(radius, attack.found.distance)
        self.searched = self.certified < far * (1 - _CLOSE)
        rows = self.searched.nonzero()[:, 0]
        low, high = self._around(rows, far[rows])
        self.rows, self.low, self.high = self._without_core(rows, low, high)
        self.distance = self._distance(self.rows, self.low, self.high)

    def run(self, n_boxes: int) -> Float[Tensor, " batch"]:
        """Search until each state has met its two numbers or bounded so many boxes; what is certified then."""
        while True:
            chosen = self._next(n_boxes)
            if not len(chosen):
                return self.certified
            self._step(chosen)

    def _next(self, n_boxes: int) -> Int64[Tensor, " chosen"]:
        """The nearest open boxes of each state that is not settled."""
        attacked = torch.minimum(self.attack.found.distance, self.limit)
        keep = self.distance < attacked[self.rows]
        self.rows, self.low, self.high, self.distance = (
            part[keep] for part in (self.rows, self.low, self.high, self.distance)
        )
        nearest = attacked.clone().scatter_reduce(0, self.rows, self.distance, "amin")
        self.certified = torch.where(self.searched, torch.maximum(self.certified, nearest), self.certified)
        open_ = self.searched & (self.certified < attacked * (1 - _CLOSE)) & (self.spent < n_boxes)
        order = self.distance.argsort()
        order = order[self.rows[order].argsort(stable=True)]
        rows = self.rows[order]
        first = torch.searchsorted(rows, rows)
        rank = torch.arange(len(rows)) - first
        return order[open_[rows] & (rank < _AT_ONCE)]

    def _step(self, chosen: Tensor) -> None:
        rows, low, high = self.rows[chosen], self.low[chosen], self.high[chosen]
        self.spent += torch.bincount(rows, minlength=len(self.spent))
        middle = low + (high - low) / 2
        box = [Interval(a, b) for a, b in zip(self._shaped(low), self._shaped(high), strict=True)]
        found = self.regions.lower(self._shaped(middle), box, self.weights[:, rows])
        own = torch.nn.functional.one_hot(self.attack.chosen[rows], self.regions.n_actions).T.bool()
        gaps = torch.where(own, torch.inf, found.low)
        gap, worst = gaps.min(0)
        still = gap <= 0
        slopes = torch.cat([slope.flatten(2) for slope in found.slopes], dim=2)
        slope = slopes[worst, torch.arange(len(rows))]
        corner = torch.where(slope > 0, low, high)
        for states in (middle, corner):
            self.attack.try_states(rows[still], self._shaped(states[still]))
        keep = torch.ones(len(self.rows), dtype=torch.bool)
        keep[chosen] = False
        parts = self._halves(rows[still], low[still], high[still], slope[still])
        self.rows, self.low, self.high = (
            torch.cat([kept[keep], *new]) for kept, new in zip((self.rows, self.low, self.high), parts, strict=True)
        )
        self.distance = self._distance(self.rows, self.low, self.high)

    def _halves(self, rows: Tensor, low: Tensor, high: Tensor, slope: Tensor) -> tuple[list[Tensor], ...]:
        """Boxes cut in two along the number that matters most to the bound, or that is widest."""
        width = high - low
        relative = width / torch.where(self.reach[rows] > 0, self.reach[rows], 1.0)
        matter = width * slope.abs()
        share = matter / matter.amax(1, keepdim=True).clamp(min=1e-300)
        axis = (share + 0.1 * relative / relative.amax(1, keepdim=True).clamp(min=1e-300)).argmax(1, keepdim=True)
        cut = (low + width / 2).gather(1, axis)
        first, second = high.scatter(1, axis, cut), low.scatter(1, axis, cut)
        return [rows, rows], [low, second], [first, high]

    def _around(self, rows: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        by = self.reach[rows] * radius[:, None]
        at = self.at[rows]
        return torch.maximum(at - by, self.least[rows]), torch.minimum(at + by, self.most[rows])

    def _without_core(self, rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What lies around the box that is certified already: two slabs for each number that moves."""
        axes = (high > low).any(0).nonzero()[:, 0] if len(rows) else torch.zeros(0, dtype=torch.long)
        if self.attack.norm != "inf" or len(axes) > _MOST_SLABS:
            return rows, low, high
        inner_low, inner_high = self._around(rows, self.certified[rows])
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        low, high = low.clone(), high.clone()
        for axis in axes:
            under, over = high.clone(), low.clone()
            under[:, axis], over[:, axis] = inner_low[:, axis], inner_high[:, axis]
            for one_low, one_high in ((low, under), (over, high)):
                some = one_high[:, axis] > one_low[:, axis]
                parts.append((rows[some], one_low[some].clone(), one_high[some].clone()))
            low[:, axis], high[:, axis] = inner_low[:, axis], inner_high[:, axis]
        if not parts:
            return rows, low, high
        around, lows, highs = zip(*parts, strict=True)
        return torch.cat(around), torch.cat(lows), torch.cat(highs)

    def _distance(self, rows: Tensor, low: Tensor, high: Tensor) -> Float[Tensor, " box"]:
        """How far the nearest state of each box is, in units of the move."""
        away = torch.maximum(low - self.at[rows], self.at[rows] - high).clamp(min=0)
        reach = self.reach[rows]
        parts = torch.where(reach > 0, away / torch.where(reach > 0, reach, 1.0), 0.0)
        order = {"inf": torch.inf, "2": 2, "1": 1}[self.attack.norm]
        return torch.linalg.vector_norm(parts, order, dim=1)

    def _shaped(self, flat: Tensor) -> tuple[Tensor, ...]:
        sizes = [int(torch.Size(shape).numel()) for shape in self.shapes]
        parts = flat.split(sizes, dim=1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))


def _flat(arrays: Sequence[Tensor]) -> Tensor:
    return torch.cat([array.flatten(1) for array in arrays], dim=1)
