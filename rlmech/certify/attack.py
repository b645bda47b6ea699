"""The nearest state that changes the action, as far as gradients find it: an upper bound on what can be certified.

Signed gradient steps (normalised ones in other norms) on the smallest gap, within a radius that shrinks to the best
state found; then along the segment to the state itself, for the first change on the way. Every state that is returned
was put through the policy in its own precision, and changes its action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rlmech.certify.moves import Norm
from rlmech.core.bounds.intervals import Interval
from rlmech.core.policy import HookedPolicy

_N_STEPS = 12
_N_SHRINKS = 6
_N_HALVINGS = 14
_STAGES = (0.9, 0.6, 0.3, 0.1)  # of the radius, where attacks begin: corners, and states in between


@dataclass(slots=True)
class Found:
    """The nearest states that change the action.

    Attributes:
        distance: How far each is, in units of the move; infinite where none was found.
        arrays: The states; the original ones where none was found.
        action: The action there; -1 where none was found.
    """

    distance: Float[Tensor, " batch"]
    arrays: tuple[Tensor, ...]
    action: Int64[Tensor, " batch"]

    def better(self, rows: Tensor, distance: Tensor, arrays: Sequence[Tensor], action: Tensor) -> None:
        """Keep those of some rows that are nearer."""
        nearer = distance < self.distance[rows]
        own = rows[nearer]
        self.distance[own], self.action[own] = distance[nearer], action[nearer]
        for kept, array in zip(self.arrays, arrays, strict=True):
            kept[own] = array[nearer].to(kept)


def distances(
    arrays: Sequence[Tensor], at: Sequence[Tensor], reach: Sequence[Tensor], norm: Norm
) -> Float[Tensor, " batch"]:
    """How far states are from others, in units of a move; what may not move does not count."""
    parts = [
        torch.where(by > 0, (to.double() - own.double()) / torch.where(by > 0, by, 1.0), 0.0).flatten(1)
        for to, own, by in zip(arrays, at, reach, strict=True)
    ]
    order = {"inf": torch.inf, "2": 2, "1": 1}[norm]
    return torch.linalg.vector_norm(torch.cat(parts, dim=1), order, dim=1)


class Attack:
    """Searches of a policy's states for ones that change the action.

    Args:
        policy: The policy.
        scores: Its action scores for an observation's arrays, part of the autograd graph.
        arrays: The states.
        reach: How far each number moves at radius 1.
        limits: Between what each number can be.
        norm: Of the distance.
        chosen: Each state's action.
    """

    def __init__(
        self,
        policy: HookedPolicy,
        scores: Callable[[Sequence[Tensor]], Tensor],
        *,
        arrays: Sequence[Tensor],
        reach: Sequence[Tensor],
        limits: Sequence[Interval],
        norm: Norm,
        chosen: Tensor,
    ) -> None:
        self.policy, self.scores, self.chosen = policy, scores, chosen
        self.norm: Norm = norm
        self.arrays, self.reach, self.limits = tuple(arrays), tuple(reach), tuple(limits)
        n = len(chosen)
        self.found = Found(
            torch.full((n,), torch.inf, dtype=torch.float64, device=chosen.device),
            tuple(array.clone() for array in arrays),
            torch.full((n,), -1, device=chosen.device),
        )

    def try_states(self, rows: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Put states through the policy, keep the nearest that change the action; which of them do.

        Args:
            rows: Whose states they are.
            states: The states, in double precision or the policy's.
        """
        own = tuple(state.to(array.dtype) for state, array in zip(states, self.arrays, strict=True))
        with torch.no_grad():
            action = self.scores(own).argmax(-1)
        changed = action != self.chosen[rows]
        if bool(changed.any()):
            distance = self._distance(rows, own)
            self.found.better(rows[changed], distance[changed], [array[changed] for array in own], action[changed])
        return changed

    def run(self, radius: Float[Tensor, " batch"]) -> Found:
        """Search within a radius for each row, then closer and closer to the state itself."""
        every = torch.arange(len(radius), device=radius.device)
        for stage in _STAGES:
            self._ascend(every, radius * stage, whole=stage == _STAGES[0])
        for _ in range(_N_SHRINKS):
            rows = every[self.found.distance.isfinite()]
            if not len(rows):
                break
            self._along_segments(rows)
            self._ascend(rows, self.found.distance[rows] * 0.95, whole=True)
        rows = every[self.found.distance.isfinite()]
        if len(rows):
            self._along_segments(rows)
        return self.found

    def _ascend(self, rows: Tensor, radius: Tensor, *, whole: bool) -> None:
        """Gradient steps on the smallest gap; of a whole step, or of shorter and shorter ones."""
        at, reach = ([each[rows] for each in part] for part in (self.arrays, self.reach))
        states = [array.double() for array in at]
        for step in range(_N_STEPS):
            size = 1.0 if whole and step == 0 else 2.0 / (step + 2)
            leaves = [
                s.to(a.dtype if a.is_floating_point() else torch.float32) for s, a in zip(states, at, strict=True)
            ]
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            with torch.enable_grad():
                scores = self.scores(leaves)
                own = torch.nn.functional.one_hot(self.chosen[rows], scores.shape[1]).bool()
                lead = torch.where(own, -torch.inf, scores).amax(-1) - scores[own]
                slopes = torch.autograd.grad(lead.sum(), leaves, materialize_grads=True)
            steps = self._steps([slope.double() for slope in slopes], reach)
            states = [
                state + size * by * radius.view(-1, *(1,) * (by.ndim - 1))
                for state, by in zip(states, steps, strict=True)
            ]
            states = self._within(rows, states, radius)
            self.try_states(rows, states)

    def _steps(self, slopes: Sequence[Tensor], reach: Sequence[Tensor]) -> list[Tensor]:
        """The moves of length 1 that raise a linear function most."""
        scaled = [slope * by for slope, by in zip(slopes, reach, strict=True)]
        if self.norm == "inf":
            return [by * each.sign() for by, each in zip(reach, scaled, strict=True)]
        flat = torch.cat([each.flatten(1) for each in scaled], dim=1)
        if self.norm == "1":
            best = flat.abs().amax(1)
            chosen = [each * (each.abs() == best.view(-1, *(1,) * (each.ndim - 1))) for each in scaled]
            return [by * each.sign() for by, each in zip(reach, chosen, strict=True)]
        size = flat.norm(dim=1).clamp(min=1e-300)
        return [by * each / size.view(-1, *(1,) * (each.ndim - 1)) for by, each in zip(reach, scaled, strict=True)]

    def _within(self, rows: Tensor, states: Sequence[Tensor], radius: Tensor) -> list[Tensor]:
        """States moved back into the radius and into what each number can be."""
        at = [array[rows].double() for array in self.arrays]
        reach = [each[rows] for each in self.reach]
        if self.norm == "inf":
            by = [each * radius.view(-1, *(1,) * (each.ndim - 1)) for each in reach]
            inside = [s.clamp(a - b, a + b) for s, a, b in zip(states, at, by, strict=True)]
        else:
            far = distances(states, at, reach, self.norm)
            share = torch.where(far > radius, radius / far.clamp(min=1e-300), 1.0)
            inside = [a + (s - a) * share.view(-1, *(1,) * (a.ndim - 1)) for s, a in zip(states, at, strict=True)]
        return [
            state.clamp(limit.low[rows], limit.high[rows]) for state, limit in zip(inside, self.limits, strict=True)
        ]

    def _along_segments(self, rows: Tensor) -> None:
        """Halve the way from the state to the best one found, towards a change."""
        at = [array[rows].double() for array in self.arrays]
        ends = [array[rows].double() for array in self.found.arrays]
        low = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        high = torch.ones_like(low)
        for _ in range(_N_HALVINGS):
            middle = (low + high) / 2
            states = [a + (end - a) * middle.view(-1, *(1,) * (a.ndim - 1)) for a, end in zip(at, ends, strict=True)]
            changed = self.try_states(rows, states)
            low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)

    def _distance(self, rows: Tensor, states: Sequence[Tensor]) -> Tensor:
        at, reach = ([each[rows] for each in part] for part in (self.arrays, self.reach))
        return distances(states, at, reach, self.norm)
