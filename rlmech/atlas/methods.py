"""Table G: how far simple methods go: first-order patching, a linear map, borders, noise, mirrors, single features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from rlmech.atlas.agents import Agent, random_episodes
from rlmech.atlas.measures import share_of_way
from rlmech.atlas.sizes import Sizes
from rlmech.atlas.states import Inside, States
from rlmech.atlas.units import relative_change
from rlmech.attribution import attribution_patching, region_margins
from rlmech.core.many_rows import scores_of
from rlmech.core.policy import HookedPolicy
from rlmech.episodes import compare_rollouts
from rlmech.errors import MissingPackageError
from rlmech.metrics import action_flip, action_gap, action_score
from rlmech.nets.untrained import untrained
from rlmech.patching import ablation_sweep
from rlmech.untyped import JsonObject

NOISE = 0.01
IGNORED = 0.01
"""A feature is ignored where setting it to its mean flips fewer actions than this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Left and right exchanged.

    Attributes:
        signs: What each feature is multiplied with.
        order: Places of the features in the mirrored observation.
        actions: The mirrored actions of discrete ones, or the signs of continuous ones.
    """

    signs: tuple[float, ...]
    order: tuple[int, ...]
    actions: tuple[float, ...]

    def of(self, raw: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row feature"]:
        """Mirrored observations."""
        return (raw[:, list(self.order)] * np.array(self.signs)).astype(raw.dtype)


_LANDER: dict[str, Any] = {"signs": (-1, 1, -1, 1, -1, -1, 1, 1), "order": (0, 1, 2, 3, 4, 5, 7, 6)}
MIRRORS: dict[str, Mirror] = {
    "CartPole": Mirror(signs=(-1,) * 4, order=(0, 1, 2, 3), actions=(1, 0)),
    "Acrobot": Mirror(signs=(1, -1, 1, -1, -1, -1), order=(0, 1, 2, 3, 4, 5), actions=(2, 1, 0)),
    "LunarLander": Mirror(**_LANDER, actions=(0, 3, 2, 1)),
    "LunarLanderContinuous": Mirror(**_LANDER, actions=(1, -1)),
    "Pendulum": Mirror(signs=(1, -1, -1), order=(0, 1, 2), actions=(-1,)),
}
"""By task: cos, sin and speeds of Acrobot and Pendulum; place, speed, angle, legs and side engines of the lander."""


def method_row(agent: Agent, states: States, sizes: Sizes) -> JsonObject:
    """The row of an agent, each number beside that of networks with fresh weights where one can be had."""
    row = measured(agent, agent.policy, states, sizes)
    twins = [measured(agent, untrained(agent.policy, 1 + k), states, sizes) for k in range(sizes.n_untrained)]
    for name, value in list(row.items()):
        values = [twin[name] for twin in twins if isinstance(twin.get(name), int | float)]
        if values and not isinstance(value, str):
            row[f"{name}_untrained"] = float(np.mean(values))
    return row | _linear_drive(agent, states, sizes)


def measured(agent: Agent, policy: HookedPolicy, states: States, sizes: Sizes) -> JsonObject:
    """The numbers of a policy in an agent's states."""
    row = _first_order(policy, states, sizes) | _linear(policy, states) | _noise(policy, states, sizes)
    if "relu" in Inside.of(policy, states.raw[:2]).kinds:
        row |= _borders(policy, states)
    if agent.task in MIRRORS:
        row |= _mirrored(policy, states, MIRRORS[agent.task])
    return row | _features(policy, states)


def _first_order(policy: HookedPolicy, states: States, sizes: Sizes) -> JsonObject:
    """Correlation of first-order with exact patching over unit and pair, by layer, in both directions."""
    inside, rng = Inside.of(policy, states.raw[:2]), np.random.default_rng(0)
    if not inside.units:
        return {}
    first, second = (states.raw[rng.integers(len(states.raw), size=sizes.n_pairs)] for _ in range(2))
    row: JsonObject = {}
    for metric, gap in _gaps(policy, first):
        clean, corrupt = first[gap], second[gap]
        for direction in ("denoise", "noise"):
            found = attribution_patching(
                policy, clean=clean, corrupt=corrupt, sites=inside.units, metric=metric, direction=direction, exact=True
            )
            base = found["corrupt" if direction == "denoise" else "clean"].values
            exact = found["patched"].values - base
            for number, layer in enumerate(inside.layers, start=1):
                own = found["hook"].values == layer
                pair = found["estimate"].values[own].ravel(), exact[own].ravel()
                name = f"{direction}_{number}"
                for key, part in zip(("estimate", "exact"), pair, strict=True):
                    row.setdefault(f"{name}_{key}", []).append(part)
    for name in [key.removesuffix("_exact") for key in row if key.endswith("_exact")]:
        x, y = (np.concatenate(row.pop(f"{name}_{key}")) for key in ("estimate", "exact"))
        row[f"first_order_{name}"] = float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else None
    return row


def _gaps(policy: HookedPolicy, clean: np.ndarray) -> list[tuple[Any, np.ndarray]]:
    """The gap between the two best actions of each clean run, as metrics with the rows that they are for.

    Of continuous policies the first component of the action.
    """
    if policy.output_kind == "mean_action":
        return [(action_score(0), np.arange(len(clean)))]
    order = scores_of(policy, clean).argsort(-1, descending=True)[:, :2].numpy()
    pairs = np.unique(order, axis=0)
    return [(action_gap(int(a), int(b)), np.flatnonzero((order == (a, b)).all(1))) for a, b in pairs]


def greedy(policy: HookedPolicy, raw: np.ndarray) -> np.ndarray:
    """The best actions: numbers, or clipped values `[row component]`."""
    return np.asarray(policy.predict(raw)[0])


def _linear(policy: HookedPolicy, states: States) -> JsonObject:
    """A linear map of the observation, fitted on every second episode, held against the others."""
    train = np.isin(states.episode, np.unique(states.episode)[::2])
    done = greedy(policy, states.raw)
    if train.all() or not train.any():
        return {}
    weight, bias = linear_map(states.raw[train], done[train], n_actions=_n_actions(policy))
    told = states.raw[~train] @ weight + bias
    truth = done[~train]
    if policy.output_kind != "mean_action":
        most = np.bincount(done[train]).argmax()
        return {
            "linear_accuracy": float((told.argmax(1) == truth).mean()),
            "majority_accuracy": float((most == truth).mean()),
        }
    told, truth = clipped(policy, told), truth.reshape(len(truth), -1)
    spread = ((truth - truth.mean(0)) ** 2).sum()
    return {"linear_r2": float(1 - ((told - truth) ** 2).sum() / spread) if spread > 0 else None}


def clipped(policy: HookedPolicy, actions: np.ndarray) -> np.ndarray:
    """Actions within the bounds of their space."""
    space: Any = policy.action_space
    return np.clip(actions, space.low.ravel(), space.high.ravel())


def _n_actions(policy: HookedPolicy) -> int:
    return 0 if policy.output_kind == "mean_action" else policy.hook_dict[_output(policy)].size("action")


def _output(policy: HookedPolicy) -> str:
    return next(name for name, point in policy.hook_dict.items() if point.kind == "output")


def linear_map(raw: np.ndarray, done: np.ndarray, *, n_actions: int) -> tuple[np.ndarray, np.ndarray]:
    """The best linear map of observations: multinomial logistic of actions, least squares of continuous ones.

    Returns:
        Weights `[feature action]` and bias, for observations as they are.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    mean, spread = raw.mean(0, dtype=np.float64), raw.std(0, dtype=np.float64)
    spread = np.where(spread > 1e-9, spread, np.inf)
    x = (raw - mean) / spread
    if not n_actions:
        full = np.linalg.lstsq(np.c_[x, np.ones(len(x))], done.reshape(len(done), -1), rcond=None)[0]
        weight, bias = full[:-1], full[-1]
    else:
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise MissingPackageError(
                "Linear imitations need scikit-learn.",
                given="it is not installed",
                expected="scikit-learn 1.5 or later",
                fix="pip install 'rlmech[probes]'",
            ) from error
        weight, bias = np.zeros((x.shape[1], n_actions)), np.full(n_actions, -1e3)
        there = np.unique(done)
        if len(there) == 1:
            bias[there[0]] = 0.0
        else:
            model: Any = LogisticRegression(C=1e3, max_iter=5000).fit(x, done)
            if len(there) == 2:
                weight[:, there[1]], bias[there] = model.coef_[0], (0.0, model.intercept_[0])
            else:
                weight[:, there], bias[there] = model.coef_.T, model.intercept_
    weight = weight / spread[:, None]
    return weight, bias - mean @ weight


def _linear_drive(agent: Agent, states: States, sizes: Sizes) -> JsonObject:
    """What the linear imitation returns when it drives, as a share of the way from random to the agent."""
    policy = agent.policy
    train = np.isin(states.episode, np.unique(states.episode)[::2])
    weight, bias = linear_map(states.raw[train], greedy(policy, states.raw)[train], n_actions=_n_actions(policy))
    layer = nn.Linear(*weight.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight.T))
        layer.bias.copy_(torch.as_tensor(bias))
    student = HookedPolicy(
        layer,
        torch.as_tensor(states.raw[:2]).float(),
        output_kind="mean_action" if policy.output_kind == "mean_action" else "logits",
        action_space=policy.action_space,
    )
    found = compare_rollouts(policy, agent.env, conditions={"linear": student}, seeds=sizes.paired, progress=False)
    own, linear = (found["return"].sel(condition=name).values for name in ("baseline", "linear"))
    way = share_of_way(linear, agent=own, random=random_episodes(agent.env, sizes.paired)[0])
    return {
        "linear_return": float(linear.mean()),
        "linear_share": 1 - float(way.estimate[0]),
        "linear_share_low": 1 - float(way.high[0]),
        "linear_share_high": 1 - float(way.low[0]),
    }


def _borders(policy: HookedPolicy, states: States) -> JsonObject:
    """How far the next linear region is, in steps, and how many regions the states lie in."""
    moving = np.isfinite(states.step).all(1)
    found = region_margins(policy, states.raw)
    length = np.linalg.norm(states.step[moving], axis=1)
    raw = states.raw.astype(float)
    if "hook_obs_raw" in policy.hook_dict:  # margins are of what the policy is given
        scale = np.nanstd(raw, axis=0) / np.maximum(np.nanstd(states.seen, axis=0), 1e-12)
        length = np.linalg.norm(states.step[moving] * scale, axis=1)
    ratio = found["margin"].values[moving] / np.maximum(length, 1e-30)
    return {
        "border": float(np.median(ratio)),
        "border_moving": float(np.median(ratio[~states.idle[moving]])) if (~states.idle[moving]).any() else None,
        "n_regions": len(np.unique(found["region"].values)),
    }


def _noise(policy: HookedPolicy, states: States, sizes: Sizes) -> JsonObject:
    """Actions changed by noise of 1 % of each feature's spread."""
    rng, own = np.random.default_rng(0), greedy(policy, states.raw)
    spread = states.raw.std(0, dtype=np.float64)
    changes: list[np.ndarray] = []
    for _ in range(sizes.n_noise):
        noisy = (states.raw + NOISE * spread * rng.standard_normal(states.raw.shape)).astype(states.raw.dtype)
        done = greedy(policy, noisy)
        changes.append(
            done != own if policy.output_kind != "mean_action" else ((done - own) ** 2).reshape(len(own), -1).sum(1)
        )
    change = np.mean(changes, axis=0)
    if policy.output_kind == "mean_action":
        spread = float(((own - own.mean(0)) ** 2).reshape(len(own), -1).sum(1).mean())
        return {"noise_change": float(np.sqrt(change.mean() / spread)) if spread > 0 else None}
    moving = change[~states.idle]
    return {"noise_flips": float(change.mean()), "noise_flips_moving": float(moving.mean()) if len(moving) else None}


def _mirrored(policy: HookedPolicy, states: States, mirror: Mirror) -> JsonObject:
    """Whether the mirrored state gets the mirrored action."""
    own, other = greedy(policy, states.raw), greedy(policy, mirror.of(states.raw))
    if policy.output_kind != "mean_action":
        wanted = np.array(mirror.actions, dtype=int)[own]
        moving = (other == wanted)[~states.idle]
        share = np.bincount(wanted, minlength=len(mirror.actions)) / len(own)
        chance = float(share @ (np.bincount(other, minlength=len(mirror.actions)) / len(own)))
        return {
            "mirror": float((other == wanted).mean()),
            "mirror_moving": float(moving.mean()) if len(moving) else None,
            "mirror_chance": chance,
        }
    wanted = own.reshape(len(own), -1) * np.array(mirror.actions)
    other = other.reshape(len(own), -1)
    parts = [
        float(np.corrcoef(other[:, i], wanted[:, i])[0, 1])
        if other[:, i].std() > 0 and wanted[:, i].std() > 0
        else None
        for i in range(other.shape[1])
    ]
    known = [part for part in parts if part is not None]
    return {"mirror_correlation": float(np.mean(known)) if known else None}


def _features(policy: HookedPolicy, states: States) -> JsonObject:
    """Which features can be set to their mean without changing what is done."""
    sites = policy.sites("hook_obs", over="feature")
    discrete = policy.output_kind != "mean_action"
    metric = action_flip() if discrete else relative_change(policy)
    change = ablation_sweep(policy, states.raw, sites=sites, metric=metric)["patched"].values.mean(1)
    if not discrete:
        change = np.sqrt(change)
    ignored = np.flatnonzero(change < IGNORED)
    return {
        "n_ignored": len(ignored),
        "ignored": " ".join(map(str, ignored)),
        "feature_changes": " ".join(f"{one:.4f}" for one in change),
    }
