"""What an edit of a scene is: a record of what was done and whether it is reachable, and who was meant.

A vehicle is named by its number (0, or "ego", is the ego) or by its row in the observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, Self

from rlmech.errors import SceneError
from rlmech.simulators.highway.staging.stage import EGO, Stage
from rlmech.simulators.staging import SceneEdit

if TYPE_CHECKING:
    from rlmech.spec import PolicySpec

Named = int | Literal["ego"] | None
Changed = tuple[int | None, tuple[str, ...]]
Change = Callable[[Stage], Changed]
"""Changes a stage in place; gives the number of the vehicle and what speaks against the state."""


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


def worded(values: Mapping[str, object], units: Mapping[str, str] = UNITS) -> str:
    """What was given, with signs and units."""
    given = {name: value for name, value in values.items() if value is not None}
    return ", ".join(
        f"{name} {value:+.2f} {units.get(name, '')}".rstrip() if isinstance(value, float | int) else f"{name} {value}"
        for name, value in given.items()
    )
