"""What the numbers of an observation and of an action mean: entities, features with units and ranges, actions.

A normalised feature u in [-1, 1] stands for low + (u + 1) / 2 * (high - low) in its unit. Pure data: nothing here
imports an environment; `rlmech.rollouts.env.spec_of` reads a spec from a live one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from rlmech.errors import ConfigError, SiteError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """One feature of an observation.

    Attributes:
        name: Its name, e.g. `x`.
        unit: Its physical unit, e.g. `m`; empty for a dimensionless one.
        low: Physical value that the network sees as -1; None where it sees the physical value itself.
        high: Physical value that the network sees as +1; None likewise.
    """

    name: str
    unit: str = ""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None) or (self.low is not None and self.low >= (self.high or 0.0)):
            raise ConfigError(
                f"The range of feature {self.name!r} is not a range.",
                given=f"low={self.low}, high={self.high}",
                expected="low < high, or None for both",
                fix="give both ends, the smaller one as low",
            )

    @property
    def label(self) -> str:
        """Name and unit, for an axis: `x [m]`."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    def physical(self, value: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Turn what the network sees into the physical value, in `unit`."""
        if self.low is None or self.high is None:
            return value
        return self.low + (value + 1) / 2 * (self.high - self.low)

    def normalised(self, value: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Turn a physical value, in `unit`, into what the network sees (not clipped)."""
        if self.low is None or self.high is None:
            return value
        return (value - self.low) / (self.high - self.low) * 2 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """Names and units for the axes of a policy's observations and actions.

    Attributes:
        entities: Names of the rows of an entity observation, the ego first; empty for other observations.
        features: The features along the observation's last axis; empty for images.
        actions: Names of the actions, in the order of the scores.
        presence: Name of the feature that says whether an entity is there (below 0.5: absent), or None.
        env_id: Gymnasium id of the environment, or None.
        env_config: The environment's configuration as JSON values.

    Example:
        >>> spec = PolicySpec(entities=("ego", "vehicle_1"), actions=("SLOWER", "IDLE", "FASTER"))
        >>> spec.index("action", "FASTER")
        2
    """

    entities: tuple[str, ...] = ()
    features: tuple[FeatureSpec, ...] = ()
    actions: tuple[str, ...] = ()
    presence: str | None = None
    env_id: str | None = None
    env_config: dict[str, Any] = field(default_factory=dict)

    def names(self, axis: str) -> tuple[str, ...]:
        """Names along `entity`, `feature` or `action`; empty where the spec has none."""
        match axis:
            case "entity":
                return self.entities
            case "feature":
                return tuple(feature.name for feature in self.features)
            case "action":
                return self.actions
            case _:
                return ()

    def index(self, axis: str, name: str) -> int:
        """Position of a name along an axis.

        Raises:
            SiteError: No such name on that axis.
        """
        names = self.names(axis)
        if name in names:
            return names.index(name)
        close = nearest(name, names)
        raise SiteError(
            f"There is no {axis} named {name!r}.",
            given=repr(name),
            expected=f"one of {list(names)}" if names else f"a number: the policy's spec names no {axis}",
            fix=f"did you mean {close[0]!r}?" if close else "policy.spec lists the names",
        )

    @property
    def presence_index(self) -> int | None:
        """Position of the presence feature, or None."""
        return None if self.presence is None else self.index("feature", self.presence)

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PolicySpec:
        """Read a spec from the values that `to_json` wrote."""
        return cls(
            entities=tuple(values["entities"]),
            features=tuple(FeatureSpec(**feature) for feature in values["features"]),
            actions=tuple(values["actions"]),
            presence=values["presence"],
            env_id=values["env_id"],
            env_config=dict(values["env_config"]),
        )
