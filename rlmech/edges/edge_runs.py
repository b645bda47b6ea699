"""Runs in which some edges of a component graph carry the values of another run.

    value(v) = f_v(for each edge u -> v: u's reference value where the edge is off, else u's value in this run)

The semantics of ACDC: units are computed in order, each from what its edges carry. With no edge off it is the base run,
bit for bit; with all off, and another run's values as the reference, it is that run. Only units after an edge that is
off are computed; those of one hook point that do not contradict each other are computed together, jobs stacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlmech.edges.components import ComponentGraph
from rlmech.metrics.measure import BoundMetric, Outputs

ROWS_AT_ONCE = 1024
"""Rows stacked into one run: past the second-level cache a larger stack loses on a CPU."""

UNREAD, CURRENT, REFERENCE, DRAWN = -1, 0, 1, 2
"""What a sender is to a task: not read, its current value, its reference, or a row drawn for an edge (DRAWN + edge)."""


@dataclass(slots=True, eq=False)
class _Task:
    """Units of one stage, in one job, that can be computed in one evaluation."""

    job: int
    carried: Int[np.ndarray, " unit"]
    units: list[int] = field(default_factory=list)

    def accepts(self, senders: Int[np.ndarray, " edge"], keys: Int[np.ndarray, " edge"]) -> bool:
        """Whether nothing that these senders are to be contradicts what they are."""
        carried = self.carried[senders]
        return bool(((carried == keys) | (carried == UNREAD)).all())


class EdgeRuns:
    """Runs of a set of base observations with chosen edges off.

    Args:
        graph: Units and edges.
        arrays: The base runs' observations, as `policy.coerce` gives them.
        reference: By stage, what edges carry that are off: another run's values, zeros, means. `[pair …]`.
        drawn: Rows of the reference by edge, for references that are drawn for each edge; None: row i for run i.
    """

    def __init__(
        self,
        graph: ComponentGraph,
        arrays: Sequence[Tensor],
        *,
        reference: Mapping[int, Tensor],
        drawn: Int[np.ndarray, "edge pair"] | None = None,
    ) -> None:
        self.graph, self.arrays, self.reference = graph, tuple(arrays), reference
        self.drawn = None if drawn is None else torch.from_numpy(drawn)
        self.n_pairs = self.arrays[0].shape[0]
        with torch.no_grad():
            self.base = graph.values(self.arrays)
        self._fragments = {number: graph.fragment(number) for number, s in enumerate(graph.stages) if s.parents}
        self._senders = np.array([sender for sender, _ in graph.edges], dtype=int)
        self._incoming = {unit: np.array(edges, dtype=int) for unit, edges in graph.incoming.items()}

    def outputs(self, off: Bool[np.ndarray, "job edge"]) -> list[Outputs]:
        """The policy's outputs in each job, `[pair action]`; a job says which edges are off."""
        scores, *rest = self.graph.outputs
        found: list[Outputs] = []
        at_once = max(1, ROWS_AT_ONCE // max(1, self.n_pairs))
        for start in range(0, len(off), at_once):
            part = off[start : start + at_once]
            values = self.values(part)
            for job in range(len(part)):
                value = self._shown(rest[0], values, job) if rest else None
                found.append(Outputs(scores=self._shown(scores, values, job), value=value))
        return found

    def measure(
        self, off: Bool[np.ndarray, "job edge"], metric: BoundMetric, *, pair: Int[Tensor, " pair"] | None = None
    ) -> Float[np.ndarray, "job pair"]:
        """The metric of every job and pair, in its unit.

        Args:
            off: Which edges are off in each job.
            metric: Bound to the unpatched runs.
            pair: Which of the metric's pairs each base run is; None: run i is pair i.
        """
        result = np.empty((len(off), self.n_pairs))
        for job, outputs in enumerate(self.outputs(off)):
            result[job] = metric(outputs.scores, pair=pair, value=outputs.value).double().cpu().numpy()
        return result

    @torch.no_grad()
    def values(self, off: Bool[np.ndarray, "job edge"]) -> dict[int, dict[int, Tensor]]:
        """By stage and job, the values that differ from the base run's; what is not there is the base run's."""
        changed = np.zeros((len(off), len(self.graph.units)), dtype=bool)
        current: dict[int, dict[int, Tensor]] = {number: {} for number in range(len(self.graph.stages))}
        for number, stage in enumerate(self.graph.stages):
            if number not in self._fragments:
                continue
            for unit in stage.units:
                edges = self._incoming[unit]
                changed[:, unit] = (off[:, edges] | changed[:, self._senders[edges]]).any(1)
            tasks = [task for job in range(len(off)) for task in self._tasks(stage.units, job, changed[job], off[job])]
            at_once = max(1, ROWS_AT_ONCE // max(1, self.n_pairs))
            for start in range(0, len(tasks), at_once):
                self._compute(number, tasks[start : start + at_once], current)
        return current

    def _tasks(
        self, units: Sequence[int], job: int, changed: Bool[np.ndarray, " unit"], off: Bool[np.ndarray, " edge"]
    ) -> list[_Task]:
        """The changed units of a stage, in as few evaluations as their edges allow."""
        tasks: list[_Task] = []
        for unit in units:
            if not changed[unit]:
                continue
            edges = self._incoming[unit]
            senders, keys = self._senders[edges], self._keys(edges, off)
            task = next((task for task in tasks if task.accepts(senders, keys)), None)
            if task is None:
                tasks.append(task := _Task(job, np.full(len(changed), UNREAD)))
            task.carried[senders] = keys
            task.units.append(unit)
        return tasks

    def _keys(self, edges: Int[np.ndarray, " into"], off: Bool[np.ndarray, " edge"]) -> Int[np.ndarray, " into"]:
        return np.where(off[edges], REFERENCE if self.drawn is None else DRAWN + edges, CURRENT)

    def _compute(self, number: int, tasks: Sequence[_Task], current: dict[int, dict[int, Tensor]]) -> None:
        stage = self.graph.stages[number]
        inputs = {
            parent: torch.cat([self._carried(parent, task, current[parent]) for task in tasks])
            for parent in stage.parents
        }
        stacked = [torch.cat([array] * len(tasks)) for array in self.arrays]
        computed = self._fragments[number](stacked, inputs).split(self.n_pairs)
        for task, value in zip(tasks, computed, strict=True):
            mask = self._elements(number, task.units)
            before = current[number].get(task.job, self.base[number])
            current[number][task.job] = value if bool(mask.all()) else torch.where(mask, value, before)

    def _carried(self, parent: int, task: _Task, current: Mapping[int, Tensor]) -> Tensor:
        """What a parent stage looks like to a task's units."""
        value = current.get(task.job, self.base[parent])
        units = np.array(self.graph.stages[parent].units)
        keys = task.carried[units]
        whole = units[keys == REFERENCE].tolist()
        if whole:
            value = torch.where(self._elements(parent, whole), self.reference[parent], value)
        if self.drawn is not None:
            for unit, key in zip(units[keys >= DRAWN].tolist(), keys[keys >= DRAWN].tolist(), strict=True):
                drawn = self.reference[parent][self.drawn[key - DRAWN]]
                value = torch.where(self.graph.mask_of[unit], drawn, value)
        return value

    def _elements(self, number: int, units: Sequence[int]) -> Tensor:
        stage = self.graph.stages[number]
        if len(units) == len(stage.units):
            return stage.covered
        return stage.masks[[unit - stage.units[0] for unit in units]].any(0)

    def _shown(self, name: str, values: Mapping[int, Mapping[int, Tensor]], job: int) -> Tensor:
        stage = self.graph.outputs[name]
        node_value = self.graph.stages[stage].layout.restore(values[stage].get(job, self.base[stage]))
        return self.graph.policy.points[name].address.layout.show(node_value)
