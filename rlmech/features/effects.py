"""What each feature of a dictionary does: when it is active, what it adds to each action, how it drives.

    effect = score with the feature - score without it, all else and the unexplained rest as they are

Exact: each feature is taken out in each state in which it is active, and the network runs. Cost: one row of a forward
pass for each active feature of each state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.hook_point import HookPoint
from rlmech.core.many_rows import AT_ONCE, rows_of, scores_of
from rlmech.core.masked import open_actions
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import read, write
from rlmech.episodes import compare_rollouts
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError, SiteError
from rlmech.features.dictionary import Dictionary
from rlmech.features.rows import states_of
from rlmech.patching.sites import site_coordinates
from rlmech.patching.sweeps.independence import refuse_train_mode
from rlmech.results import storable
from rlmech.statistics import bootstrap_mean
from rlmech.untyped import JsonObject, Variables


@explain_misuse
def feature_effects(
    policy: HookedPolicy,
    dictionary: Dictionary,
    states: Recording | Observation,
    *,
    features: Sequence[int] | None = None,
    n_states: int = 1000,
    n_top: int = 8,
    clusters: Any = None,
    seed: int = 0,
) -> xr.Dataset:
    """When each feature is active, and what it adds to the score of each action.

    Args:
        policy: The policy.
        dictionary: A dictionary of one of its sites.
        states: A recording of it, or observations.
        features: Which; None for all.
        n_states: States in which effects are computed, drawn at random.
        n_top: States to list in which a feature is strongest.
        clusters: A label for each state, say its episode, where observations are given.
        seed: Of the draw and the bootstrap.

    Returns:
        Dimensions `feature`, `action` and `rank`. `density[feature]`, the share of vectors in which it is active, and
        `strength[feature]`, its mean code there; `effect[feature, action]` in the unit of the scores, centred over the
        actions that are open where they are discrete, averaged over all states drawn, with `_low`, `_high` (95 %, over
        episodes); `effect_active[feature, action]`, over the states in which it is active, `n_active[feature]` of
        them; `flips[feature]`, the share of these whose action is another without it; `top_state[feature, rank]` (row
        of the states, -1 where there are fewer) and `top_code[feature, rank]`.

    Raises:
        ConfigError: A transcoder, several choices, or a number below 1.
        SiteError: No such feature, or the dictionary is of another policy.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> obs = torch.randn(100, 4)
        >>> found = rlm.features.fit_dictionary(policy, obs, site="hook_obs", n_features=8, k=2, n_steps=20)
        >>> rlm.features.feature_effects(policy, found, obs)["effect"].dims
        ('feature', 'action')
    """
    chosen = list(range(len(dictionary))) if features is None else [_number(dictionary, one) for one in features]
    _check(policy, dictionary, chosen, n_states, n_top)
    known = states_of(policy, states, clusters)
    codes = dictionary.codes(policy, known.obs).reshape(len(known), dictionary.layout.n_positions, -1)[..., chosen]
    drawn = np.random.default_rng(seed).permutation(len(known))[:n_states]
    own = codes[torch.as_tensor(drawn)]
    change, flipped = _without(policy, dictionary, rows_of(known.obs, drawn), own, chosen)
    there = (own != 0).any(1).T.numpy()  # feature state
    n_active = there.sum(1)
    effect = np.moveaxis(change, 2, 1).reshape(-1, len(drawn))
    interval = bootstrap_mean(effect, clusters=known.episode[drawn], seed=seed)
    shape = (len(chosen), change.shape[2])
    unit = {"q_values": "return", "logits": "nat"}.get(policy.output_kind, "action")
    data: Variables = {}
    for end, part in (("", interval.estimate), ("_low", interval.low), ("_high", interval.high)):
        data["effect" + end] = (("feature", "action"), part.reshape(shape), {"units": unit})
    with np.errstate(invalid="ignore", divide="ignore"):
        when = change.sum(1) / n_active[:, None]
        share = flipped.sum(1) / n_active
    strongest = codes.abs().amax(1).T  # feature state
    value, place = strongest.topk(min(n_top, len(known)), dim=1)
    used = codes.flatten(0, 1) != 0
    count = used.sum(0).clamp(min=1)
    data |= {
        "effect_active": (("feature", "action"), when, {"units": unit}),
        "flips": ("feature", share, {"units": "fraction"}),
        "n_active": ("feature", n_active),
        "density": ("feature", used.double().mean(0).numpy(), {"units": "fraction"}),
        "strength": ("feature", (codes.flatten(0, 1).abs().sum(0) / count).double().numpy()),
        "top_state": (("feature", "rank"), torch.where(value > 0, place, -1).numpy()),
        "top_code": (("feature", "rank"), value.double().numpy()),
    }
    names = policy.spec.actions
    coords: Variables = {"feature": chosen, "rank": np.arange(value.shape[1])}
    coords["action"] = list(names) if len(names) == shape[1] else np.arange(shape[1])
    coords |= {name: values[0] for name, (_, values) in site_coordinates(policy, [dictionary.site]).items()}
    attrs = provenance(policy) | {"dictionary": dictionary.digest, "n_states": len(drawn), "seed": seed}
    attrs |= {"sign": "with the feature less without it", "centred": policy.output_kind != "mean_action"}
    return storable(xr.Dataset(data, coords=coords), attrs | interval.attrs)


@explain_misuse
def drive_features(
    policy: HookedPolicy,
    env: gym.Env,
    dictionary: Dictionary,
    *,
    features: Sequence[int],
    seeds: Iterable[int],
    factor: float = 0.0,
    n_controls: int = 2,
    seed: int = 0,
    **options: Any,
) -> xr.Dataset:
    """Drive without a feature, or with more of it, beside the same change at the same moments in random directions.

    Args:
        policy: The policy.
        env: An environment that fits it.
        dictionary: A dictionary of one of its sites.
        features: Which, one condition each.
        seeds: Seeds of the episodes; not those that the dictionary was fitted on.
        factor: What the features are multiplied by; 0 takes them out.
        n_controls: Random directions for each feature, as long as its own.
        seed: Of the directions and the bootstrap.
        **options: Those of `compare_rollouts`: workers, path, when, outcomes…

    Returns:
        As `compare_rollouts`, with the conditions `feature 7` and `feature 7, random 1`; `control_of` names the
        condition that a control belongs to.

    Raises:
        ConfigError: No features, or a transcoder.
        SiteError: No such feature.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> env = rlm.make_env("CartPole-v1")
        >>> found = rlm.features.fit_dictionary(
        ...     policy, torch.randn(100, 4), site="hook_obs", n_features=8, k=2, n_steps=20
        ... )
        >>> driven = rlm.features.drive_features(
        ...     policy, env, found, features=[0], seeds=range(3), n_controls=1, progress=False
        ... )
        >>> driven["condition"].values.tolist()
        ['baseline', 'feature 0', 'feature 0, random 1']
    """
    if not features or n_controls < 0:
        raise ConfigError(
            "Features drive one by one.",
            given=f"features={list(features)}, n_controls={n_controls}",
            expected="at least one feature, n_controls of 0 or more",
            fix="features=[0, 1]",
        )
    generator = torch.Generator().manual_seed(seed)
    conditions: JsonObject = {}
    control_of: dict[str, str] = {}
    for feature in features:
        name = f"feature {feature}"
        conditions[name] = [dictionary.scale({feature: factor})]
        for number in range(1, n_controls + 1):
            own = dictionary.decoder[feature]
            drawn = torch.randn(len(own), generator=generator)
            elsewhere = dictionary.decoder.clone()
            elsewhere[feature] = drawn / drawn.norm() * own.norm()
            conditions[f"{name}, random {number}"] = [replace(dictionary, decoder=elsewhere).scale({feature: factor})]
            control_of[f"{name}, random {number}"] = name
    result = compare_rollouts(policy, env, conditions=conditions, seeds=seeds, seed=seed, **options)
    owner = [control_of.get(str(name), "") for name in result["condition"].values]
    told = {"site": str(dictionary.site), "dictionary": dictionary.digest, "factor": factor}
    return storable(result.assign_coords(control_of=("condition", owner)), told)


def _without(
    policy: HookedPolicy, dictionary: Dictionary, obs: Observation, codes: Tensor, features: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each feature and state, what the feature adds to each score, and whether the action is another without it."""
    base = scores_of(policy, obs)
    state, own = torch.nonzero((codes != 0).any(1), as_tuple=True)
    change = np.zeros((len(features), len(base), base.shape[1]))
    flipped = np.zeros((len(features), len(base)))
    layout, index = dictionary.layout, dictionary.site.index(policy.point(dictionary.site.name))
    directions = dictionary.decoder[list(features)]
    discrete = policy.output_kind != "mean_action"
    for start in range(0, len(state), AT_ONCE):
        rows, which = state[start : start + AT_ONCE], own[start : start + AT_ONCE]
        taken = (codes[rows, :, which][..., None] * directions[which][:, None]).flatten(0, 1)

        def remove(tensor: Tensor, hook: HookPoint, taken: Tensor = taken) -> Tensor:
            value = read(tensor, index)
            return write(tensor, index, layout.value(layout.vectors(value) - taken.to(value), like=value))

        with torch.no_grad():
            new = policy.run_with_hooks(rows_of(obs, rows.numpy()), fwd_hooks=[(dictionary.site.name, remove)])
        less = (base[rows] - new).double()
        if discrete:
            shown = open_actions(base[rows]) & open_actions(new)
            less = less.masked_fill(~shown, 0)
            less = (less - less.sum(1, keepdim=True) / shown.sum(1, keepdim=True)).masked_fill(~shown, 0)
            flipped[which, rows] = (base[rows].argmax(-1) != new.argmax(-1)).double().numpy()
        else:
            flipped[which, rows] = np.nan
        change[which, rows] = less.numpy()
    return change, flipped


def _number(dictionary: Dictionary, feature: int) -> int:
    if not 0 <= feature < len(dictionary):
        raise SiteError(
            f"The dictionary has no feature {feature}.",
            given=feature,
            expected=f"0 to {len(dictionary) - 1}",
            fix="leave features= out for all of them",
        )
    return int(feature)


def _check(policy: HookedPolicy, dictionary: Dictionary, features: Sequence[int], n_states: int, n_top: int) -> None:
    if dictionary.into is not None or policy.choices is not None or min(n_states, n_top, len(features)) < 1:
        raise ConfigError(
            "Features are taken out of the value that they are read from, and change the scores of one choice.",
            given=f"{'a transcoder' if dictionary.into is not None else 'a dictionary'}, {len(features)} features, "
            f"n_states={n_states}, n_top={n_top}" + ("" if policy.choices is None else ", a policy of several choices"),
            expected="a dictionary of one site, one choice, and numbers from 1",
            fix="fit_dictionary(policy, states, site=...) without into=",
        )
    refuse_train_mode(policy)
