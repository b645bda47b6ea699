"""How a site's value is cut into the vectors that a dictionary reads: one a state, or one a position of some axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import ConfigError
from rlmech.untyped import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorLayout:
    """The vectors of a site.

    Attributes:
        site: Where.
        over: Axes whose positions are vectors of their own.
        places: Where these axes stand among the hook point's.
        n_positions: Vectors a state.
        width: Numbers in a vector.
    """

    site: Site
    over: tuple[str, ...]
    places: tuple[int, ...]
    n_positions: int
    width: int

    @classmethod
    def of(cls, policy: HookedPolicy, site: Site, over: str | Sequence[str]) -> VectorLayout:
        """The layout of a site.

        Raises:
            ConfigError: The hook point has no such axis, the site selects on it, nothing else is left, or it does not
                hold real numbers.
        """
        point, over = policy.point(site.name), (over,) if isinstance(over, str) else tuple(over)
        selected = {axis for axis, _ in site.selection}
        free = [axis for axis in point.axes[1:] if axis not in selected]
        if not set(over) <= set(free) or (over and len(free) <= len(over)):
            raise ConfigError(
                "Positions are vectors of their own along axes that the site leaves whole, with another axis beside.",
                given=f"over={list(over)}, and {site} with axes {' '.join(point.axes[1:])}",
                expected=f"some of {', '.join(free)}, not all of them",
                fix="leave over= out: the whole value of a state is then one vector",
            )
        dtype = policy.points[site.name].address.node.dtype if policy.engine == "graph" else None
        if dtype is not None and not dtype.is_floating_point:
            raise ConfigError(
                f"There are no features at {site.name!r}.",
                given=f"an activation of dtype {dtype}",
                expected="a floating-point activation",
                fix="choose another hook point; policy.hook_dict lists them",
            )
        places = tuple(point.axes.index(axis) for axis in over)
        total = int(site.mask(point).sum())
        n_positions = 1
        for axis in over:
            n_positions *= point.size(axis)
        return cls(site=site, over=over, places=places, n_positions=n_positions, width=total // n_positions)

    def described(self) -> JsonObject:
        """The layout in plain values."""
        chosen = [[axis, choice] for axis, choice in self.site.selection]
        return {"name": self.site.name, "selection": chosen, "over": list(self.over), "places": list(self.places),
                "n_positions": self.n_positions, "width": self.width}  # fmt: skip

    @classmethod
    def from_description(cls, given: JsonObject) -> VectorLayout:
        """The layout that plain values describe."""
        chosen = {axis: tuple(c) if isinstance(c, list) else c for axis, c in given["selection"]}
        return cls(
            site=Site(given["name"], **chosen),
            over=tuple(given["over"]),
            places=tuple(given["places"]),
            n_positions=int(given["n_positions"]),
            width=int(given["width"]),
        )

    def vectors(self, value: Tensor) -> Float[Tensor, "row number"]:
        """A value, as the site selects it, as vectors: states first, positions within."""
        front = list(range(1, 1 + len(self.places)))
        return value.movedim(self.places, front).reshape(-1, self.width)

    def value(self, vectors: Float[Tensor, "row number"], *, like: Tensor) -> Tensor:
        """Vectors as a value of the shape of another."""
        front = list(range(1, 1 + len(self.places)))
        return vectors.reshape(like.movedim(self.places, front).shape).movedim(front, self.places)
