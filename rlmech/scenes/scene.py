"""A scene: the simulator at one moment, held still, to be changed, looked at, decided in and driven on from.

Every edit gives a new scene and says whether its state is reachable; neither the scene nor the environment that it
was captured from changes. Cost: about a millisecond for a copy and another to observe it (a step: 20 to 90).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Self

import gymnasium as gym
import pandas as pd
import torch
import xarray as xr

from rlmech.core.acting import as_numpy, choose_actions
from rlmech.errors import SceneError, nearest
from rlmech.scenes.decision import Decision, decision_of
from rlmech.scenes.pair import aligned_rows, scene_pair
from rlmech.scenes.rolling import Roll, decided, remembered, roll
from rlmech.simulators.action_masks import with_mask_of
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.env import acting_in, action_number, environment, spec_of
from rlmech.simulators.highway.staging.road import ROAD
from rlmech.simulators.staging import Features, SceneEdit, Staging, check_capturable
from rlmech.simulators.world import World
from rlmech.spec import PolicySpec
from rlmech.untyped import Settings

if TYPE_CHECKING:
    from rlmech.core.edit import Edit
    from rlmech.core.policy import HookedPolicy

_UNKNOWN = object()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """The simulator at one moment; made by `Scene.capture` or `Scene.replay`, changed by its edits.

    Edits are methods that the environment's simulator gives it; `help(scene.move)` tells what one takes. Of roads:
    `remove`, `add`, `move`, `set_speed`, `brake`, `speed_up`, `reroute`, `set_spawn_rate`, `set_priority`,
    `set_feature`. Of MiniGrid's grids: `remove`, `add`, `move`, `open`, `close`, `lock`, `recolour`, `place_agent`,
    `turn`, `carry`.

    Attributes:
        stage: The copied simulator. Look, and `fork` it before changing anything.
        edits: What was changed since the capture, each with whether it is reachable.
        ended: Whether the episode was over here.
        features: Of observation-only edits: by an entity's number, the network's own value by feature number.
        base_rows: Observation row by an entity's number when captured, or last stepped: the rows that pairs keep.
        seen: The observation, where it is known; see `observation`.
        moment: Which moment of an episode it is: the same for all edits of one scene, another after each step.
        past: What was observed before, from the episode's beginning, which a recurrent policy remembers; None where it
            is not known.

    Example:
        >>> import rlmech as rlm
        >>> from rlmech.scenes import Scene
        >>> scene = Scene.replay(rlm.make_env("highway-fast-v0"), seed=0)
        >>> braking = scene.brake(row=1, deceleration=4.0, seconds=1.0)
        >>> braking.reachable, len(scene.edits), len(braking.edits)
        (True, 0, 1)
    """

    stage: Any
    edits: tuple[SceneEdit, ...] = ()
    ended: bool = False
    features: Features = field(default_factory=dict[int, Mapping[int, float]])
    base_rows: Mapping[int, int] = field(default_factory=dict[int, int])
    seen: Any = field(default=_UNKNOWN, repr=False)
    moment: object = field(default_factory=object, repr=False)
    past: tuple[object, ...] | None = field(default=None, repr=False)

    @classmethod
    def capture(cls, env: gym.Env | World, *, observation: Any = None) -> Scene:
        """Copy an environment as it is now; it goes on as if nothing had happened.

        Args:
            env: The environment, at any moment after `reset`, or the `World` around it, which knows who stands in
                which row of the last observation.
            observation: What the environment last gave. Without it, and without a `World`, highway-env's scenes are
                observed anew in the copy: shuffled rows then have another order, and vehicles that came or left right
                after the last observation (in intersections) are shown or missing.

        Raises:
            SceneError: Not started, not to be copied, or the observation is not of this state.

        Example:
            >>> import rlmech as rlm
            >>> from rlmech.scenes import Scene
            >>> env = rlm.make_env("highway-fast-v0")
            >>> observation, _ = env.reset(seed=0)
            >>> bool((Scene.capture(env).observation == observation).all())
            True
        """
        staging = _staging(check_capturable(env))
        stage = staging.stage(env, observation)
        if not staging.is_peopled(stage):
            return cls(stage=stage, seen=_UNKNOWN if observation is None else observation)
        seen = staging.observed(stage, stage.in_sight, {}) if observation is None else observation
        return cls(stage=stage, seen=seen, base_rows=dict(stage.in_sight) if staging.has_rows(stage) else {})

    @classmethod
    def replay(cls, env: gym.Env | World | str, *, seed: int, actions: Sequence[object] = ()) -> Scene:
        """The scene after some actions of an episode, in a copy of an environment.

        Args:
            env: The environment, reset or not, or the id of one.
            seed: Of the episode.
            actions: What was done, e.g. `recording.actions[...]`, or names of actions.

        Raises:
            SceneError: The episode ends before.
        """
        given = env if isinstance(env, World) else environment(env)
        world = (given if isinstance(given, World) else simulator_of(given).world(given)).copied()
        observation, _ = world.reset(seed=seed)
        scene = replace(cls.capture(world, observation=observation), past=())
        for action in actions:
            scene = scene.step(action)
        return scene

    # ---- looking

    @property
    def observation(self) -> Any:
        """What the policy sees: as the environment gave it, or after an edit, as it would show the edited state.

        Sorted rows are sorted anew; shuffled rows stay, and who comes into view takes a free one. `aligned` keeps all
        rows in place.

        Raises:
            SceneError: An environment whose state nobody knows was captured without its observation.
        """
        if self.seen is not _UNKNOWN:
            return self.seen
        raise SceneError(
            "The observation of this scene is not known: Gymnasium cannot be asked for it again.",
            given=f"Scene.capture({self.stage.env})",
            expected="the observation that the environment last returned",
            fix="Scene.capture(env, observation=observation), or take a step",
        )

    @property
    def aligned(self) -> object:
        """The observation with every vehicle in the row that it had when captured, those removed all zeros.

        A vehicle that was added takes the first free row; one that only now comes into view is not shown. Where
        observations have no rows, the same as `observation`.
        """
        return self.observed_in(aligned_rows(self)) if self.base_rows else self.observation

    @property
    def rows(self) -> dict[int, int]:
        """Row in `observation` by vehicle number, of those that have one; empty where rows are not vehicles."""
        return {number: row for number, row in self.stage.in_sight.items() if row >= 0} if self.base_rows else {}

    @property
    def staging(self) -> Staging:
        """What can be done in an environment of this kind."""
        return _staging(self.stage.env)

    @property
    def entities(self) -> pd.DataFrame:
        """Who is there, a line each: of a road its `vehicles`, of MiniGrid's grids the agent and the objects.

        Returns:
            Columns: of a grid those of `rlmech.simulators.minigrid.objects.OBJECT_COLUMNS`; empty where the simulator
            tells of nobody.
        """
        return self.staging.table(self.stage)

    @property
    def vehicles(self) -> pd.DataFrame:
        """The entities of a road: a line for each vehicle; empty for environments without one.

        Returns:
            Columns: `vehicle` (0 is the ego), `row` in `observation` (-1: none), `kind`, `x` and `y` in m, `heading`
            in rad, `speed` in m/s, `target_speed` in m/s, `length` and `width` in m, `crashed`, `lane`, `along` and
            `lateral` in m, `goal`, `distance` to the ego in m, `on_road` (False: left right after it was observed).
        """
        entities = self.entities
        return entities if "vehicle" in entities else pd.DataFrame()

    @property
    def spec(self) -> PolicySpec:
        """Names and units of observations and actions."""
        return spec_of(self.stage.env)

    @property
    def reachable(self) -> bool:
        """Whether nothing was found that speaks against the state; see `edits` for the reasons."""
        return all(edit.reachable for edit in self.edits)

    def describe(self) -> str:
        """The edits in words, one a line."""
        return "\n".join(map(str, self.edits)) or "as captured"

    # ---- deciding and driving on

    def decide(self, policy: HookedPolicy, *, edits: Sequence[Edit] = (), state: Settings | None = None) -> Decision:
        """What a policy would do here.

        Args:
            policy: The policy.
            edits: Edits of its activations.
            state: Of a recurrent policy, its state before this step; None for the one that it would have, unedited,
                after all that was observed before.

        Raises:
            EnvironmentFitError: The environment's spaces do not fit it.
            SceneError: A recurrent policy, and what was observed before is not known.
        """
        policy = acting_in(policy, self.stage.env, drives=False)
        before = remembered(policy, self.past) if policy.is_recurrent and state is None else state
        with torch.no_grad(), policy.edited(edits):
            observation = with_mask_of(self.stage.env, self.observation, policy.observation_space)
            found, after = decided(policy, observation, before)
            chosen = choose_actions(found, policy.output_kind, policy.action_space, deterministic=True)[0]
        return decision_of(policy, as_numpy(found[0]), chosen, after, names=self.spec.actions)

    def step(self, action: Any) -> Scene:
        """The scene after an action; edits of what is only observed are over then.

        Raises:
            SceneError: The episode is over.
        """
        return self.advance(action)[0]

    def advance(self, action: Any) -> tuple[Scene, float, Mapping[str, object]]:
        """The scene after an action, given as the environment takes it or by its name, the reward, and the info.

        Raises:
            SceneError: The episode is over.
            ConfigError: There is no action of that name.
        """
        action = action_number(action, self.spec.actions if isinstance(action, str) else ())
        if self.ended:
            raise SceneError(
                "The episode is over in this scene.",
                given=f"action {action!r}",
                expected="a scene before the end",
                fix="go on from an earlier scene",
            )
        stage = self.stage.fork()
        seen, reward, terminated, truncated, info = stage.step(action)
        over = bool(terminated or truncated)
        rows = dict(stage.in_sight) if self.staging.has_rows(stage) else {}
        past = None if self.past is None else (*self.past, self.seen)
        after = replace(
            self, stage=stage, seen=seen, ended=over, features={}, base_rows=rows, moment=object(), past=past
        )
        return after, float(reward), info

    def roll(
        self,
        policy: HookedPolicy,
        *,
        n_steps: int | None = None,
        edits: Sequence[Edit] = (),
        state: Mapping[str, object] | None = None,
    ) -> Roll[Scene]:
        """Let a policy drive on from here, in a copy.

        Args:
            policy: The policy.
            n_steps: How many steps at the most; None until the episode ends.
            edits: Edits of its activations, at every step, or at the one that a site selects, counted from here.
            state: Of a recurrent policy, its state before the first step, as for `decide`; it is carried on.

        Raises:
            EnvironmentFitError: The environment's spaces do not fit the policy.
            SceneError: The episode is over.
        """
        return roll(self, policy, n_steps=n_steps, edits=edits, state=state)

    def pair(self, edited: Scene | None = None, **edit: Any) -> xr.Dataset:
        """A pair for activation patching, entity rows aligned: this scene clean, the edited one corrupt.

        Args:
            edited: The edited scene; or
            edit: one edit by its method's name: `pair(remove=3)`, `pair(remove={"row": 1})`,
                `pair(move={"vehicle": 3, "along": -10.0})`.

        Returns:
            Dimensions `pair` (of size 1; put several together with `xarray.concat(pairs, "pair")`), `entity` and
            `feature`. `clean`; `corrupt`, in which every vehicle stands in the row that it has in `clean`; `own`, what
            the environment would show; `vehicle[pair, entity]`, who stands in the rows of `clean` and `corrupt` (-1:
            nobody in either); `hidden[pair]`, how many that `own` shows are not in `corrupt`; `in_order[pair]`,
            whether `corrupt` equals `own`, so that the environment itself could show it; `reachable[pair]`; `edit`.

        Raises:
            SceneError: Neither or both given, or no such edit.

        Example:
            >>> import rlmech as rlm
            >>> from rlmech.scenes import Scene
            >>> pair = Scene.replay(rlm.make_env("highway-fast-v0"), seed=0).pair(remove={"row": 1})
            >>> (pair.corrupt != pair.clean).any("feature").values[0].tolist()
            [False, True, False, False, False]
        """
        return scene_pair(self, self.edited_by(edit) if edited is None or edit else edited)

    # ---- editing

    def __getattr__(self, name: str) -> Callable[..., Scene]:
        edit = None if name.startswith("_") else self.staging.edits.get(name)
        if edit is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        return update_wrapper(partial(edit, self), edit)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self.staging.edits})

    def number(self, entity: Any = None, *, row: int | None = None) -> int:
        """The number of who is named by it, as `"ego"` or `"agent"`, or by the row in `observation`.

        Raises:
            SceneError: Neither or both given, or nobody there.
        """
        return self.staging.number(self, entity, row)

    def edited_by(self, edit: Settings) -> Scene:
        """The scene with one edit made by its method's name.

        Raises:
            SceneError: Not exactly one, or no such edit.
        """
        name, known = next(iter(edit), ""), self.staging.edits
        if len(edit) != 1 or name not in known:
            close = nearest(name, known)
            raise SceneError(
                "A scene is edited by one edit of its methods.",
                given=", ".join(f"{key}={value!r}" for key, value in edit.items()) or "nothing",
                expected=f"one of {', '.join(known)}, or an edited scene",
                fix=f"did you mean {close[0]!r}?" if close and name not in known else "chain edits, and give the scene",
            )
        arguments = edit[name]
        return known[name](self, **arguments) if isinstance(arguments, Mapping) else known[name](self, arguments)

    def changed(self, kind: str, what: str, change: Callable[[Any], tuple[int | None, tuple[str, ...]]]) -> Self:
        """The scene after a change of a copy of its stage; what its edits are made of."""
        stage, staging = self.stage.fork(), self.staging
        staging.check_editable(stage)
        entity, reasons = change(stage)
        if staging.has_rows(stage):
            stage.in_sight = staging.own_rows(stage)
        edit = SceneEdit(kind=kind, entity=entity, what=what, reasons=reasons)
        return self.shown(stage, (*self.edits, edit), self.features)

    def shown(self, stage: Any, edits: tuple[SceneEdit, ...], features: Features) -> Self:
        """The scene with another stage and other features, observed anew; what its edits are made of."""
        here = {number: values for number, values in features.items() if number in stage.in_sight}
        scene = replace(self, stage=stage, edits=edits, features=here)
        return replace(scene, seen=scene.observed_in(stage.in_sight))

    def observed_in(self, rows: Mapping[int, int]) -> Any:
        """The observation with entities in given rows (-1: in none), and what is only observed laid over it."""
        return self.staging.observed(self.stage, rows, self.features)


def _staging(env: gym.Env) -> Staging:
    """What can be done in an environment; where its simulator knows nothing, the road says what is missing."""
    return simulator_of(env).staging or ROAD
