"""Elementwise functions as mathematics: value, slope, curvature, and their exact ranges over intervals.

    f(x)  in  f(a) + s (x - a) + [low, high]        for every x of an interval, for any line through (a, f(a))

Between its knots the slope of a curve is monotone, so what is farthest from a line lies at an end, at a knot, or where
the slope is the line's, which bisection brackets. All ranges are rounded outward. Cost: some 20 evaluations for each
smooth piece. Which operation is which curve stands in `curve_table`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Points = tuple[float | Tensor, ...]

_HALVINGS = 20
"""The error of a bracketed extreme falls by four with each halving of the bracket, for the slope vanishes there."""
_ROUNDING = 8
"""Epsilons, relative to the terms of an evaluation, by which ranges are widened; torch errs by one or two."""


class Range(NamedTuple):
    """A number for each element below which a value never lies, and one above which it never lies."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One elementwise function of a real number.

    Attributes:
        name: What it is called.
        value: The function.
        slope: Its first derivative; at a kink that of one side.
        curvature: Its second derivative, likewise.
        turns: Where the value has an extreme, knots aside.
        knots: Where the slope has an extreme, or jumps; the value may jump there too. In ascending order.
        bends: Where the curvature has an extreme, knots aside.
        kinks: Where the slope or the curvature jumps; knots, all of them.
        straight: Whether the function is linear between its knots.
        cancels: Whether torch computes it as a difference of larger numbers, so that it errs by epsilons of these.
    """

    name: str
    value: Function
    slope: Function
    curvature: Function = torch.zeros_like
    turns: Points = ()
    knots: Points = ()
    bends: Points = ()
    kinks: Points = ()
    straight: bool = False
    cancels: bool = False

    @property
    def rises(self) -> bool:
        """Whether the function falls nowhere."""
        ends = sorted(float(place) for place in (*self.turns, *self.knots))
        inside = [-1.0, *ends, 1.0] if not ends else [ends[0] - 1, *map(_mean, itertools.pairwise(ends)), ends[-1] + 1]
        points = torch.tensor(inside, dtype=torch.float64)  # one of each piece on which the slope has one sign
        return bool((self.slope(points) >= 0).all())

    def range(self, low: Tensor, high: Tensor) -> Range:
        """The least and the greatest value over `[low, high]`, element by element."""
        values = _at(self.value, self._candidates(self.turns, low, high))
        slack = _slack(values.abs().amax(0), _largest(low, high))
        return Range(values.amin(0) - slack, values.amax(0) + slack)

    def slope_range(self, low: Tensor, high: Tensor) -> Range:
        """The least and the greatest slope over `[low, high]`, those of both sides of a kink included."""
        slopes = _at(self.slope, self._candidates((), low, high))
        slack = _slack(slopes.abs().amax(0), torch.ones_like(low))
        return Range(slopes.amin(0) - slack, slopes.amax(0) + slack)

    def curvature_range(self, low: Tensor, high: Tensor) -> Range:
        """The least and the greatest curvature over `[low, high]`, away from kinks, where there is none."""
        curvatures = _at(self.curvature, self._candidates(self.bends, low, high))
        slack = _slack(curvatures.abs().amax(0), torch.ones_like(low))
        return Range(curvatures.amin(0) - slack, curvatures.amax(0) + slack)

    def tangent_remainder(self, at: Tensor, low: Tensor, high: Tensor) -> Range:
        """The range of f(x) - f(at) - f'(at) (x - at) over `[low, high]`.

        Args:
            at: Where the tangent touches; need not lie within.
            low: Lower ends.
            high: Upper ends.
        """
        return self.off_line(at, self.slope(at), low, high)

    def off_line(self, at: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> Range:
        """The range of f(x) - f(at) - slope (x - at) over `[low, high]`: how far the curve leaves a line.

        Args:
            at: Where the line meets the curve.
            slope: The line's slope.
            low: Lower ends.
            high: Upper ends.
        """
        base = self.value(at)

        def off(x: Tensor) -> Tensor:
            return self.value(x) - base - slope * (x - at)

        edges = self._candidates((), low, high)
        offsets = torch.stack([off(edge) for edge in edges])
        least, most = offsets.amin(0), offsets.amax(0)
        if not self.straight:
            for left, right in self._pieces(low, high):
                left, right = self._closest(slope, left, right)  # the bracket of the same piece
                # its ends from within, for a knot may have another slope on its other side
                first, last = torch.nextafter(left, right), torch.nextafter(right, left)
                before, after = self.slope(first) - slope, self.slope(last) - slope
                # inside, the distance changes by no more than the width times the steeper end; without a crossing the
                # ends of the piece, which are among the edges, are the extremes
                steep = torch.maximum(before.abs(), after.abs())
                spread = torch.where((before < 0) != (after < 0), steep * (right - left), 0.0)
                a, b = off(left), off(right)
                least = torch.minimum(least, torch.minimum(a, b) - spread)
                most = torch.maximum(most, torch.maximum(a, b) + spread)
        extent = _largest(low, high) + at.abs()
        values = torch.stack([self.value(edge).abs() for edge in edges]).amax(0) + base.abs()
        slack = _slack(values, (1 + slope.abs()) * extent)
        return Range(least - slack, most + slack)

    def _candidates(self, more: Points, low: Tensor, high: Tensor) -> list[Tensor]:
        """The ends, the knots seen from both sides, and further points, each moved into the interval."""
        found = [low, high, *(_like(point, low).clamp(low, high) for point in more)]
        for knot in self.knots:
            inside = _like(knot, low)
            for side in (-math.inf, math.inf):
                found.append(torch.nextafter(inside, torch.full_like(low, side)).clamp(low, high))
            found.append(inside.clamp(low, high))
        return found

    def _pieces(self, low: Tensor, high: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The parts of the interval between neighbouring knots, empty ones included."""
        cuts = [low, *(_like(knot, low).clamp(low, high) for knot in self.knots), high]
        return list(itertools.pairwise(cuts))

    def _closest(self, slope: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """A narrow part of a piece, where the curve has a given slope; at one of its ends if it has it nowhere."""
        rising = self.curvature((left + right) / 2) > 0
        for _ in range(_HALVINGS):
            middle = (left + right) / 2
            onward = (self.slope(middle) < slope) == rising
            left, right = torch.where(onward, middle, left), torch.where(onward, right, middle)
        return left, right


def _mean(pair: tuple[float, float]) -> float:
    return sum(pair) / 2


def _at(function: Function, points: Sequence[Tensor]) -> Tensor:
    return torch.stack([function(point) for point in points])


def _like(point: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(point, dtype=like.dtype, device=like.device).expand_as(like)


def _largest(low: Tensor, high: Tensor) -> Tensor:
    return torch.maximum(low.abs(), high.abs())


def _slack(values: Tensor, terms: Tensor) -> Tensor:
    """How far rounding may move an evaluation whose result and terms have these sizes."""
    return _ROUNDING * torch.finfo(values.dtype).eps * (values + terms) + torch.finfo(values.dtype).tiny
