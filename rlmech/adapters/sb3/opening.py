"""Stable-Baselines3 zips and live models as a `HookedPolicy`.

A zip is never unpickled unless `trust_pickle` says so: see `zip_file`. On every wrap the greedy actions of the wrapped
scores are compared with those of SB3's own `predict`. Statistics of
`VecNormalize` are the policy's first layer: see `normalized`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from rlmech.adapters.environment import check_spaces, check_spec, in_environment, read_spec, with_own_entities
from rlmech.adapters.safe import fit_weights
from rlmech.adapters.sb3.algorithms import Family, algorithm_of, plain
from rlmech.adapters.sb3.extractor_class import extractor_class
from rlmech.adapters.sb3.normalized import NormalizedScores, Statistics
from rlmech.adapters.sb3.plan import SB3Plan
from rlmech.adapters.sb3.run_folder import with_training
from rlmech.adapters.sb3.scores import OutputKind
from rlmech.adapters.sb3.statistics import find_statistics, read_statistics
from rlmech.adapters.sb3.trusting import load_trusting
from rlmech.adapters.sb3.zip_file import read_zip
from rlmech.adapters.spaces import Observation, draw_observations
from rlmech.core.choices import Choices
from rlmech.core.modes import depends_on_mode
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError, ParityError
from rlmech.simulators.action_masks import OBSERVATION_KEY
from rlmech.spec import PolicySpec
from rlmech.untyped import Settings

EXAMPLES = 8


def open_zip(
    path: Path,
    *,
    policy_kwargs: Settings | None = None,
    env_config: Settings | None = None,
    env: gym.Env | None = None,
    features_extractor_class: type[nn.Module] | str | None = None,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
    vecnormalize: Any = None,
    trust_pickle: bool = False,
    device: str = "cpu",
) -> HookedPolicy:
    """Open a zip that `model.save(path)` wrote.

    Args:
        path: The zip.
        policy_kwargs: Entries of `policy_kwargs` that replace those in the zip.
        env_config: The environment's configuration, for names and units.
        env: The environment itself, instead.
        features_extractor_class: The class of the features extractor, or its name, where it is not SB3's or this
            package's.
        observation_space: The space, where the zip holds it only as a pickle (Dict spaces).
        action_space: Likewise.
        vecnormalize: Statistics of VecNormalize: see `statistics.find_statistics`.
        trust_pickle: Whether SB3's own loader may run whatever the zip holds.
        device: Where to put the policy.

    Raises:
        CheckpointError: The zip is damaged, its weights do not fit, or something must be given.
        EnvironmentFitError: The environment is not one for this policy.
    """
    statistics = find_statistics(path, vecnormalize)
    if trust_pickle:
        policy = load_trusting(path, device=device)
    else:
        plan, tensors = read_zip(
            path,
            overrides=policy_kwargs or {},
            observation_space=observation_space,
            action_space=action_space,
            env=env,
        )
        in_kwargs = (policy_kwargs or {}).get("features_extractor_class")
        named = features_extractor_class or (in_kwargs if isinstance(in_kwargs, type) else None)
        extractor = None if named is None else extractor_class(named)
        if extractor is None and plan.features_extractor == "HighwayExtractor":
            warnings.warn(
                f"{path.name}: its features extractor CustomExtractor, only there as a pickle, is taken for that of "
                "highway-env's sb3_highway_ppo_transformer.py, whose keywords and weights it has; give "
                "features_extractor_class= to be sure",
                stacklevel=3,
            )
        policy = plan.build(features_extractor_class=extractor)
        fix = "give the class of the features extractor: features_extractor_class=..., with its config={...}"
        fit_weights(policy, tensors, name=path.name, fix=fix)
    policy = policy.to(device)
    if env is not None:
        check_spaces(env, policy.observation_space, policy.action_space)
    return wrap(policy, spec=with_training(read_spec(env, env_config), path), statistics=statistics)


def from_sb3(model: object, *, env: object = None, vecnormalize: object = None) -> HookedPolicy:
    """Open a live algorithm or policy: its own modules, which may train on underneath.

    Args:
        model: A model of SB3 or sb3-contrib, or the policy of one.
        env: The environment, for names and units; the algorithm's own by default.
        vecnormalize: Statistics of VecNormalize as they are now: a live one, a path to its pickle or an npz; the
            algorithm's own by default, False for none.

    Raises:
        ConfigError: It is neither.
        CheckpointError: Its kind of policy has no scores of one action.
        ParityError: The policy decides otherwise than its scores.
    """
    policy = plain(model.policy if isinstance(model, BaseAlgorithm) else model)
    if not isinstance(policy, BasePolicy):
        raise ConfigError(
            f"{type(model).__name__} is not a Stable-Baselines3 model.",
            given=f"{type(model).__module__}.{type(model).__name__}",
            expected="an algorithm, e.g. DQN.load(path), or its .policy",
            fix="HookedPolicy(module, example_obs) wraps any other torch module",
        )
    if env is not None:
        check_spaces(env, policy.observation_space, policy.action_space)
    own = model.get_env() if isinstance(model, BaseAlgorithm) else None
    if vecnormalize is None and isinstance(model, BaseAlgorithm):
        vecnormalize = model.get_vec_normalize_env()
    statistics = read_statistics(vecnormalize) if vecnormalize not in (None, False) else None
    return wrap(policy, spec=read_spec(own if env is None else env, None), statistics=statistics)


def open_plan(
    plan: SB3Plan, tensors: Mapping[str, Tensor], *, spec: PolicySpec, device: str, name: str
) -> HookedPolicy:
    """Open a policy from its plan and the weights of its scores."""
    policy = plan.build()
    module, _, _ = algorithm_of(policy).family.scores(policy)
    statistics = plan.blank_statistics()
    module = module if statistics is None else NormalizedScores(statistics, module)
    fit_weights(module, tensors, name=name, fix="write the file again with save_policy")
    statistics = module.statistics() if isinstance(module, NormalizedScores) else None
    return wrap(policy.to(device), spec=spec, statistics=statistics)


def plan_of(module: nn.Module) -> SB3Plan | None:
    """The plan of a wrapped SB3 module, or None where it is no such module.

    Raises:
        CheckpointError: It is one that no plan can describe.
    """
    return SB3Plan.of(module)


def wrap(policy: BasePolicy, *, spec: PolicySpec, statistics: Statistics | None = None) -> HookedPolicy:
    """Wrap a policy, after checking that its scores decide as SB3 does."""
    family = algorithm_of(policy).family
    module, output_kind, root = family.scores(policy)
    if any(depends_on_mode(part) for part in policy.modules()):
        policy.set_training_mode(False)  # as SB3's predict does: CrossQ's layers would learn from what they are shown
    space = family.observation_space(policy)
    example = draw_observations(space, EXAMPLES)
    scores = module
    if statistics is not None:
        if isinstance(space, spaces.Dict) and "" in statistics.mean:  # a single array, beside its mask
            statistics = statistics.under(OBSERVATION_KEY)
        statistics.check(space)
        example = statistics.observations(example, space)
        module = NormalizedScores(statistics, module).to(policy.device)
        root = f"scores.{root}".rstrip(".")
    example = _to(example, policy.device)
    seen = module.normalize(example) if isinstance(module, NormalizedScores) else example
    state = None if family.initial_state is None else family.initial_state(policy)
    has_value = _check_actions(policy, family, scores, seen, output_kind, state=state)
    n_actions = int(policy.action_space.n) if isinstance(policy.action_space, spaces.Discrete) else None
    own = with_own_entities(spec, policy.observation_space.shape)
    check_spec(own, shape=policy.observation_space.shape, n_actions=n_actions)
    wrapped = HookedPolicy(
        module,
        example,
        spec=own,
        output_kind=output_kind,
        root=root,
        observation_space=space,
        action_space=policy.action_space,
        scores=0 if has_value and state is None else None,
        value=1 if has_value and state is None else None,
        state=state,
    )
    return in_environment(wrapped, spec)


def _to(obs: Observation, device: torch.device) -> Observation:
    return {key: value.to(device) for key, value in obs.items()} if isinstance(obs, dict) else obs.to(device)


def _check_actions(
    policy: BasePolicy,
    family: Family,
    module: nn.Module,
    example: Observation,
    output_kind: OutputKind,
    *,
    state: Callable[[int], Any] | None,
) -> bool:
    """Compare the scores' greedy actions with SB3's own, in eval mode as `predict` has it. Is there a value too?"""
    modes = {part: part.training for part in policy.modules()}
    policy.set_training_mode(False)
    try:
        with torch.no_grad():
            here: Any = None if state is None else _stirred(state(EXAMPLES))
            outputs = module(example) if here is None else module(example, here)
            scores: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
            own = family.decide(policy, example, here)
            if output_kind == "mean_action":
                own = own.reshape(scores.shape)
                own = _unscaled(policy, own) if policy.squash_output else own
                same = torch.allclose(scores, own, rtol=1e-5, atol=1e-6)
            else:
                choices = Choices.of_space(policy.action_space)
                rows = scores if choices is None else choices.joined([scores])
                same = torch.equal(rows.argmax(-1).reshape(-1), own.reshape(-1).to(torch.int64))
    finally:
        for part, training in modes.items():
            part.training = training
    if not same:
        raise ParityError(
            f"The {type(policy).__name__} does not decide by the scores that its parts compute.",
            given="a subclass that changes how SB3's policy acts",
            expected="the actions of policy.predict",
            fix="wrap a module of your own that computes the scores: HookedPolicy(module, example_obs)",
        )
    return isinstance(outputs, tuple)


def _stirred(state: tuple[tuple[Tensor, Tensor], ...]) -> tuple[tuple[Tensor, ...], ...]:
    """A state of small random numbers of the same shapes."""
    generator = torch.Generator().manual_seed(0)
    return tuple(tuple(torch.rand(part.shape, generator=generator).to(part) for part in parts) for parts in state)


def _unscaled(policy: BasePolicy, action: Tensor) -> Tensor:
    space = cast(spaces.Box, policy.action_space)
    low, high = (torch.as_tensor(bound.ravel(), device=action.device) for bound in (space.low, space.high))
    return low + 0.5 * (action + 1.0) * (high - low)
