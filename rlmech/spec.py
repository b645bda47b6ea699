"""What the numbers of an observation and of an action mean: entities, features with units and ranges, actions.

A normalised feature u in [-1, 1] stands for low + (u + 1) / 2 * (high - low) in its unit. Pure data: nothing here
imports an environment; `spec_from_config` reads the configuration that highway-env and rl-agents keep as JSON,
`rlmech.simulators.env.spec_of` a live environment.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
from jaxtyping import Float

from rlmech.errors import ConfigError, MetricError, SiteError, nearest
from rlmech.untyped import JsonObject, Kwargs, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """One feature of an observation.

    Attributes:
        name: Its name, e.g. `x`.
        unit: Its physical unit, e.g. `m`; empty for a dimensionless one.
        low: Physical value that the network sees as -1; None where it sees the physical value itself.
        high: Physical value that the network sees as +1; None likewise.

    Example:
        >>> speed = FeatureSpec(name="vx", unit="m/s", low=-20.0, high=20.0)
        >>> speed.label
        'vx [m/s]'
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
        choices: Names of the choices, where there are several at once (MultiDiscrete, MultiBinary); empty else.
        presence: Name of the feature that says whether an entity is there (below 0.5: absent), or None.
        relative: Whether x, y, vx and vy of the entities after the first are relative to the first one's.
        labels: Names along further axes of an observation, by the axis: of an image e.g. its `channel`.
        env_id: Gymnasium id of the environment, or None.
        env_config: The environment's configuration as JSON values.
        env_kwargs: Keywords that it was made with, besides its configuration.
        env_wrappers: What it was wrapped in, the innermost first: `"module.Class"`, with its keywords as JSON in
            brackets where it has some, and `frame_stack(4)`.

    Example:
        >>> spec = PolicySpec(entities=("ego", "vehicle_1"), actions=("SLOWER", "IDLE", "FASTER"))
        >>> spec.index("action", "FASTER")
        2
    """

    entities: tuple[str, ...] = ()
    features: tuple[FeatureSpec, ...] = ()
    actions: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    presence: str | None = None
    relative: bool = False
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    env_id: str | None = None
    env_config: JsonObject = field(default_factory=dict)
    env_kwargs: Kwargs = field(default_factory=dict)
    env_wrappers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for axis in ("entity", "feature", "action", "choice", *self.labels):
            twice = sorted(name for name, n in Counter(self.names(axis)).items() if n > 1)
            if twice:
                raise ConfigError(
                    f"Two of the spec's {axis} names are the same.",
                    given=", ".join(map(repr, twice)),
                    expected="names that tell one from the other",
                    fix="number them",
                )

    def names(self, axis: str) -> tuple[str, ...]:
        """Names along `entity`, `feature`, `action`, `choice` or a labelled axis; empty where the spec has none."""
        match axis:
            case "entity":
                return self.entities
            case "feature":
                return tuple(feature.name for feature in self.features)
            case "action":
                return self.actions
            case "choice":
                return self.choices
            case _:
                return self.labels.get(axis, ())

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

    def action_number(self, action: int | str, *, n_actions: int) -> int:
        """The number of an action that is given by name or number.

        Args:
            action: Its name or number.
            n_actions: How many actions there are, also where the spec names none.

        Raises:
            MetricError: There is no such action.

        Example:
            >>> PolicySpec(actions=("SLOWER", "IDLE", "FASTER")).action_number("FASTER", n_actions=3)
            2
        """
        if isinstance(action, str) and action in self.actions:
            return self.actions.index(action)
        number = operator.index(action) if hasattr(action, "__index__") and not isinstance(action, bool | str) else -1
        if 0 <= number < n_actions:
            return number
        close = nearest(action, self.actions, n=1) if isinstance(action, str) else []
        numbers = f"a number from 0 to {n_actions - 1}"
        raise MetricError(
            f"There is no action {action!r}.",
            given=repr(action),
            expected=f"one of {', '.join(map(repr, self.actions))}, or {numbers}" if self.actions else numbers,
            fix=f"did you mean {close[0]!r}?"
            if close
            else "policy.spec.actions lists their names, in the order of the scores",
        )

    @property
    def presence_index(self) -> int | None:
        """Position of the presence feature, or None."""
        return None if self.presence is None else self.index("feature", self.presence)

    def to_json(self) -> dict[str, object]:
        """The spec as plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Settings) -> PolicySpec:
        """Read a spec from the values that `to_json` wrote."""
        return cls(
            entities=tuple(values["entities"]),
            features=tuple(FeatureSpec(**feature) for feature in values["features"]),
            actions=tuple(values["actions"]),
            choices=tuple(values.get("choices", ())),
            presence=values["presence"],
            relative=bool(values.get("relative", False)),
            labels={axis: tuple(names) for axis, names in values.get("labels", {}).items()},
            env_id=values["env_id"],
            env_config=dict(values["env_config"]),
            env_kwargs=dict(values.get("env_kwargs", {})),
            env_wrappers=tuple(values.get("env_wrappers", ())),
        )


_UNITS = {
    "x": "m",
    "y": "m",
    "vx": "m/s",
    "vy": "m/s",
    "heading": "rad",
    "long_off": "m",
    "lat_off": "m",
    "ang_off": "rad",
}
_DEFAULT_FEATURES = ("presence", "x", "y", "vx", "vy")
_DEFAULT_VEHICLES = 5
_MAX_SPEED, _LANE_WIDTH = 40.0, 4.0  # m/s and m: highway-env's constants, from which its default ranges follow
_ENTITY_OBSERVATIONS = ("Kinematics", "ExitObservation")
_META_ACTIONS = {
    (True, True): ("LANE_LEFT", "IDLE", "LANE_RIGHT", "FASTER", "SLOWER"),
    (True, False): ("SLOWER", "IDLE", "FASTER"),
    (False, True): ("LANE_LEFT", "IDLE", "LANE_RIGHT"),
}


def spec_from_config(config: Settings, *, n_lanes: int | None = None) -> PolicySpec:
    """Read a spec from a highway-env configuration, e.g. the `env.json` beside an rl-agents checkpoint.

    What the configuration leaves out takes highway-env's defaults for the observation or action named; where it names
    none, or one that is not made of entities, that part of the spec is empty.

    Args:
        config: The configuration; `id` is the environment's, `import_module` is never followed.
        n_lanes: Lanes of the ego's road, on which the default range of y depends; `lanes_count` by default.

    Example:
        >>> spec = spec_from_config({"observation": {"type": "Kinematics", "features_range": {"x": [-100, 100]}}})
        >>> [feature.label for feature in spec.features]
        ['presence', 'x [m]', 'y [m]', 'vx [m/s]', 'vy [m/s]']
    """
    observation, action = config.get("observation") or {}, config.get("action") or {}
    environment = {key: value for key, value in config.items() if key not in ("id", "import_module")}
    entities: tuple[str, ...] = ()
    features: tuple[FeatureSpec, ...] = ()
    if observation.get("type") in _ENTITY_OBSERVATIONS:
        others = int(observation.get("vehicles_count", _DEFAULT_VEHICLES)) - 1
        entities = ("ego", *(f"vehicle_{i + 1}" for i in range(others)))
        features = _features(observation, n_lanes or config.get("lanes_count"))
    return PolicySpec(
        entities=entities,
        features=features,
        actions=_action_names(action),
        presence="presence" if any(feature.name == "presence" for feature in features) else None,
        relative=bool(features) and not observation.get("absolute", False),
        env_id=config.get("id"),
        env_config=environment,
    )


def _features(observation: Settings, n_lanes: int | None) -> tuple[FeatureSpec, ...]:
    names = observation.get("features") or _DEFAULT_FEATURES
    if not observation.get("normalize", True):
        return tuple(FeatureSpec(name=name, unit=_UNITS.get(name, "")) for name in names)
    ranges: Settings = observation.get("features_range") or {
        "x": (-5 * _MAX_SPEED, 5 * _MAX_SPEED),
        "y": None if n_lanes is None else (-_LANE_WIDTH * n_lanes, _LANE_WIDTH * n_lanes),
        "vx": (-2 * _MAX_SPEED, 2 * _MAX_SPEED),
        "vy": (-2 * _MAX_SPEED, 2 * _MAX_SPEED),
    }
    return tuple(_feature(name, ranges) for name in names)


def _feature(name: str, ranges: Settings) -> FeatureSpec:
    if name not in ranges:  # highway-env leaves it as it is
        return FeatureSpec(name=name, unit=_UNITS.get(name, ""))
    if ranges[name] is None:  # normalised by a range that the configuration does not tell
        return FeatureSpec(name=name)
    low, high = ranges[name]
    return FeatureSpec(name=name, unit=_UNITS.get(name, ""), low=float(low), high=float(high))


def _action_names(action: Settings) -> tuple[str, ...]:
    along, across = bool(action.get("longitudinal", True)), bool(action.get("lateral", True))
    match action.get("type"):
        case "DiscreteMetaAction":
            return _META_ACTIONS.get((along, across), ())
        case "ContinuousAction":
            return ("acceleration",) * along + ("steering",) * across
        case _:
            return ()
