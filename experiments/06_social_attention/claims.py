"""The first four claims, each an effect on counterfactual scenes with its controls.

`weights` below is attention `[draw, condition, head]`, averaged over scenes. The smallest effects that would bear a
claim out were set before any result was seen. Beyond that, a policy's effect must exceed that of untrained networks,
of networks with its own weights in another order, and of the claim's own control, where the claim says there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scenes as made
from intervals import Estimate, Verdict, means, verdict

Effect = Callable[[np.ndarray], np.ndarray]
Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of the paper and how it is measured.

    Attributes:
        name: Short name.
        says: The claim.
        scenes: Name of its counterfactual scenes.
        unit: What the effect is.
        effect: From mean weights to the effect; larger the better for the claim.
        none: The effect if there is nothing to the claim.
        enough: The smallest effect that would bear the claim out.
        points: The effect as a difference of attention weights, for single heads; None where it needs all of them.
        control: The effect where the claim says that there is none, in the same scenes; None where it names no place.
        beside: The same effect in other scenes, which tells what kind it is but not whether the claim holds.
        fold: What is taken of each scene, from `[scene, condition, head]`; the conditions themselves by default.
    """

    name: str
    says: str
    scenes: str
    unit: str
    effect: Effect
    none: float
    enough: float
    points: Effect | None = None
    control: Effect | None = None
    beside: str | None = None
    fold: Effect = np.asarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of a claim in a policy.

    Attributes:
        effect: The effect.
        untrained: The untrained networks' effects.
        shuffled: Effects of networks with the policy's weights in another order.
        control: The effect where there should be none, or None.
        beside: The effect in other scenes, or None.
        over: How much more the effect is than each control.
        points: The effect as a difference of attention weights, all heads together and then each; or nothing.
        by_kind: The effect in scenes of one kind, e.g. of one arm.
        verdict: What it says.
    """

    effect: Estimate
    untrained: tuple[float, ...]
    shuffled: tuple[float, ...]
    control: Estimate | None
    beside: Estimate | None
    over: dict[str, Estimate]
    points: tuple[Estimate, ...]
    by_kind: dict[str, Estimate]
    verdict: Verdict


def profiles(weights: np.ndarray) -> np.ndarray:
    """Each head's attention to a vehicle by where it comes from, as shares `[draw, arm, head]`."""
    return weights / weights.sum(1, keepdims=True)


def specialisation(weights: np.ndarray) -> np.ndarray:
    """Total variation distance between heads' profiles, the mean over pairs of heads. 0: alike, 1: disjoint."""
    shares = profiles(weights)
    pairs = combinations(range(shares.shape[2]), 2)
    return np.mean([np.abs(shares[..., a] - shares[..., b]).sum(1) / 2 for a, b in pairs], axis=0)


def near_and_far(table: np.ndarray) -> np.ndarray:
    """Of each scene, attention at 0 to 10 m from the intersection and at 30 to 50 m, where there was room."""
    near, far = ([made.ALONG.index(s) for s in places] for places in (made.NEAR, made.FAR))
    return np.stack([np.nanmean(table[:, near], axis=1), np.nanmean(table[:, far], axis=1)], axis=1)


def nearer(weights: np.ndarray) -> np.ndarray:
    """Attention near the intersection, as a multiple of that far from it."""
    mean = weights.mean(2)
    return mean[:, 0] / mean[:, 1]


def nearer_points(weights: np.ndarray) -> np.ndarray:
    """The same as a difference."""
    mean = weights.mean(2)
    return mean[:, 0] - mean[:, 1]


def revealed(weights: np.ndarray) -> np.ndarray:
    """Attention while undecided, as a multiple of that when the heading shows a turn out of the ego's way."""
    mean = weights.mean(2)
    return mean[:, 0] / mean[:, 1]


def revealed_points(weights: np.ndarray) -> np.ndarray:
    """The same as a difference."""
    mean = weights.mean(2)
    return mean[:, 0] - mean[:, 1]


def revealed_in_the_way(weights: np.ndarray) -> np.ndarray:
    """The multiple for the turn into the ego's way."""
    mean = weights.mean(2)
    return mean[:, 2] / mean[:, 3]


def to_ego(weights: np.ndarray) -> np.ndarray:
    """Attention to the ego with the way clear, less that as it was."""
    mean = weights.mean(2)
    return mean[:, 1] - mean[:, 0]


def to_ego_others_away(weights: np.ndarray) -> np.ndarray:
    """The same with as many others moved away, in the states where there are as many."""
    mean = weights.mean(2)
    return mean[:, 3] - mean[:, 2]


CLAIMS = (
    Claim(
        name="direction", says="heads specialise by direction", scenes="arms", effect=specialisation,
        unit="distance between heads' profiles", none=0.0, enough=0.1,
    ),
    Claim(
        name="approach", says="attention rises as a vehicle approaches", scenes="approach", effect=nearer,
        unit="attention near / far", none=1.0, enough=1.25, points=nearer_points, beside="leaving",
        fold=near_and_far,
    ),
    Claim(
        name="intent", says="attention falls when heading reveals intent", scenes="intent",
        effect=revealed, unit="attention undecided / revealed", none=1.0, enough=1.25, points=revealed_points,
        control=revealed_in_the_way,
    ),
    Claim(
        name="clear", says="attention moves to the ego when the way is clear", scenes="clear", effect=to_ego,
        unit="attention to the ego, more by", none=0.0, enough=0.05, points=to_ego, control=to_ego_others_away,
    ),
)  # fmt: skip


def find(
    claim: Claim,
    scenes: Mapping[str, made.Scenes],
    of: Weights,
    *,
    few: Mapping[str, made.Scenes],
    untrained: list[Weights],
    shuffled: list[Weights],
) -> Finding:
    """Measure a claim.

    Args:
        claim: Which.
        scenes: The scenes by name.
        of: The policy's weights on them, `[scene, condition, head]`.
        few: Those of the scenes that the other networks were asked about.
        untrained: Weights of untrained networks on the few.
        shuffled: Weights of networks with the policy's weights in another order on the few.
    """
    scene, weights = scenes[claim.scenes], claim.fold(of[claim.scenes])
    effect, draws = _measured(claim.effect, weights, scene.episode)
    found = Estimate.of(effect, draws)
    others = {"untrained": untrained, "shuffled": shuffled}
    chance = {
        name: tuple(
            _measured(claim.effect, claim.fold(w[claim.scenes]), few[claim.scenes].episode)[0] for w in networks
        )
        for name, networks in others.items()
    }
    over = {name: _beyond(found, values) for name, values in chance.items()}
    control = None
    if claim.control is not None:
        value, other = _measured(claim.control, weights, scene.episode)
        control, over["control"] = Estimate.of(value, other), Estimate.of(effect - value, draws - other)
    beside = None
    if claim.beside is not None:
        beside = Estimate.of(*_measured(claim.effect, claim.fold(of[claim.beside]), scenes[claim.beside].episode))
    parts = [weights, *(weights[:, :, [head]] for head in range(weights.shape[2]))] if claim.points else []
    return Finding(
        effect=found,
        **chance,
        control=control,
        beside=beside,
        over=over,
        points=tuple(Estimate.of(*_measured(claim.points or claim.effect, part, scene.episode)) for part in parts),
        by_kind={
            str(kind): Estimate.of(*_measured(claim.effect, weights[mine], scene.episode[mine]))
            for kind in np.unique(scene.kind)
            if (mine := scene.kind == kind).sum() >= FEWEST
        },
        verdict=verdict(found, enough=claim.enough, over=over),
    )


FEWEST = 50  # scenes of a kind


def _beyond(found: Estimate, others: tuple[float, ...]) -> Estimate:
    """How far an effect is from the median of other networks', and its interval from the largest and the smallest."""
    value, low, high = found.value - float(np.median(others)), found.low - max(others), found.high - min(others)
    return Estimate(value=value, low=low, high=high)


def _measured(effect: Effect, weights: np.ndarray, episode: np.ndarray) -> tuple[float, np.ndarray]:
    value, draws = means(weights, episode)
    return float(effect(value[None])[0]), effect(draws)
