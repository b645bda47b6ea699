"""Claims about a policy that are decided for every state of a region.

Each gives a margin that is positive wherever the claim holds: lower bounds on it prove the claim in a box, and its
value at a state, in the policy's own precision, refutes it. Claims about two states at once, x and its image in exact
arithmetic, take the difference of two linear bounds, in which what both have in common cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.certify.moves import Move
from rlmech.certify.score_regions import Bounded, ScoreRegions
from rlmech.core.bounds.intervals import Interval
from rlmech.errors import ArgumentError, MetricError


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """A lower bound on a claim's margin in each box.

    Attributes:
        low: The bound.
        slope: Of what bounds it, on each array of the observation: where it loses.
    """

    low: Float[Tensor, " batch"]
    slope: tuple[Tensor, ...]


class Claim(Protocol):
    """What can be claimed of every state of a region."""

    def words(self) -> str:
        """The claim as a sentence."""
        ...

    def bound(self, regions: ScoreRegions, arrays: Sequence[Tensor], box: Sequence[Interval]) -> Margin:
        """A lower bound on the margin in each row's box, around the states in its middle."""
        ...

    def margin(self, regions: ScoreRegions, arrays: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """The margin of states, by the policy itself; not above 0 where the claim fails."""
        ...


@dataclass(frozen=True, slots=True)
class Takes:
    """The policy takes one action, or each state's own.

    Attributes:
        action: The action, by name or number, or one number for each state.

    Example:
        >>> Takes("SLOWER").words()
        'takes SLOWER'
    """

    action: str | int | tuple[int, ...]

    def words(self) -> str:
        """The claim as a sentence."""
        return f"takes {self.action}" if isinstance(self.action, str | int) else "takes each state's own action"

    def bound(self, regions: ScoreRegions, arrays: Sequence[Tensor], box: Sequence[Interval]) -> Margin:
        """The least lead over another action."""
        chosen = self._chosen(regions, len(arrays[0]))
        gaps = regions.lower(arrays, box, _leads(regions, chosen))
        return _of(gaps, (gaps.low + _own(regions, chosen).T * torch.finfo(torch.float64).max).argmin(0))

    def margin(self, regions: ScoreRegions, arrays: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """Positive where the action is taken."""
        chosen = self._chosen(regions, len(arrays[0]))
        return torch.where(regions.scores(arrays).argmax(-1) == chosen, 1.0, -1.0).double()

    def _chosen(self, regions: ScoreRegions, n: int) -> Tensor:
        if isinstance(self.action, tuple):
            return torch.tensor(self.action, dtype=torch.long)
        number = regions.policy.spec.action_number(self.action, n_actions=regions.n_actions)
        return torch.full((n,), number, dtype=torch.long)


@dataclass(frozen=True, slots=True)
class Never:
    """The policy never takes an action.

    Attributes:
        action: The action, by name or number.

    Example:
        >>> Never("FASTER").words()
        'never takes FASTER'
    """

    action: str | int

    def words(self) -> str:
        """The claim as a sentence."""
        return f"never takes {self.action}"

    def bound(self, regions: ScoreRegions, arrays: Sequence[Tensor], box: Sequence[Interval]) -> Margin:
        """The greatest lead that another action keeps over it."""
        chosen = self._chosen(regions, len(arrays[0]))
        leads = regions.lower(arrays, box, -_leads(regions, chosen))
        return _of(leads, (leads.low - _own(regions, chosen).T * torch.finfo(torch.float64).max).argmax(0))

    def margin(self, regions: ScoreRegions, arrays: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """Positive where another action is taken."""
        chosen = self._chosen(regions, len(arrays[0]))
        return torch.where(regions.scores(arrays).argmax(-1) == chosen, -1.0, 1.0).double()

    def _chosen(self, regions: ScoreRegions, n: int) -> Tensor:
        number = regions.policy.spec.action_number(self.action, n_actions=regions.n_actions)
        return torch.full((n,), number, dtype=torch.long)


@dataclass(frozen=True, slots=True, kw_only=True)
class Monotone:
    """A step of some features raises the gap between two actions, or leaves it.

    Attributes:
        step: How far each feature steps, in its own unit; negative for a step down.
        entities: Whose features step; None for all that are there.
        better: The action whose score counts positively.
        worse: The one that is taken off.
        tolerance: By how much the gap may fall all the same, in the scores' unit.

    Example:
        >>> Monotone(step={"x": -5.0}, entities=["vehicle_1"], better="SLOWER", worse="FASTER").words()
        'a step of x by -5 raises SLOWER - FASTER'
    """

    step: Mapping[str | int, float]
    entities: Sequence[str | int] | None = None
    better: str | int
    worse: str | int
    tolerance: float = 0.0

    def words(self) -> str:
        """The claim as a sentence."""
        steps = ", ".join(f"{name} by {by:g}" for name, by in self.step.items())
        return f"a step of {steps} raises {self.better} - {self.worse}"

    def bound(self, regions: ScoreRegions, arrays: Sequence[Tensor], box: Sequence[Interval]) -> Margin:
        """The gap after the step less that before it, at least."""
        shifts = self._shifts(regions, arrays)
        row = _gap(regions, self.better, self.worse)
        images = [array.double() + shift for array, shift in zip(arrays, shifts, strict=True)]
        moved = [Interval(end.low + shift, end.high + shift) for end, shift in zip(box, shifts, strict=True)]
        after, before = _two(regions, (images, moved, row), (arrays, box, -row))
        return _sum(after, before, [torch.ones_like(shift) for shift in shifts], arrays, box, self.tolerance)

    def margin(self, regions: ScoreRegions, arrays: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """Not above 0 where the gap falls."""
        row = _gap(regions, self.better, self.worse)
        shifts = self._shifts(regions, arrays)
        images = [(a.double() + shift).to(a.dtype) for a, shift in zip(arrays, shifts, strict=True)]
        change = (regions.scores(images).double() - regions.scores(arrays).double()) @ row
        return _strictly_negative(change + self.tolerance)

    def _shifts(self, regions: ScoreRegions, arrays: Sequence[Tensor]) -> list[Tensor]:
        sizes = {name: abs(by) for name, by in self.step.items()}
        reach = Move(features=sizes, entities=self.entities).reach(regions.policy, arrays)
        names = regions.policy.spec.names("feature")
        signs = torch.ones(arrays[0].shape[-1], dtype=torch.float64)
        for name, by in self.step.items():
            signs[names.index(name) if isinstance(name, str) else name] = -1.0 if by < 0 else 1.0
        return [each * signs for each in reach]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """A state and its mirror image have the same gap between two actions, or their images, within a tolerance.

    Attributes:
        features: The features whose sign is turned, as the network sees them.
        better: The action whose score counts positively.
        worse: The one that is taken off.
        images: What an action is in the mirror, e.g. `{"LANE_LEFT": "LANE_RIGHT", "LANE_RIGHT": "LANE_LEFT"}`; itself
            where it is not named.
        tolerance: How far the two gaps may differ, in the scores' unit.

    Example:
        >>> Mirrored(features=["y", "vy"], better="LANE_LEFT", worse="IDLE", tolerance=0.1).words()
        'LANE_LEFT - IDLE differs by less than 0.1 where y, vy are mirrored'
    """

    features: Sequence[str | int]
    better: str | int
    worse: str | int
    images: Mapping[str | int, str | int] = field(default_factory=dict[str | int, str | int])
    tolerance: float

    def __post_init__(self) -> None:
        if self.tolerance <= 0:
            raise ArgumentError(
                "A mirror image that is equal to the last bit cannot be proved.",
                given=f"tolerance={self.tolerance}",
                expected="more than 0, in the scores' unit",
                fix="Mirrored(..., tolerance=0.05)",
            )

    def words(self) -> str:
        """The claim as a sentence."""
        features = ", ".join(map(str, self.features))
        return f"{self.better} - {self.worse} differs by less than {self.tolerance:g} where {features} are mirrored"

    def bound(self, regions: ScoreRegions, arrays: Sequence[Tensor], box: Sequence[Interval]) -> Margin:
        """The tolerance less the difference, whichever way it goes."""
        own, image = self._rows(regions)
        signs = self._signs(regions, arrays)
        mirrored = [array.double() * sign for array, sign in zip(arrays, signs, strict=True)]
        turned = [
            Interval(torch.minimum(end.low * sign, end.high * sign), torch.maximum(end.low * sign, end.high * sign))
            for end, sign in zip(box, signs, strict=True)
        ]
        found: list[Margin] = []
        for way in (1, -1):
            there, here = _two(regions, (mirrored, turned, way * image), (arrays, box, -way * own))
            found.append(_sum(there, here, signs, arrays, box, self.tolerance))
        first = found[0].low <= found[1].low
        return Margin(
            low=torch.where(first, found[0].low, found[1].low),
            slope=tuple(
                torch.where(first.view(-1, *(1,) * (a.ndim - 1)), a, b)
                for a, b in zip(found[0].slope, found[1].slope, strict=True)
            ),
        )

    def margin(self, regions: ScoreRegions, arrays: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """Not above 0 where the two gaps differ by more."""
        own, image = self._rows(regions)
        mirrored = [(a.double() * s).to(a.dtype) for a, s in zip(arrays, self._signs(regions, arrays), strict=True)]
        there, here = regions.scores(mirrored).double() @ image, regions.scores(arrays).double() @ own
        return _strictly_negative(self.tolerance - (there - here).abs())

    def _rows(self, regions: ScoreRegions) -> tuple[Tensor, Tensor]:
        better, worse = (self.images.get(action, action) for action in (self.better, self.worse))
        return _gap(regions, self.better, self.worse), _gap(regions, better, worse)

    def _signs(self, regions: ScoreRegions, arrays: Sequence[Tensor]) -> list[Tensor]:
        moved = Move(features=list(self.features)).reach(regions.policy, [torch.ones_like(a) for a in arrays])
        return [torch.where(each > 0, -1.0, 1.0).double() for each in moved]


def _strictly_negative(margin: Tensor) -> Tensor:
    """A margin that counts as failed only where it is negative: zero is what a claim of "not less" allows."""
    return torch.where(margin < 0, margin, margin.clamp(min=torch.finfo(torch.float64).tiny))


def _leads(regions: ScoreRegions, chosen: Tensor) -> Tensor:
    unit = torch.eye(regions.n_actions, dtype=torch.float64)
    return unit[chosen][None] - unit[:, None]


def _own(regions: ScoreRegions, chosen: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(chosen, regions.n_actions).double()


def _gap(regions: ScoreRegions, better: str | int, worse: str | int) -> Tensor:
    spec, unit = regions.policy.spec, torch.eye(regions.n_actions, dtype=torch.float64)
    first, second = (spec.action_number(action, n_actions=regions.n_actions) for action in (better, worse))
    if first == second:
        raise MetricError(
            "An action gap is between two actions.",
            given=f"better={better!r}, worse={worse!r}",
            expected="two different actions",
            fix="better='SLOWER', worse='FASTER'",
        )
    return unit[first] - unit[second]


def _two(
    regions: ScoreRegions,
    first: tuple[Sequence[Tensor], Sequence[Interval], Tensor],
    second: tuple[Sequence[Tensor], Sequence[Interval], Tensor],
) -> tuple[Bounded, Bounded]:
    """Lower bounds on one sum of the scores over some boxes, and on another over others."""
    found = [
        regions.lower(arrays, box, row[None, None].expand(1, len(arrays[0]), -1))
        for arrays, box, row in (first, second)
    ]
    return found[0], found[1]


def _sum(
    image: Bounded,
    own: Bounded,
    signs: Sequence[Tensor],
    arrays: Sequence[Tensor],
    box: Sequence[Interval],
    tolerance: float,
) -> Margin:
    """The least sum of two linear bounds over a box, the one in what the state becomes, the other in itself."""
    base = image.base[0] + own.base[0] + tolerance
    low, slopes = base.clone(), []
    for there, here, sign, array, end in zip(image.slopes, own.slopes, signs, arrays, box, strict=True):
        slope = there[0] * sign + here[0]
        at = array.double()
        worst = slope.clamp(min=0) * (end.low - at) + slope.clamp(max=0) * (end.high - at)
        low = low + worst.flatten(1).sum(1) * (1 + 1e-12)
        slopes.append(slope)
    return Margin(low=low - 1e-12 * base.abs(), slope=tuple(slopes))


def _of(found: Bounded, which: Tensor) -> Margin:
    """One of several bounds for each row."""
    rows = torch.arange(len(which))
    return Margin(low=found.low[which, rows], slope=tuple(slope[which, rows] for slope in found.slopes))
