"""What some drivers of one policy decide, in the states of many episodes at once.

At each step the unedited policy is asked too, so that it is known in which states the edits changed the action. All
episodes are at the same step, in one forward pass without edits and one for each set of edited hook points, each row
with its own edits (`policy.run_rows`): the same bits as if every episode were driven by itself. What an edit draws at
random follows from its own seed and the episode's, so that an episode never depends on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlmech.core.acting import as_numpy, choose_actions
from rlmech.core.edit import AtSteps, Edit
from rlmech.core.hook_point import at_step
from rlmech.core.row_edits import Change, RowEdits
from rlmech.episodes.driving import Driver, Hook, hook_names
from rlmech.episodes.when import Moment
from rlmech.simulators.protocol import Value
from rlmech.untyped import Row

DRAWS = 0x5EED
"""What tells the stream that actions are drawn from from others of the same seed."""
Seen = Mapping[str, np.ndarray]
"""Observations by key, a row each; under "" where they are single arrays."""
SINGLE = ""


@dataclass(frozen=True, slots=True)
class Scenes:
    """The scenes that are decided in.

    Attributes:
        seen: What is observed in each.
        of_row: For each row, its scene.
        entities: Who is there in each scene.
        measured: What the simulator measures of them in each.
    """

    seen: Seen
    of_row: np.ndarray
    entities: Sequence[list[Row]]
    measured: Sequence[Mapping[str, Value | str]]


@dataclass(frozen=True, slots=True)
class Decisions:
    """What was decided, a row each.

    Attributes:
        actions: What is done.
        scores: `[row action]`.
        activations: Those asked for.
        edited: Whether edits were at work.
        changed: Whether the unedited policy would have done something else.
    """

    actions: np.ndarray
    scores: np.ndarray
    activations: Mapping[str, np.ndarray]
    edited: np.ndarray
    changed: np.ndarray


@dataclass(slots=True)
class _Group:
    """Rows whose edits are at the same hook points, and so in one pass."""

    edits: RowEdits
    place: Tensor  # of each row of all, its number in the edits; -1 where it is not of the group


class Decider:
    """Drivers of one policy, each with some episodes; a row is an episode of a driver.

    Args:
        drivers: Of the same policy, keeping the same values, drawing or not.
        driver_of: For each row, the number of its driver.
        seeds: For each row, its episode's seed.
        action_names: Names of the environment's actions; the policy's own come first.
    """

    def __init__(
        self, drivers: Sequence[Driver], driver_of: np.ndarray, seeds: np.ndarray, action_names: tuple[str, ...]
    ) -> None:
        first = drivers[0]
        self.policy, self._drivers, self._driver_of, self._seeds = first.policy, drivers, driver_of, seeds
        self._names = hook_names(first.policy, first.names)
        self._action_names = first.policy.spec.actions or action_names
        # what calls functions of the user's is run row by row, so that each sees its own row alone
        self._by_calls = np.array(
            [first.policy.has_hooks or not all(isinstance(e, Edit) for e in d.edits) for d in drivers]
        )
        self._conditional = np.array([driver.when is not None for driver in drivers])
        self._generators = {} if first.deterministic else {s: np.random.default_rng([DRAWS, s]) for s in seeds.tolist()}
        self._state = {
            name: value.repeat(len(seeds), *[1] * (value.ndim - 1))
            for name, value in (first.policy.initial_state(1) if first.policy.is_recurrent else {}).items()
        }
        self._previous: list[Any] = [None] * len(seeds)
        self._hooks: dict[int, list[Hook]] = {}
        self._bound: dict[tuple[int, int, int | None], Change] = {}
        self._phase: tuple[tuple[int, ...], ...] | None = None
        self._groups: list[_Group] = []
        self._in_time = any(isinstance(e, Edit) and _steps(d, e) is not None for d in drivers for e in d.edits)
        self._active: list[tuple[int, ...]] = []

    def decide(self, step: int, rows: np.ndarray, scenes: Scenes) -> Decisions:
        """Decide.

        Args:
            step: The step that all episodes are at.
            rows: Those that are not over.
            scenes: Where they are.
        """
        self._enter(step)
        uniform = self._drawn(rows)
        with at_step(step):
            acting = np.array([bool(active) for active in self._active])[self._driver_of[rows]]
            asked = self._names if not acting.all() or self._conditional[self._driver_of[rows]].any() else ()
            scores, values = self._unedited(rows, scenes, asked or tuple(self._state))
            actions = unedited = self._chosen(scores, uniform)
            edited = self._held(step, rows, scenes, acting, scores, unedited)
            if edited.any():
                scores, values = scores.clone(), {name: value.clone() for name, value in values.items()}
                self._edit(step, rows, scenes, edited, scores, values)
                actions = self._chosen(scores, uniform)
        for name, state in self._state.items():
            state[torch.from_numpy(rows)] = values[name].to(state)
        if self._conditional.any():
            for row, action in zip(rows.tolist(), actions, strict=True):
                self._previous[row] = action if np.ndim(action) else int(action)
        changed = (actions != unedited).reshape(len(rows), -1).any(1) & edited
        kept = {name: as_numpy(values[name]) for name in self._names}
        return Decisions(actions, as_numpy(scores), kept, edited, changed)

    def _enter(self, step: int) -> None:
        """Work out which edits act at a step; they are others only where sites select steps."""
        if self._in_time or not self._active:
            self._active = [
                tuple(k for k, edit in enumerate(driver.edits) if _acts_at(driver, edit, step))
                for driver in self._drivers
            ]

    def _drawn(self, rows: np.ndarray) -> np.ndarray | None:
        """The numbers that decide at this step: they follow from the episode's seed and the step alone."""
        if not self._generators:
            return None
        choices = self.policy.choices
        shape = () if choices is None else (len(choices.sizes),)
        numbers = {seed: generator.random((1, *shape)) for seed, generator in self._generators.items()}
        return np.concatenate([numbers[seed] for seed in self._seeds[rows].tolist()])

    def _chosen(self, scores: Tensor, uniform: np.ndarray | None) -> np.ndarray:
        policy = self.policy
        return choose_actions(
            scores, policy.output_kind, policy.action_space, deterministic=uniform is None, uniform=uniform
        )

    def _unedited(self, rows: np.ndarray, scenes: Scenes, names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the policy, with whatever hooks are attached to it now, makes of each row's state."""
        shared = len(scenes.of_row) > len(scenes.entities) and not self._state
        if not shared:
            return self.policy.run_rows(self._observed(rows, scenes), names)
        places, back = np.unique(scenes.of_row, return_inverse=True)
        scores, values = self.policy.run_rows(_taken(scenes.seen, places), names)
        again = torch.from_numpy(back)
        return scores[again], {name: value[again] for name, value in values.items()}

    def _observed(self, rows: np.ndarray, scenes: Scenes, chosen: np.ndarray | slice = slice(None)) -> Any:
        seen = _taken(scenes.seen, scenes.of_row[chosen])
        if not self._state:
            return seen
        own = torch.from_numpy(rows[chosen])
        return self.policy.with_state(seen, {name: value[own] for name, value in self._state.items()})

    def _held(
        self, step: int, rows: np.ndarray, scenes: Scenes, acting: np.ndarray, scores: Tensor, unedited: np.ndarray
    ) -> np.ndarray:
        """In which rows edits are at work: those that act at this step, where their condition holds."""
        edited = acting.copy()
        for k in np.flatnonzero(acting & self._conditional[self._driver_of[rows]]).tolist():
            row, scene = int(rows[k]), int(scenes.of_row[k])
            when, action = self._drivers[self._driver_of[row]].when, unedited[k]
            moment = Moment(
                seed=int(self._seeds[row]),
                step=step,
                observation=_single(scenes.seen, scene),
                scores=as_numpy(scores[k]),
                action=action if np.ndim(action) else int(action),
                previous_action=self._previous[row],
                entities=scenes.entities[scene],
                action_names=self._action_names,
                measured=scenes.measured[scene],
            )
            edited[k] = when is not None and when(moment)
        return edited

    def _edit(
        self,
        step: int,
        rows: np.ndarray,
        scenes: Scenes,
        edited: np.ndarray,
        scores: Tensor,
        values: dict[str, Tensor],
    ) -> None:
        """Put in what the edited rows give."""

        def put(chosen: np.ndarray, found: tuple[Tensor, dict[str, Tensor]]) -> None:
            at = torch.from_numpy(chosen)
            scores[at] = found[0]
            for name, value in found[1].items():
                if name not in values:
                    values[name] = value.new_zeros((len(rows), *value.shape[1:]))
                values[name][at] = value

        by_calls = self._by_calls[self._driver_of[rows]]
        for k in np.flatnonzero(edited & by_calls).tolist():
            hooks = self._hooks_of(int(rows[k]), step)
            chosen = np.array([k])
            with self.policy.hooks(fwd_hooks=hooks):
                put(chosen, self.policy.run_rows(self._observed(rows, scenes, chosen), self._names))
        for group in self._groups_now():
            own = group.place[torch.from_numpy(rows)]
            chosen = np.flatnonzero(edited & ~by_calls & (own >= 0).numpy())
            if len(chosen):
                observed = self._observed(rows, scenes, chosen)
                put(
                    chosen,
                    self.policy.run_rows(observed, self._names, edits=group.edits, rows=own[torch.from_numpy(chosen)]),
                )

    def _groups_now(self) -> list[_Group]:
        """Rows by the hook points where their edits act now."""
        phase = tuple(self._active)
        if phase != self._phase:
            self._phase, found = phase, dict[tuple[str, ...], list[int]]()
            for row, k in enumerate(self._driver_of.tolist()):
                if self._active[k] and not self._by_calls[k]:
                    edits: Sequence[Any] = self._drivers[k].edits
                    points = tuple(sorted({edits[e].site.name for e in self._active[k]}))
                    found.setdefault(points, []).append(row)
            self._groups = [self._group(rows) for rows in found.values()]
        return self._groups

    def _group(self, rows: list[int]) -> _Group:
        numbers: dict[tuple[object, ...], int] = {}
        plans: list[list[Change]] = []
        plan_of: list[int] = []
        for row in rows:
            k = int(self._driver_of[row])
            drawing = [e for e in self._active[k] if getattr(self._drivers[k].edits[e], "kind", "") == "resample"]
            key = (k, row) if drawing else (k,)
            if key not in numbers:
                numbers[key] = len(plans)
                plans.append([self._change(row, k, e) for e in self._active[k]])
            plan_of.append(numbers[key])
        place = torch.full((len(self._seeds),), -1)
        place[torch.tensor(rows)] = torch.arange(len(rows))
        return _Group(RowEdits(plans, torch.tensor(plan_of), self.policy.hook_dict), place)

    def _change(self, row: int, k: int, e: int) -> Change:
        """An edit that is bound: once for a driver, but for what it draws, which goes on through an episode."""
        edit = self._drivers[k].edits[e]
        assert isinstance(edit, Edit)  # noqa: S101  # what is none is run by calls
        key = (k, e, row if edit.kind == "resample" else None)
        if key not in self._bound:
            point = self.policy.point(edit.site.name)
            own = replace(self._seeded(edit, row), site=edit.site.in_time(point)[1])
            self._bound[key] = edit.site.name, own.bind(point), own
        return self._bound[key]

    def _hooks_of(self, row: int, step: int) -> list[Hook]:
        """What is attached to the policy for a row: edits, and functions of the user's."""
        if row not in self._hooks:
            self._hooks[row] = [
                (edit.site.name, self._seeded(edit, row).bind(self.policy.point(edit.site.name)))
                if isinstance(edit, Edit)
                else edit
                for edit in self._drivers[self._driver_of[row]].edits
            ]
        return [
            (name, function)
            for name, function in self._hooks[row]
            if not isinstance(function, AtSteps) or step in function.steps
        ]

    def _seeded(self, edit: Edit, row: int) -> Edit:
        return replace(edit, seed=int(np.random.SeedSequence([edit.seed, int(self._seeds[row])]).generate_state(1)[0]))


def _steps(driver: Driver, edit: Edit) -> tuple[int, ...] | None:
    return edit.site.in_time(driver.policy.point(edit.site.name))[0]


def _acts_at(driver: Driver, edit: Edit | Hook, step: int) -> bool:
    steps = _steps(driver, edit) if isinstance(edit, Edit) else None
    return steps is None or step in steps


def _taken(seen: Seen, places: np.ndarray) -> Any:
    """Observations of some scenes, as a policy takes them."""
    if SINGLE in seen:
        return seen[SINGLE][places]
    return {key: value[places] for key, value in seen.items()}


def _single(seen: Seen, place: int) -> Any:
    """What is observed in one scene, as the environment gave it."""
    if SINGLE in seen:
        return seen[SINGLE][place, ...]
    return {key: value[place, ...] for key, value in seen.items()}
