"""Counterfactual scenes: recorded states in which vehicles are moved, along lanes, and all else is as it was.

Position, heading and velocity move together and nothing is clipped; no two vehicles come nearer than 7 m. Rows keep
their order, to which the network is blind. Only the observation is changed: nobody in it reacts to the move.

    arms      one vehicle on each of the three roads, at the same distance to its entry
    approach  one vehicle along the lane that it is on
    leaving   the same on a lane that leads away: as near, but no approach
    intent    one vehicle half-way through a turn, heading along the turn, or still straight on
    clear     everyone who could cross the ego's way, moved far back on their lanes; their number stays
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from road import ARMS, EGO_WAY
from traffic import Seen

NEAR_EGO = (-5.0, 40.0)  # m from the ego to its entry: from where it has to decide until it is in others' ways
TO_ENTRY = (5.0, 10.0, 15.0, 20.0)  # m, on each arm
ALONG = tuple(np.arange(0.0, 55.0, 5.0))  # m to the entry, on the way in; m from the exit, on the way out
NEAR, FAR = (0.0, 5.0, 10.0), (30.0, 35.0, 40.0, 45.0, 50.0)
ABOUT_TO_ENTER = 20.0  # m to the entry, of vehicles whose intent is asked for
AT_LEAST = 2.0  # m/s: a vehicle that stands shows no intent
COULD_CROSS = 30.0  # m to the entry
FAR_BACK = tuple(np.arange(50.0, 85.0, 7.5))  # m to the entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """Observations made from recorded states, and what each is of.

    Attributes:
        observations: `[row, entity, feature]`.
        read: Whose attention weight to read, `[row]`: an entity.
        scene: Number of the scene, `[row]`; its rows differ in the condition only.
        condition: Number of the condition, `[row]`.
        conditions: Their names.
        episode: Seed of each scene's episode, `[scene]`.
        kind: What else tells scenes apart, `[scene]`, e.g. the arm.
    """

    observations: np.ndarray
    read: np.ndarray
    scene: np.ndarray
    condition: np.ndarray
    conditions: tuple[str, ...]
    episode: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.episode)

    def some(self, most: int) -> Scenes:
        """At most so many of the scenes, evenly chosen."""
        keep = np.zeros(len(self), dtype=bool)
        keep[np.linspace(0, len(self) - 1, min(most, len(self))).astype(int)] = True
        rows = keep[self.scene]
        return Scenes(
            observations=self.observations[rows],
            read=self.read[rows],
            scene=(keep.cumsum() - 1)[self.scene[rows]],
            condition=self.condition[rows],
            conditions=self.conditions,
            episode=self.episode[keep],
            kind=self.kind[keep],
        )

    def table(self, values: np.ndarray) -> np.ndarray:
        """Values of rows `[row, ...]` as `[scene, condition, ...]`, the mean where there are several."""
        shape = (len(self), len(self.conditions), *values.shape[1:])
        sums, counts = np.zeros(shape), np.zeros(shape)
        np.add.at(sums, (self.scene, self.condition), values)
        np.add.at(counts, (self.scene, self.condition), 1)
        with np.errstate(invalid="ignore"):
            return sums / counts


class _Maker:
    """Gathers scenes."""

    def __init__(self, seen: Seen, conditions: Sequence[str]) -> None:
        self.seen, self.conditions = seen, tuple(conditions)
        self.rows: list[tuple[np.ndarray, int, int, int]] = []
        self.of: list[tuple[int, str]] = []

    def add(self, state: int, kind: str, made: list[tuple[int, dict[int, np.ndarray], int]]) -> None:
        """A scene: for each row its condition, the observation rows that are changed, and whom to read."""
        for condition, changed, read in made:
            observation = self.seen.states.observations[state].copy()
            for entity, row in changed.items():
                observation[entity] = row
            self.rows.append((observation, read, len(self.of), condition))
        self.of.append((int(self.seen.states.episode[state]), kind))

    def made(self) -> Scenes:
        if not self.of:
            raise SystemExit("No recorded state is fit for a counterfactual: record more episodes.")
        observations, read, scene, condition = zip(*self.rows, strict=True)
        return Scenes(
            observations=np.stack(observations),
            read=np.array(read),
            scene=np.array(scene),
            condition=np.array(condition),
            conditions=self.conditions,
            episode=np.array([episode for episode, _ in self.of]),
            kind=np.array([kind for _, kind in self.of]),
        )


def arms(seen: Seen) -> Scenes:
    """One vehicle, the one nearest to an entry, on the left, in front and on the right, equally far from its entry."""
    maker = _Maker(seen, tuple(ARMS))
    for state in _deciding(seen):
        ahead = np.stack(list(seen.to_entry.values()))[:, state]
        if np.isnan(ahead).all():
            continue
        entity = int(np.nanargmin(np.nanmin(np.where(np.isnan(ahead), np.inf, ahead), axis=0)))
        for s in TO_ENTRY:
            lanes = [seen.road.incoming(arm) for arm in ARMS.values()]
            poses = [lane.at(lane.length - s) for lane in lanes]
            if all(seen.free(state, pose[:2], without=[entity]) for pose in poses):
                speed = seen.speed[state, entity]
                made = [(i, {entity: seen.row(state, p[:2], p[2], speed)}, entity) for i, p in enumerate(poses)]
                maker.add(state, f"{s:.0f} m", made)
    return maker.made()


def approach(seen: Seen) -> Scenes:
    """Each vehicle on its way in, at different distances from the entry; only scenes with room both near and far."""
    return _slid(seen, incoming=True)


def leaving(seen: Seen) -> Scenes:
    """Each vehicle on its way out, at the same distances."""
    return _slid(seen, incoming=False)


def _slid(seen: Seen, *, incoming: bool) -> Scenes:
    maker = _Maker(seen, [f"{s:.0f}" for s in ALONG])
    for name, arm in ARMS.items():
        lane = seen.road.incoming(arm) if incoming else seen.road.outgoing(arm)
        at = lane.along(seen.place.reshape(-1, 2), seen.heading.ravel()).reshape(seen.there.shape)
        from_box = lane.length - at if incoming else at
        on_it = seen.there & (from_box <= max(ALONG))
        on_it[:, 0] = False
        for state in _deciding(seen):
            for entity in np.flatnonzero(on_it[state]):
                made = []
                for i, s in enumerate(ALONG):
                    x, y, heading = lane.at(lane.length - s if incoming else s)
                    if seen.free(state, (x, y), without=[int(entity)]):
                        row = seen.row(state, (x, y), heading, seen.speed[state, entity])
                        made.append((i, {int(entity): row}, int(entity)))
                free = {ALONG[i] for i, *_ in made}
                if free & set(NEAR) and free & set(FAR):
                    maker.add(state, name, made)
    return maker.made()


def intent(seen: Seen) -> Scenes:
    """Each moving vehicle about to enter, half-way through either turn of its arm: heading along it, or straight on.

    `undecided` and `revealed` differ in heading and direction of travel only, at one place and speed. One turn of each
    arm keeps out of the ego's way (`out of the way`), the other one crosses it or leads into it (`in the way`).
    """
    turns = {False: "out of the way", True: "in the way"}
    maker = _Maker(seen, [f"{way}, {what}" for way in turns.values() for what in ("undecided", "revealed")])
    for name, arm in ARMS.items():
        straight = seen.road.incoming(arm).at(seen.road.incoming(arm).length)[2]
        poses = {}
        for crossing in turns:
            turn = seen.road.way(f"ir{arm}", f"il{seen.road.turn(arm, crossing=crossing)}")
            poses[crossing] = turn.at(turn.length / 2)
        near = (seen.to_entry[name] <= ABOUT_TO_ENTER) & (seen.speed >= AT_LEAST)
        for state in _deciding(seen):
            for entity in map(int, np.flatnonzero(near[state])):
                if not all(seen.free(state, pose[:2], without=[entity]) for pose in poses.values()):
                    continue
                made = [
                    (2 * crossing + what, {entity: seen.row(state, (x, y), turned, seen.speed[state, entity])}, entity)
                    for crossing, (x, y, along) in poses.items()
                    for what, turned in enumerate((straight, along))
                ]
                maker.add(state, name, made)
    return maker.made()


def clear(seen: Seen) -> Scenes:
    """Everyone who could cross the ego's way far back; and, as a control, as many of the others, the nearest, far away.

    The others are on their way out or more than 30 m from their entry, and not on the ego's own way.
    """
    maker = _Maker(seen, ("as it was", "way clear", "as it was, with others", "others away"))
    entries = np.stack(list(seen.to_entry.values()))
    own = seen.road.way(*EGO_WAY)
    for state in _deciding(seen):
        ahead = np.nanmin(np.where(np.isnan(entries[:, state]), np.inf, entries[:, state]), axis=0)
        could_cross = (ahead <= COULD_CROSS) | seen.inside[state]
        threats = np.flatnonzero(could_cross)
        back = _placed(seen, state, threats, _far_back(seen))
        if back is None:
            continue
        made = [(0, {}, 0), (1, back, 0)]
        on_own = ~np.isnan(own.along(seen.place[state], seen.heading[state]))
        others = _nearest(seen, state, seen.there[state] & ~could_cross & ~on_own)[: len(threats)]
        away = _placed(seen, state, others, [*_far_out(seen), *_far_back(seen)])
        if away is not None and len(others) == len(threats):
            made += [(2, {}, 0), (3, away, 0)]
        maker.add(state, str(len(threats)), made)
    return maker.made()


def _nearest(seen: Seen, state: int, which: np.ndarray) -> np.ndarray:
    """Entities, the nearest to the ego first."""
    chosen = np.flatnonzero(which)
    away = np.linalg.norm(seen.place[state, chosen] - seen.place[state, 0], axis=1)
    return chosen[away.argsort(kind="stable")]


def _far_back(seen: Seen) -> list[tuple[float, float, float]]:
    lanes = [seen.road.incoming(arm) for arm in ARMS.values()]
    return [lane.at(lane.length - s) for s in FAR_BACK for lane in lanes]


def _far_out(seen: Seen) -> list[tuple[float, float, float]]:
    return [seen.road.outgoing(arm).at(s) for s in FAR_BACK for arm in ARMS.values()]


def _placed(
    seen: Seen, state: int, entities: np.ndarray, poses: list[tuple[float, float, float]]
) -> dict[int, np.ndarray] | None:
    """Rows of the vehicles at the first of the poses where there is room; None if there is not enough."""
    gone = [int(entity) for entity in entities]
    free = [pose for pose in poses if seen.free(state, pose[:2], without=gone)]
    if not gone or len(free) < len(gone):
        return None
    return {e: seen.row(state, p[:2], p[2], seen.speed[state, e]) for e, p in zip(gone, free, strict=False)}


def _deciding(seen: Seen) -> np.ndarray:
    """States in which the ego is near its entry and not past the others' ways yet."""
    at = seen.ego_to_entry
    return np.flatnonzero((at >= NEAR_EGO[0]) & (at <= NEAR_EGO[1]))


MAKERS: dict[str, Callable[[Seen], Any]] = {
    "arms": arms,
    "approach": approach,
    "leaving": leaving,
    "intent": intent,
    "clear": clear,
}
