"""Environments, by name or made; their specs, and whether a policy fits them.

highway-env is imported when an environment of its own is asked for, never before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlmech.arguments import explain_misuse
from rlmech.core.choices import Choices
from rlmech.errors import ConfigError, EnvironmentFitError, MissingPackageError, ObservationError, nearest
from rlmech.simulators.action_masks import with_masks
from rlmech.simulators.choice import check_single, simulator_of
from rlmech.simulators.compiled import Acceleration, remark_once
from rlmech.simulators.minigrid import making
from rlmech.simulators.training_env import current_id, later_ids, wrapped
from rlmech.spec import PolicySpec

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy


OWN = {"CueRecall-v0": "rlmech.testbed.cue_env"}
"""This package's own environments, and the modules that register them."""


@explain_misuse
def make_env(
    env_id: str | PolicySpec,
    *,
    config: Mapping[str, Any] | None = None,
    render_mode: str | None = None,
    accelerated: bool = True,
    **keywords: Any,
) -> gym.Env:
    """Make a Gymnasium environment; highway-env's, MiniGrid's and this package's own are registered on demand.

    Args:
        env_id: Gymnasium id, e.g. `intersection-v2` or `MiniGrid-DoorKey-6x6-v0`; or a policy's spec, for the
            environment that it was trained in: its configuration, its keywords and, where they are installed
            libraries' own, its wrappers.
        config: Changes to highway-env's own configuration; other environments take none.
        render_mode: `rgb_array` for frames.
        accelerated: Whether highway-env's traffic may run in compiled code, to the same bits; where that cannot be, its
            own code runs, and `rlm.simulators.acceleration` says why.
        **keywords: What the environment's constructor takes beside, and `max_episode_steps`.

    Returns:
        The environment; `spec_of` tells what its numbers mean.

    Raises:
        ConfigError: No such environment, or one that takes no configuration.
        MissingPackageError: A package that it needs is not installed.

    Example:
        >>> import rlmech as rlm
        >>> env = rlm.make_env("highway-fast-v0", config={"vehicles_count": 5})
        >>> env.observation_space.shape
        (5, 5)
    """
    kwargs, wrappers = dict[str, Any](), tuple[str, ...]()
    if isinstance(env_id, PolicySpec):
        kwargs, wrappers = dict(env_id.env_kwargs), env_id.env_wrappers
        config = env_id.env_config | dict(config or {})
        env_id = _id_of(env_id)
    _register(env_id)
    kwargs |= keywords
    if config:  # an empty one, as the spec of other environments holds, says nothing
        kwargs["config"] = dict(config)
    try:
        if render_mode is not None:  # a constructor need not take it
            kwargs["render_mode"] = render_mode
        env = wrapped(gym.make(env_id, **kwargs), wrappers)
    except TypeError as error:
        if not config or "config" not in str(error):
            raise
        raise ConfigError(
            f"{env_id} takes no configuration.",
            given=f"config={dict(config)}",
            expected="config=None: configurations are highway-env's",
            fix="leave config out",
        ) from None
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        later = later_ids(env_id)
        raise MissingPackageError(
            f"{env_id} cannot be made here.",
            given=str(error),
            expected="an environment whose packages are installed",
            fix=f"install what it asks for, or make a later version ({', '.join(later)}) and measure whether the "
            "policy drives there as it did"
            if later
            else "install what it asks for",
        ) from error
    if accelerated:
        _accelerate(env)
    return env


def _register(env_id: str) -> None:
    """Make an id known to Gymnasium, where it is one of a package that registers on demand.

    Raises:
        ConfigError: It is no such id either.
        MissingPackageError: It is MiniGrid's, which is not installed.
    """
    if env_id in OWN:
        import_module(OWN[env_id])
    elif making.is_minigrid(env_id):
        making.register()
    elif env_id not in gym.registry:
        import highway_env

        gym.register_envs(highway_env)
    try:
        gym.spec(env_id)
    except gym.error.Error:
        close = nearest(env_id, gym.registry)
        raise ConfigError(
            f"Gymnasium knows no environment {env_id!r}.",
            given=repr(env_id),
            expected="a registered id, e.g. 'intersection-v2'",
            fix=f"did you mean {close[0]!r}?" if close else "register the environment first, or check the id",
        ) from None


@explain_misuse
def _id_of(spec: PolicySpec) -> str:
    """The id, as it is called today, of the environment that a spec names."""
    if spec.env_id is not None:
        return current_id(spec.env_id)
    raise ConfigError(
        "The policy does not say which environment it was trained in.",
        given="a spec without env_id",
        expected="the spec of a policy whose run lies beside it, or that was saved with one",
        fix="name it: make_env('CartPole-v1')",
    )


@explain_misuse
def acceleration(env: gym.Env) -> Acceleration:
    """What is accelerated of an environment, as it is now, and why not the rest.

    Example:
        >>> import rlmech as rlm
        >>> rlm.simulators.acceleration(rlm.make_env("CartPole-v1"))
        Acceleration(frames=False, observations=False, why='nothing is known that would be faster than CartPoleEnv')
    """
    return simulator_of(env).acceleration(env)


def _accelerate(env: gym.Env) -> None:
    simulator = simulator_of(env)
    simulator.accelerate(env)
    found = simulator.acceleration(env)
    if simulator.can_accelerate and not found:
        remark_once(f"{_name(env)} runs in its own code, which is many times slower: {found.why}.")


@explain_misuse
def environment(env: gym.Env | str, *, policy: HookedPolicy | None = None) -> gym.Env:
    """The environment that is meant: itself, or one made by its id.

    Args:
        env: An environment, or a Gymnasium id.
        policy: Who is to act in it. Where its own environment has that id, it is made with the same configuration; and
            where the policy takes the environment's images with their channels first, they are turned; where it
            chooses among what a mask leaves open, the mask is observed too.

    Raises:
        ConfigError: No such environment, or several at once.

    Example:
        >>> from rlmech.simulators import environment
        >>> environment("CartPole-v1").spec.id
        'CartPole-v1'
    """
    if isinstance(env, str):
        own = policy is not None and policy.spec.env_id == env
        env = make_env(policy.spec if own and policy is not None else env)
    check_single(env)
    return env if policy is None else with_masks(_turned(env, policy), policy.observation_space)


def _turned(env: gym.Env, policy: HookedPolicy) -> gym.Env:
    """The environment, its images turned as Stable-Baselines3 turns them: height width channel to channel first."""
    space, wanted = env.observation_space, policy.observation_space
    if not (isinstance(space, spaces.Box) and isinstance(wanted, spaces.Box) and len(space.shape) == 3):
        return env
    turned = (space.shape[2], *space.shape[:2])
    if space.shape == wanted.shape or turned != wanted.shape or space.dtype != np.uint8:
        return env
    return gym.wrappers.TransformObservation(env, _channels_first, spaces.Box(0, 255, turned, np.uint8))


def _channels_first(observation: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(observation, -1, 0))


def action_number(action: Any, names: Sequence[str]) -> Any:
    """An action as the environment takes it, given by its name or as it is.

    Args:
        action: A name, or a number or array, which is returned.
        names: Of all actions, in their order.

    Raises:
        ConfigError: There is no action of that name.

    Example:
        >>> action_number("IDLE", ("SLOWER", "IDLE", "FASTER")), action_number(2, ())
        (1, 2)
    """
    if not isinstance(action, str):
        return action
    if action in names:
        return list(names).index(action)
    close = nearest(action, names)
    raise ConfigError(
        f"There is no action {action!r}.",
        given=repr(action),
        expected=f"one of {', '.join(names)}" if names else "a number: these actions have no names",
        fix=f"did you mean {close[0]!r}?" if close else "give the action's number",
    )


@explain_misuse
def spec_of(env: gym.Env | str) -> PolicySpec:
    """Read what an environment's observations and actions mean, from its own configuration.

    Returns:
        The spec; without names where the environment is neither highway-env's nor MiniGrid's.

    Example:
        >>> from rlmech.simulators import make_env, spec_of
        >>> spec_of(make_env("intersection-v2")).actions
        ('SLOWER', 'IDLE', 'FASTER')
    """
    env = environment(env)
    return simulator_of(env).spec(env)


@explain_misuse
def check_fit(policy: HookedPolicy, env: gym.Env | str) -> None:
    """Check that a policy can act in an environment.

    Raises:
        EnvironmentFitError: The observations or the actions do not fit.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> try:
        ...     rlm.simulators.check_fit(policy, rlm.make_env("CartPole-v1"))
        ... except rlm.RlmechError as error:
        ...     print(error.problem)
        The environment's observations do not fit the policy.
    """
    acting_in(policy, environment(env))


def acting_in(policy: HookedPolicy, env: gym.Env, *, drives: bool = True) -> HookedPolicy:
    """The policy that acts in an environment: itself, or wrapped for as many entities as are observed there.

    Args:
        policy: The policy.
        env: The environment.
        drives: Whether it acts there, rather than being asked what it thinks: one of several choices drives nothing.

    Raises:
        EnvironmentFitError: The observations or the actions do not fit.
    """
    _check_read(env)
    observed = _shape(with_masks(env, policy.observation_space).observation_space)
    wanted = _observed_by(policy)
    if wanted is not None and observed != wanted and not _turned_round(policy, observed, wanted):
        try:
            fitting = policy.fitting(_example(env.observation_space))
            why = ""
        except ObservationError as error:
            fitting, why = policy, f"; on them the network says: {error.given.partition('it says: ')[2]}"
        if _observed_by(fitting) != observed:
            raise EnvironmentFitError(
                "The environment's observations do not fit the policy.",
                given=f"{_name(env)} observes {observed}{why}",
                expected=f"{wanted}",
                fix=_training(policy),
            )
        policy = fitting
    n_given, n_wanted = _n_actions(env.action_space), _n_scored(policy)
    if n_given != n_wanted and (drives or not policy.is_one_choice):
        raise EnvironmentFitError(
            "The environment's actions do not fit the policy.",
            given=f"{_name(env)} takes {env.action_space}",
            expected=f"{n_wanted} actions",
            fix="what drives makes all choices: give the policy itself, not policy.choice(...)"
            if policy.is_one_choice
            else _training(policy),
        )
    return policy


def _example(space: spaces.Space) -> Any:
    """A batch of one observation of zeros; not drawn, which would move the space's generator."""
    if isinstance(space, spaces.Dict):
        return {key: _example(part) for key, part in space.spaces.items()}
    return np.zeros((1, *(space.shape or ())), dtype=space.dtype)


def _check_read(env: gym.Env) -> None:
    """Check that an environment observes no text, which no network reads.

    Raises:
        EnvironmentFitError: It does.
    """
    space = env.observation_space
    parts: dict[str, spaces.Space] = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    kinds = ("Text", "MissionSpace")
    texts = [key for key, part in parts.items() if any(cls.__name__ in kinds for cls in type(part).__mro__)]
    if texts:
        rest = [key for key in parts if key not in texts]
        own = simulator_of(env).name == "minigrid"
        raise EnvironmentFitError(
            f"The environment's observations hold a text{f', {texts[0]!r}' if texts[0] else ''}: no network reads one.",
            given=f"{_name(env)}, which observes {_shape(space)}",
            expected="numbers alone",
            fix=f"gymnasium.wrappers.FilterObservation(env, {rest}) leaves it out"
            + ("; so do minigrid's ImgObsWrapper, while FlatObsWrapper encodes it" if own else ""),
        )


def _training(policy: HookedPolicy) -> str:
    """What to do about an environment that does not fit, with what is known of the one of the training."""
    spec = policy.spec
    if spec.env_wrappers or spec.env_kwargs:
        steps = [*(f"{key}={value!r}" for key, value in spec.env_kwargs.items()), *spec.env_wrappers]
        return (
            f"it was trained in {spec.env_id or 'its environment'} with {', '.join(steps)}: rlm.make_env(policy.spec)"
        )
    if spec.env_id is not None or spec.env_config:
        return "make the environment of the policy's training: rlm.make_env(policy.spec)"
    return "make the environment as it was in training, with its wrappers and configuration"


def _turned_round(policy: HookedPolicy, observed: Any, wanted: Any) -> bool:
    """Whether they differ only in where images have their channels, which the policy takes either way."""
    given = observed if isinstance(observed, dict) else {"": observed}
    own = wanted if isinstance(wanted, dict) else {"": wanted}
    return given.keys() == own.keys() and all(
        given[key] == own[key] or (key in policy.images and given[key] == (*own[key][1:], own[key][0])) for key in own
    )


def _name(env: gym.Env) -> str:
    return type(env.unwrapped).__name__ if env.spec is None else env.spec.id


def _shape(space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _shape(part) for key, part in space.spaces.items()}
    return space.shape


def _observed_by(policy: HookedPolicy) -> Any:
    """Shape of an observation of the policy; None where its space is unknown and it takes several arrays."""
    if policy.observation_space is not None:
        return _shape(policy.observation_space)
    return policy.hook_dict["hook_obs"].shape[1:] if "hook_obs" in policy.hook_dict else None


def _n_scored(policy: HookedPolicy) -> Any:
    """Number of actions; of several choices, of each."""
    if policy.choices is not None:
        return list(policy.choices.sizes)
    return policy.hook_dict[f"hook_{policy.output_kind}"].shape[-1]


def _n_actions(space: spaces.Space) -> Any:
    """Number of discrete actions, of each choice, or components of a continuous one."""
    choices = Choices.of_space(space)
    if choices is not None:
        return list(choices.sizes)
    return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or (0,)))
