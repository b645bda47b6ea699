"""The record of an operation: where it is affine, where it bends, how it moves elements, how it is written.

Arguments are named by their place in torch's own order, in which an exported graph gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from rlmech.core.hook_point import Kind

Movement = Literal[
    "elementwise",
    "channelwise",
    "layout",
    "reshape",
    "join",
    "product",
    "along",
    "reduction",
    "convolution",
    "pool",
    "norm",
    "attention",
    "heads",
    "unknown",
]
"""How the elements of a result come from those of what is read.

- `elementwise`: each from the elements in its own place, the arguments broadcast;
- `channelwise`: likewise, with an array along axis 1 (the weights of a prelu, the statistics of a batch norm);
- `layout`: elements of the first argument in other places, unchanged; `reshape`: likewise, in the order in memory, or
  expanded, to sizes that are the result's own;
- `join`: elements of several, unchanged, and numbers of its own (cat, stack, pad);
- `product`: the last axis of one factor with the last but one of the other (of a linear layer's weight: the last);
- `along`: each from all elements along the axes that `reading.axes_of` gives; `reduction`: likewise, the axes gone;
- `convolution`, `pool`, `norm`, `attention`, `heads`: as their names say;
- `unknown`: from any element of the row.
"""
Role = Literal["softmax", "matmul", "layer", "attention", "norm", "comparison", "leaf"]
"""What an operation is to those that look for patterns: `matmul` a product of two values, `layer` one with a weight,
`norm` a normalisation whose scale can be held, `leaf` what computes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Where one side of a gate ends.

    Attributes:
        distance: Affine in what the gate reads; zero at the boundary.
        inclusive: Whether zero itself belongs to the side of the positive numbers.
        competing: Whether the last axis runs over competitors, zero at the one that wins, rather than over gates.
    """

    distance: Tensor
    inclusive: bool = False
    competing: bool = False

    @property
    def side(self) -> Tensor:
        """Which side each element is on."""
        return self.distance >= 0 if self.inclusive else self.distance > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gating:
    """How a gate bends: affine as long as no number that it reads crosses one of its boundaries.

    Attributes:
        boundaries: Its boundaries, from its arguments.
        reads: The arguments in which it is affine between them, together.
        shifts: Whether it puts in numbers of its own on some of its sides.
        continuous: Whether its value does not jump at a boundary.
        each: Whether it acts on each number of its first argument by itself.
        opens: Whether it lets numbers through as they are on one of its sides.
    """

    boundaries: Callable[..., list[Boundary]]
    reads: tuple[int, ...] = (0,)
    shifts: bool = False
    continuous: bool = True
    each: bool = True
    opens: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How a generated program writes a call without keywords; a call of the overload where nothing is given.

    Attributes:
        function: A Python function that is faster than the overload.
        infix: An operator between two arguments.
        method: A method of the first argument.
    """

    function: Callable[..., Any] | None = None
    infix: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is known of an operation.

    Attributes:
        name: Its plain name; empty for an unknown one.
        affine: The arguments in which it is affine, together; None for all that are real numbers.
        factors: Arguments in each of which it is affine as long as no other factor moves.
        added: Arguments that it only adds to a product of factors.
        shape_only: Arguments of which it reads no number.
        numbers: Arguments that, as plain numbers, it adds or puts in.
        adds: Whether it adds numbers that stand in none of those, e.g. the mean of a batch norm.
        gating: Where it bends, if it is piecewise affine.
        curve: The name of its curve, if it is a smooth function of each number of its first argument by itself.
        moves: How it moves elements.
        axes: Which argument says along which axes; None for none.
        keywords: Keywords under which the record holds; under any other that is given it does not.
        kind: Its hook point's kind; None where it has no hook point.
        role: What it is to those that look for patterns.
        written: How a program writes it.
    """

    name: str = ""
    affine: tuple[int, ...] | None = ()
    factors: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    shape_only: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    adds: bool = False
    gating: Gating | None = None
    curve: str = ""
    moves: Movement = "unknown"
    axes: int | None = None
    keywords: frozenset[str] = frozenset()
    kind: Kind | None = None
    role: Role | None = None
    written: Written = Written()

    @property
    def keeps_elements(self) -> bool:
        """Whether it only puts elements of its first argument in other places."""
        return self.moves in ("layout", "reshape")

    @property
    def bends(self) -> Literal["nowhere", "at boundaries", "everywhere", "unknown"]:
        """Where it bends in its arguments, one at a time."""
        if self.gating is not None:
            return "at boundaries"
        if self.curve:
            return "everywhere"
        return "nowhere" if self.affine != () or self.factors or self.shape_only else "unknown"


UNKNOWN = Operation()
"""Of what there is no record, or what is called in a way that its record does not describe."""
