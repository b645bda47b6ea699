"""What an edit of a scene is: a record of what was done and whether it is reachable, and who was meant.

A vehicle is named by its number (0, or "ego", is the ego) or by its row in the observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from rlmech.errors import SceneError
from rlmech.simulators.highway.staging.stage import EGO, Stage

if TYPE_CHECKING:
    from rlmech.spec import PolicySpec

Named = int | Literal["ego"] | None
Changed = tuple[int | None, tuple[str, ...]]
Change = Callable[[Stage], Changed]
"""Changes a stage in place; gives the number of the vehicle and what speaks against the state."""

OBSERVED_ONLY = "only the observation is edited: no state shows it"


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneEdit:
    """One edit of a scene, in words.

    Attributes:
        kind: The method that made it.
        vehicle: Number of the vehicle; None for the road's rules.
        what: What was done, with units.
        reasons: What speaks against the simulator's coming to this state; empty where nothing was found.

    Example:
        >>> import rlmech as rlm
        >>> scene = rlm.Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)
        >>> scene.remove(1).edits[0].what
        'vehicle 1 removed'
    """

    kind: str
    vehicle: int | None
    what: str
    reasons: tuple[str, ...] = ()

    @property
    def reachable(self) -> bool:
        """Whether nothing speaks against the state."""
        return not self.reasons

    @property
    def off_manifold(self) -> bool:
        """Whether only the observation was edited, so that no state of the simulator looks like this."""
        return OBSERVED_ONLY in self.reasons

    def __str__(self) -> str:
        return f"{self.what} ({'reachable' if self.reachable else 'not reachable: ' + '; '.join(self.reasons)})"


class Editable(Protocol):
    """What an edit needs of a scene: who is meant, and how a changed copy becomes a scene."""

    @property
    def stage(self) -> Stage:
        """The copied simulator."""
        ...

    @property
    def edits(self) -> tuple[SceneEdit, ...]:
        """What was changed so far."""
        ...

    @property
    def features(self) -> Mapping[int, Mapping[int, float]]:
        """What is only observed: by vehicle number, the network's own value by feature number."""
        ...

    @property
    def rows(self) -> dict[int, int]:
        """Row in the observation by vehicle number."""
        ...

    @property
    def spec(self) -> PolicySpec:
        """Names and units of observations and actions."""
        ...

    def changed(self, kind: str, what: str, change: Change) -> Self:
        """The scene after a change of a copy of its stage."""
        ...

    def shown(self, stage: Stage, edits: tuple[SceneEdit, ...], features: Mapping[int, Mapping[int, float]]) -> Self:
        """The scene with another stage and other features, observed anew."""
        ...


def number_of(scene: Editable, vehicle: Named = None, *, row: int | None = None) -> int:
    """The number of a vehicle that is named by its number, as `"ego"`, or by its row in the observation.

    Raises:
        SceneError: Neither or both given, or nobody there.
    """
    if (vehicle is None) == (row is None):
        raise SceneError(
            "A vehicle is named by its number or by its row.",
            given=f"vehicle={vehicle!r}, row={row!r}",
            expected="one of the two",
            fix="e.g. vehicle=3, vehicle='ego' or row=1; scene.vehicles shows both",
        )
    if row is None:
        number = EGO if vehicle == "ego" else vehicle
        scene.stage.vehicle(number)  # raises where there is none, whatever was given
        return number  # type: ignore[return-value]
    standing = {place: number for number, place in scene.rows.items()}
    if row in standing:
        return standing[row]
    raise SceneError(
        f"Nobody stands in row {row} of the observation.",
        given=f"row={row!r}",
        expected=f"one of rows {sorted(standing)}"
        if standing
        else "a number: the rows of this observation are not vehicles",
        fix="scene.vehicles shows numbers and rows",
    )


UNITS = {"along": "m", "sideways": "m", "at": "m", "x": "m", "y": "m", "heading": "rad"}


def worded(values: Mapping[str, Any], units: Mapping[str, str] = UNITS) -> str:
    """What was given, with signs and units."""
    given = {name: value for name, value in values.items() if value is not None}
    return ", ".join(
        f"{name} {value:+.2f} {units.get(name, '')}".rstrip() if isinstance(value, float | int) else f"{name} {value}"
        for name, value in given.items()
    )
