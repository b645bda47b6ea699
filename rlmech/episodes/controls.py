"""What an edit must be held against: the same edit elsewhere, and a push of the same size in no particular direction.

    random_site        the condition's edits at as many other positions of the same axes of the same hook points
    random_direction   at each of its sites a random direction, as long as the root mean square of what the edit changes
                       there over states that the baseline meets

Cost: for the directions, one pass over the states of a few baseline episodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import gymnasium as gym
import torch
from torch import Tensor

from rlmech.core.edit import Edit
from rlmech.core.interventions import steer
from rlmech.core.modes import evaluating
from rlmech.core.site import Site, read
from rlmech.episodes.driving import Condition
from rlmech.episodes.recorded_moments import moments
from rlmech.episodes.recorder import record_conditions
from rlmech.errors import ConfigError

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy

Control = Literal["random_site", "random_direction"]
N_EPISODES = 10  # of the baseline, whose states tell how much an edit changes


def with_controls(
    policy: HookedPolicy,
    env: gym.Env,
    conditions: Mapping[str, Condition],
    *,
    kinds: Sequence[Control],
    n: int,
    seeds: list[int],
    generator_seed: int,
) -> tuple[dict[str, Condition], dict[str, str]]:
    """The conditions with their controls, and which control belongs to which.

    Raises:
        ConfigError: No such control, or a condition that has none of that kind.
    """
    for kind in kinds:
        if kind not in get_args(Control):
            raise ConfigError(
                f"There is no control {kind!r}.",
                given=repr(kind),
                expected=f"one of {', '.join(get_args(Control))}",
                fix="controls=('random_site', 'random_direction')",
            )
    extended, control_of = dict(conditions), dict[str, str]()
    states = _states(policy, env, seeds) if "random_direction" in kinds else None
    for name, condition in conditions.items():
        if not condition.edits or not kinds:
            continue  # another policy has no sites, and a function needs none where no control is asked for
        edits = [_own(name, edit) for edit in condition.edits]
        hooked = condition.policy or policy
        for kind in kinds:
            drawn_for = hashlib.sha256(f"{generator_seed} {kind} {name}".encode())  # whatever conditions stand beside
            generator = torch.Generator().manual_seed(int.from_bytes(drawn_for.digest()[:7]))
            for number in range(1, n + 1):
                if kind == "random_site":
                    other = [_elsewhere(hooked, edit, generator) for edit in edits]
                else:
                    other = [_pushed(hooked, edit, states, generator) for edit in edits]
                label = f"{name}, {kind.replace('_', ' ')} {number}"
                extended[label], control_of[label] = replace(condition, edits=tuple(other)), name
    return extended, control_of


def _own(name: str, edit: Any) -> Edit:
    if isinstance(edit, Edit):
        return edit
    raise ConfigError(
        f"There is no control for condition {name!r}.",
        given=f"the function {edit!r}, which does not say where it acts and how much",
        expected="edits",
        fix="leave 'controls' out, or write the function as an edit",
    )


def _elsewhere(policy: HookedPolicy, edit: Edit, generator: torch.Generator) -> Edit:
    """The same edit at as many other positions along each axis that the site selects, where there are others."""
    point = policy.point(edit.site.name)
    if edit.mapping is not None:
        raise ConfigError(
            f"There is no other site like {edit.site}.",
            given="an edit of a dictionary's features, which was learned at this site",
            expected="edits that act anywhere along an axis",
            fix="leave out the control 'random_site'; rlm.features.drive_features has features of its own as controls",
        )
    own, other = edit.site.in_time(point)[1].positions(point), dict[str, Any]()
    for axis, chosen in own.items():
        free = [place for place in range(point.size(axis)) if place not in chosen]
        if len(free) >= len(chosen):
            drawn = torch.randperm(len(free), generator=generator)[: len(chosen)]
            places = tuple(free[int(i)] for i in drawn)
            single = not isinstance(dict(edit.site.selection)[axis], tuple)
            other[axis] = places[0] if single else places
    if not other:
        raise ConfigError(
            f"There is no other site like {edit.site}.",
            given=f"{edit.site}, which leaves too little of {point.name!r} free",
            expected="a site that selects at most half of an axis",
            fix="leave out the control 'random_site', or narrow the site",
        )
    return replace(edit, site=Site(edit.site.name, **{**dict(edit.site.selection), **other}))


def _pushed(policy: HookedPolicy, edit: Edit, states: Any, generator: torch.Generator) -> Edit:
    """A push in a random direction, as long as what the edit changes."""
    point = policy.point(edit.site.name)
    here = replace(edit, site=edit.site.in_time(point)[1])  # what it changes, whichever step it acts at
    with torch.no_grad(), evaluating(policy.module):
        before = policy.run_with_cache(states, [point.name])[1][point.name]
        if not before.is_floating_point():
            raise ConfigError(
                f"There is no direction to push {point.name!r} in: it holds no real numbers.",
                given=f"{edit.site}, {before.dtype}",
                expected="a site of real numbers for the control 'random_direction'",
                fix="controls=['random_site']",
            )
        with policy.edited([here]):
            after = policy.run_with_cache(states, [point.name])[1][point.name]
    change: Tensor = read(after - before, here.site.index(point)).flatten(1).double()
    length = float(change.square().sum(1).mean().sqrt())
    direction = torch.randn(here.site.block_shape(point), generator=generator, dtype=torch.float64)
    return steer(edit.site, (direction / direction.norm() * length).to(before.dtype))


def _states(policy: HookedPolicy, env: gym.Env, seeds: list[int]) -> Any:
    recordings, _ = record_conditions(
        policy,
        env,
        {"": Condition()},
        seeds=seeds[:N_EPISODES],
        names=(),
        frames=False,
        outcomes=(),
        workers=1,
        backend="processes",
        paths=None,
        progress=False,
    )
    return moments(recordings[""], policy)
