"""Teaching by DAgger: the student drives, the policy says what it would have done there, the student learns anew.

Steps weigh what the choice matters to the policy, its best score less its worst (VIPER); sizes are taught apart. What
counts is measured on seeds that taught nothing: agreement in the policy's own states, and how the student drives
beside the policy, paired by seed. Cost: `n_rounds` times the seeds for each size, and the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import gymnasium as gym
import numpy as np
import torch
import xarray as xr
from gymnasium import spaces

from rlmech.arguments import explain_misuse
from rlmech.core.policy import HookedPolicy
from rlmech.distil.rules import Column, Kind, Lessons, fitted
from rlmech.episodes import Recording, compare_rollouts, record
from rlmech.errors import ConfigError, ObservationError
from rlmech.results import storable
from rlmech.statistics import bootstrap_mean

SIZES = (2, 4, 8, 16, 32)
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Distilled:
    """Students of a policy.

    Attributes:
        students: By size, as policies.
        rules: By size, in words, with the features' names and units.
        result: Dimensions `condition` (`baseline`, the policy, then `2 leaves` and so on) and `seed`: all that
            `compare_rollouts` gives, `size[condition]` (0 for the policy), and `fidelity[condition]`, the share of
            the policy's own steps at which the student does the same, with `_low` and `_high`, 95 %, by episode.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> env = rlm.make_env(policy.spec, config={"duration": 3})
        >>> found = rlm.distil.distil(policy, env, seeds=range(4), test_seeds=range(10, 14), sizes=[2], n_rounds=1)
        >>> found.result["condition"].values.tolist()
        ['baseline', '2 leaves']
    """

    students: Mapping[int, HookedPolicy]
    rules: Mapping[int, str]
    result: xr.Dataset

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.students))
        return f"Students of sizes {sizes}; .result measures them, .rules has them in words"


@explain_misuse
def distil(
    policy: HookedPolicy,
    env: gym.Env,
    *,
    seeds: Iterable[int],
    test_seeds: Iterable[int],
    kind: Kind = "tree",
    sizes: Sequence[int] = SIZES,
    n_rounds: int = 4,
    seed: int = 0,
) -> Distilled:
    """Teach small rules to do what a policy does, and measure how faithful they are and how they drive.

    Args:
        policy: The policy, which has no memory, one array as observation and discrete actions.
        env: An environment that fits it.
        seeds: Seeds of the episodes that teach.
        test_seeds: Seeds of the episodes that measure; none of `seeds`.
        kind: `tree`, a decision tree, or `linear`, logits that are linear in a few numbers.
        sizes: Leaves of the trees, or how many numbers a linear rule reads; a student each.
        n_rounds: Rounds of teaching: in the first the policy drives, in the others the student does.
        seed: Of ties while fitting, and of the bootstrap.

    Returns:
        The students, their rules in words and the measurements. Approximate: a student is no statement about the
        network, and its fidelity says how far it may stand for it.

    Raises:
        ConfigError: Seeds in both, a size below 1, no such kind, continuous actions or several choices, or a policy
            that remembers.
        ObservationError: The observation is not one array of numbers.
        MissingPackageError: scikit-learn is not installed.

    Source:
        Ross, Gordon and Bagnell 2011, arXiv 1011.0686 (DAgger); Bastani, Pu and Solar-Lezama 2018, arXiv 1805.08328
        (VIPER).

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> env = rlm.make_env(policy.spec, config={"duration": 3})
        >>> found = rlm.distil.distil(policy, env, seeds=range(4), test_seeds=range(10, 14), sizes=[2], n_rounds=1)
        >>> bool(0 <= found.result["fidelity"].sel(condition="2 leaves") <= 1)
        True
    """
    teaching, testing, sizes = [int(s) for s in seeds], [int(s) for s in test_seeds], [int(s) for s in sizes]
    _check(policy, teaching, testing, sizes, kind, n_rounds)
    columns, actions = columns_of(policy), _action_names(policy)
    own = record(policy, env, seeds=teaching, progress=False)
    first = _told(policy, own)
    students: dict[int, HookedPolicy] = {}
    rules: dict[int, str] = {}
    for size in sizes:
        told = [first]
        for turn in range(n_rounds):
            network, words = fitted(kind, _lessons(told), size=size, columns=columns, actions=actions, seed=seed)
            students[size], rules[size] = _student(network, policy, own), words
            if turn < n_rounds - 1:
                told.append(_told(policy, record(students[size], env, seeds=teaching, progress=False)))
    unit = "leaves" if kind == "tree" else "numbers"
    conditions = {f"{size} {unit}": student for size, student in students.items()}
    driven = compare_rollouts(policy, env, conditions=conditions, seeds=testing, seed=seed, progress=False)
    result = driven.assign(_fidelity(record(policy, env, seeds=testing, progress=False), students, seed))
    attrs = {"method": f"distillation into a {kind}", "n_rounds": n_rounds, "n_teaching_seeds": len(teaching)}
    return Distilled(students=students, rules=rules, result=storable(result, attrs))


def columns_of(policy: HookedPolicy) -> list[Column]:
    """A name for each number of the flat observation, with its feature where the spec has one."""
    name = "hook_obs_raw" if "hook_obs_raw" in policy.hook_dict else "hook_obs"
    point, spec = policy.hook_dict[name], policy.spec
    axes = point.axes[1:]
    sizes = [point.size(axis) for axis in axes]
    labels = [
        names if len(names := spec.names(axis)) == size else tuple(map(str, range(size)))
        for axis, size in zip(axes, sizes, strict=True)
    ]
    columns: list[Column] = []
    for place in np.ndindex(*sizes):
        words = [label[i] for label, i in zip(labels, place, strict=True)]
        named = axes[-1] == "feature" and len(spec.features) == sizes[-1]
        if not named and len(words) == 1:
            words = [f"number {words[0]}"]
        columns.append(Column(name=" ".join(words), feature=spec.features[place[-1]] if named else None))
    return columns


def _action_names(policy: HookedPolicy) -> list[str]:
    point = next(point for point in policy.hook_dict.values() if point.kind == "output")
    n = point.size("action")
    names = policy.spec.actions
    return list(names) if len(names) == n else [f"action {i}" for i in range(n)]


def _told(policy: HookedPolicy, recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """The states of a recording, flat, and what the policy says of them."""
    observations = np.asarray(recording.observations)
    with torch.no_grad():
        scores = [
            policy(observations[i : i + _ROWS_AT_ONCE]).double().cpu().numpy()
            for i in range(0, len(observations), _ROWS_AT_ONCE)
        ]
    return observations.reshape(len(observations), -1).astype(np.float32), np.concatenate(scores)


def _lessons(told: Sequence[tuple[np.ndarray, np.ndarray]]) -> Lessons:
    """All states that were met, what the policy does there, and how much that matters to it."""
    rows, scores = (np.concatenate(parts) for parts in zip(*told, strict=True))
    weights = scores.max(1) - scores.min(1)
    return Lessons(
        rows=rows,
        actions=scores.argmax(1),
        weights=weights if weights.any() else np.ones(len(weights)),
        n_actions=scores.shape[1],
    )


def _student(network: torch.nn.Module, policy: HookedPolicy, recording: Recording) -> HookedPolicy:
    example = torch.as_tensor(np.asarray(recording.observations)[:2]).float()
    return HookedPolicy(
        network.eval(), example, spec=policy.spec, output_kind="logits", action_space=policy.action_space
    )


def _fidelity(own: Recording, students: Mapping[int, HookedPolicy], seed: int) -> dict[str, tuple[str, np.ndarray]]:
    """Agreement in the policy's own states, by episode."""
    observations, taken = np.asarray(own.observations), np.asarray(own.actions)
    same = np.stack([student.predict(observations)[0] == taken for student in students.values()]).astype(float)
    episodes = own.steps["episode"].to_numpy()
    interval = bootstrap_mean(same, clusters=episodes, shares="shares", seed=seed)
    ends = {"": (1.0, interval.estimate), "_low": (np.nan, interval.low), "_high": (np.nan, interval.high)}
    found = {
        f"fidelity{end}": ("condition", np.concatenate([[first], values])) for end, (first, values) in ends.items()
    }
    return {"size": ("condition", np.array([0, *students])), **found}


def _check(
    policy: HookedPolicy, teaching: list[int], testing: list[int], sizes: list[int], kind: str, n_rounds: int
) -> None:
    both = sorted(set(teaching) & set(testing))
    problems = {
        "Seeds that teach do not measure.": (
            bool(both or not teaching or not testing),
            f"{len(teaching)} seeds and {len(testing)} test_seeds, {len(both)} of them in both",
            "seeds of their own for each",
            "seeds=range(50), test_seeds=range(1000, 1100)",
        ),
        "A student has a size.": (
            not sizes or min(sizes, default=0) < 1 or n_rounds < 1,
            f"sizes={sizes}, n_rounds={n_rounds}",
            "whole numbers, at least 1",
            "sizes=[2, 4, 8], n_rounds=4",
        ),
        f"There is no student of kind {kind!r}.": (
            kind not in get_args(Kind),
            repr(kind),
            " or ".join(map(repr, get_args(Kind))),
            "kind='tree'",
        ),
        "Rules choose one of several actions.": (
            policy.output_kind == "mean_action" or policy.choices is not None,
            "continuous actions" if policy.output_kind == "mean_action" else "several choices",
            "discrete actions, one choice",
            "policy.choice(name) is one of several choices alone",
        ),
        "Rules do not remember.": (
            bool(policy.state_names),
            f"a policy with the state {', '.join(policy.state_names)}",
            "a policy without memory",
            "rlm.probes shows what the state holds",
        ),
    }
    for message, (wrong, given, expected, fix) in problems.items():
        if wrong:
            raise ConfigError(message, given=given, expected=expected, fix=fix)
    inputs = [name for name in policy.hook_dict if name.startswith("hook_obs")]
    if any("." in name for name in inputs) or isinstance(policy.observation_space, spaces.Discrete):
        raise ObservationError(
            "Rules read one array of numbers.",
            given=", ".join(inputs),
            expected="a policy whose observation is one array",
            fix="wrap the environment in gymnasium.wrappers.FlattenObservation and the policy's network likewise",
        )
