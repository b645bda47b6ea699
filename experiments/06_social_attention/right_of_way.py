"""The fifth claim: the right of way changes what the policy does.

Episodes in pairs: the same seed, the same first observation, and from then on either the simulator's rule or the two
roads exchanged. The policy cannot see the rule; it can only meet others who now yield to it. Untrained networks do not
respond to what they see, so that their differences are the traffic's own. All effects are under `vertical`, where the
ego has the right of way, less under `horizontal`, where it has not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from attention import Reading
from intervals import Estimate, Verdict, means, verdict
from states import States
from traffic import Seen

ENOUGH = 0.05  # of decisions: the smallest change that would bear the claim out
OUTCOMES = ("return", "crashed", "arrived", "speed", "length")
BIN, SPEEDS = 5.0, (2.25, 6.75)  # m along the way, m/s: states that are alike to the ego itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """What changes with the right of way.

    Attributes:
        n_pairs: Pairs of episodes.
        outcomes: Differences per episode, by name.
        slower: Difference of the share of SLOWER among decisions, episodes weighted alike.
        matched: The same, in states in which the ego is at the same place and speed.
        agreement: Share of decisions that are the same under both rules, while both episodes last.
        to_ego: Difference of mean attention to the ego.
        over: How much more SLOWER falls than with an untrained network.
        verdict: What it says.
    """

    n_pairs: int
    outcomes: dict[str, Estimate]
    slower: Estimate
    matched: Estimate
    agreement: Estimate
    to_ego: Estimate
    over: dict[str, Estimate]
    verdict: Verdict


def compare(rules: dict[str, tuple[Seen, Reading]], *, untrained: dict[str, tuple[Seen, Reading]] | None) -> Turned:
    """Compare a policy's episodes under both rules, by the seeds that both have."""
    (ours, read), (theirs, other) = rules["vertical"], rules["horizontal"]
    seeds = np.intersect1d(ours.states.episode, theirs.states.episode)
    outcomes = {
        name: mean(_by_seed(ours.states, seeds)[name] - _by_seed(theirs.states, seeds)[name], seeds)
        for name in OUTCOMES
    }
    less = _slower(ours.states, seeds) - _slower(theirs.states, seeds)
    slower = mean(less, seeds)
    over: dict[str, Estimate] = {}
    if untrained is not None:
        same = np.intersect1d(seeds, np.intersect1d(*(untrained[rule][0].states.episode for rule in rules)))
        control = np.subtract(*(_slower(untrained[rule][0].states, same) for rule in ("vertical", "horizontal")))
        over["untrained"] = mean(control - less[np.isin(seeds, same)], same)
    falls = Estimate(value=-slower.value, low=-slower.high, high=-slower.low)
    return Turned(
        n_pairs=len(seeds),
        outcomes=outcomes,
        slower=slower,
        matched=_matched(ours, theirs, seeds),
        agreement=_agreement(ours.states, theirs.states, seeds),
        to_ego=mean(_to_ego(ours.states, read, seeds) - _to_ego(theirs.states, other, seeds), seeds),
        over=over,
        verdict=verdict(falls, enough=ENOUGH, over=over),
    )


def mean(values: np.ndarray | pd.Series, seeds: np.ndarray) -> Estimate:
    """Mean over episodes."""
    value, draws = means(np.asarray(values, dtype=float), seeds)
    return Estimate.of(float(value), draws)


def _by_seed(states: States, seeds: np.ndarray) -> pd.DataFrame:
    return states.episodes.set_index("seed").loc[seeds].astype(float)


def _per_episode(states: States, values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    return pd.Series(values).groupby(states.episode).mean().loc[seeds].to_numpy()


def _slower(states: States, seeds: np.ndarray) -> np.ndarray:
    return _per_episode(states, states.actions == states.spec.index("action", "SLOWER"), seeds)


def _to_ego(states: States, read: Reading, seeds: np.ndarray) -> np.ndarray:
    return _per_episode(states, read.pattern[:, :, 0].mean(1), seeds)


def _agreement(ours: States, theirs: States, seeds: np.ndarray) -> Estimate:
    one, other = (pd.Series(s.actions, index=[s.episode, s.steps["step"]]) for s in (ours, theirs))
    both = pd.concat([one, other], axis=1, join="inner")
    same = (both[0] == both[1]).groupby(level=0).mean().loc[seeds]
    return mean(same, seeds)


def _matched(ours: Seen, theirs: Seen, seeds: np.ndarray) -> Estimate:
    """Difference of the share of SLOWER in cells of the ego's place and speed, weighted by their states under both."""
    states = pd.concat([_cells(seen, seeds).assign(rule=rule) for rule, seen in enumerate((theirs, ours))])
    counts = states.groupby(["cell", "rule"]).size().unstack(fill_value=0)
    shared = counts[(counts > 0).all(axis=1)].min(axis=1)
    states = states[states["cell"].isin(shared.index)]
    weight = states["cell"].map(shared).to_numpy() / np.array(
        [counts.loc[cell, rule] for cell, rule in zip(states["cell"], states["rule"], strict=True)]
    )
    sums = np.zeros((len(seeds), 4))
    member = np.searchsorted(seeds, states["seed"])
    rule = states["rule"].to_numpy()
    np.add.at(sums, (member, 2 * rule), weight * states["slower"].to_numpy())
    np.add.at(sums, (member, 2 * rule + 1), weight)
    value, draws = means(sums, seeds)
    return Estimate.of(float(_shares(value[None])[0]), _shares(draws))


def _shares(sums: np.ndarray) -> np.ndarray:
    return sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]


def _cells(seen: Seen, seeds: np.ndarray) -> pd.DataFrame:
    place = np.floor(seen.ego_to_entry / BIN).astype(int)
    speed = np.digitize(seen.speed[:, 0], SPEEDS)
    states = seen.states
    slower = states.actions == states.spec.index("action", "SLOWER")
    table = pd.DataFrame({"seed": states.episode, "cell": place * 10 + speed, "slower": slower})
    return table[table["seed"].isin(seeds)]
