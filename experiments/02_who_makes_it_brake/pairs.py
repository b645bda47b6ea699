"""Clean observations in which the policy chooses SLOWER, each with a counterpart in which it chooses FASTER.

    removed    the row of one vehicle is zero, as an absent vehicle's row is
    replaced   one vehicle's row is that of another recorded vehicle, the most similar one with which it chooses FASTER
    matched    another state, of another episode, in which the ego has nearly the same position and velocity
    unrelated  any state of another episode

Removed and replaced edit the observation, not the simulator. Of several vehicles that will do in a state, the one whose
removal moves the gap most is taken, and it is put into row 1 on both sides: the network treats rows alike, so that
`vehicle_1` is *the* vehicle in every pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import rlmech as rlm

BRAKE, GO = "SLOWER", "FASTER"
AT_ONCE = 256
# One unit of distance between two rows: 10 m, 10 m, 3 m/s, 3 m/s, 0.3 and 0.3 of cosine and sine of the heading.
SCALE = {"presence": 1.0, "x": 10.0, "y": 10.0, "vx": 3.0, "vy": 3.0, "cos_h": 0.3, "sin_h": 0.3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Clean and corrupt observations, `[pair, entity, feature]`, and where they come from.

    Attributes:
        clean: The policy chooses SLOWER.
        corrupt: It chooses FASTER.
        state: The clean observation's step in the recording.
        row: The vehicle's row in the recorded observation; 0 where all rows differ.
        episode: The clean observation's episode.
    """

    clean: np.ndarray
    corrupt: np.ndarray
    state: np.ndarray
    row: np.ndarray
    episode: np.ndarray

    def __len__(self) -> int:
        return len(self.clean)

    def of(self, chosen: np.ndarray) -> Pairs:
        """Some of the pairs."""
        parts = {name: getattr(self, name)[chosen] for name in ("clean", "corrupt", "state", "row", "episode")}
        return Pairs(**parts)


def scores_of(policy: rlm.HookedPolicy, observations: np.ndarray) -> np.ndarray:
    """Scores `[batch, action]`."""
    return policy(observations).detach().cpu().numpy()


def removed(policy: rlm.HookedPolicy, recording: rlm.Recording) -> tuple[Pairs, np.ndarray]:
    """Take away the vehicle without which the policy chooses FASTER.

    Returns:
        The pairs, and all candidates as rows (state, row of the vehicle, action chosen without it).
    """
    seen, (brake, go) = recording.observations, _actions(policy)
    there = seen[:, 1:, policy.spec.presence_index] >= 0.5
    states = np.flatnonzero(scores_of(policy, seen).argmax(1) == brake)
    state, row = (states[:, None] + 0 * there[states])[there[states]], np.nonzero(there[states])[1] + 1
    without = seen[state].copy()
    without[np.arange(len(state)), row] = 0
    scores = scores_of(policy, without)
    chosen = scores.argmax(1)
    gain = np.where(chosen == go, scores[:, go] - scores[:, brake], -np.inf)
    best = [np.flatnonzero(state == s)[gain[state == s].argmax()] for s in np.unique(state[chosen == go])]
    if not best:
        raise SystemExit("No recorded state turns from SLOWER to FASTER without one of its vehicles: record more.")
    return _aligned(recording, without[best], state[best], row[best]), np.stack([state, row, chosen], axis=1)


def replaced(policy: rlm.HookedPolicy, recording: rlm.Recording, pairs: Pairs) -> Pairs:
    """Put the most similar recorded vehicle with which the policy chooses FASTER in the vehicle's place."""
    seen, (_, go) = recording.observations, _actions(policy)
    others = seen[:, 1:][seen[:, 1:, policy.spec.presence_index] >= 0.5]
    corrupt, found = pairs.clean.copy(), np.zeros(len(pairs), dtype=bool)
    for number, clean in enumerate(pairs.clean):
        order = np.linalg.norm((others - clean[1]) / _scale(policy), axis=1).argsort(kind="stable")
        for start in range(0, len(order), AT_ONCE):
            nearest = others[order[start : start + AT_ONCE]]
            tried = np.repeat(clean[None], len(nearest), axis=0)
            tried[:, 1] = nearest
            will_do = np.flatnonzero(scores_of(policy, tried).argmax(1) == go)
            if len(will_do):
                found[number], corrupt[number, 1] = True, nearest[will_do[0]]
                break
    return Pairs(
        clean=pairs.clean, corrupt=corrupt, state=pairs.state, row=pairs.row, episode=pairs.episode
    ).of(found)  # fmt: skip


def matched(policy: rlm.HookedPolicy, recording: rlm.Recording, *, nearer_than: float = 1.0) -> Pairs:
    """Pair real states of different episodes whose ego rows are within 10 m, 3 m/s and 0.3 together."""
    brakes, goes, same = _real_states(policy, recording)
    ego = recording.observations[:, 0]
    distance = np.linalg.norm((ego[brakes, None] - ego[None, goes]) / _scale(policy), axis=-1)
    distance[same] = np.inf
    near = distance.min(1) < nearer_than
    return _real_pairs(recording, brakes[near], goes[distance.argmin(1)[near]])


def unrelated(policy: rlm.HookedPolicy, recording: rlm.Recording) -> Pairs:
    """Pair each state with a random one of another episode."""
    brakes, goes, same = _real_states(policy, recording)
    drawn = np.where(same, -1.0, np.random.default_rng(0).random(same.shape)).argmax(1)
    return _real_pairs(recording, brakes, goes[drawn])


def _real_states(policy: rlm.HookedPolicy, recording: rlm.Recording) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States in which it brakes, states in which it goes, and which of them are of one episode."""
    episode, (brake, go) = recording.steps["episode"].to_numpy(), _actions(policy)
    chosen = scores_of(policy, recording.observations).argmax(1)
    brakes, goes = np.flatnonzero(chosen == brake), np.flatnonzero(chosen == go)
    return brakes, goes, episode[brakes][:, None] == episode[goes][None]


def _real_pairs(recording: rlm.Recording, state: np.ndarray, other: np.ndarray) -> Pairs:
    seen, episode = recording.observations, recording.steps["episode"].to_numpy()
    row = np.zeros(len(state), dtype=int)
    return Pairs(clean=seen[state], corrupt=seen[other], state=state, row=row, episode=episode[state])


def closed_up(policy: rlm.HookedPolicy, observations: np.ndarray) -> np.ndarray:
    """Observations with their vehicles in one order, the nearest first, so that their rows can be compared.

    The simulator's own order is along the ego's lane, which an edited row has no place in.
    """
    presence, x, y = (policy.spec.index("feature", name) for name in ("presence", "x", "y"))
    away = np.hypot(*(observations[:, :, [x, y]] - observations[:, :1, [x, y]]).transpose(2, 0, 1))
    away[observations[:, :, presence] < 0.5] = np.inf
    away[:, 0] = -1  # the ego stays first
    return np.take_along_axis(observations, away.argsort(1, kind="stable")[:, :, None], axis=1)


def _aligned(recording: rlm.Recording, corrupt: np.ndarray, state: np.ndarray, row: np.ndarray) -> Pairs:
    """Put the vehicle into row 1 of both observations; the others keep their order."""
    clean = recording.observations[state]
    order = np.stack([[0, r, *(i for i in range(1, clean.shape[1]) if i != r)] for r in row])[:, :, None]
    return Pairs(
        clean=np.take_along_axis(clean, order, axis=1),
        corrupt=np.take_along_axis(corrupt, order, axis=1),
        state=state,
        row=row,
        episode=recording.steps["episode"].to_numpy()[state],
    )


def _actions(policy: rlm.HookedPolicy) -> tuple[int, int]:
    return policy.spec.actions.index(BRAKE), policy.spec.actions.index(GO)


def _scale(policy: rlm.HookedPolicy) -> np.ndarray:
    """One unit of distance in each feature's normalised form."""
    return np.array([SCALE[f.name] / (f.high if f.high is not None else 1.0) for f in policy.spec.features])
