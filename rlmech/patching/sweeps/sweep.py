"""The sweep engine: many small interventions on the same base runs.

A job replaces some sites by a source's values in every base run. Jobs of one point are planned together (`delta`): base
and source run once, and only what a patch changes is computed, in blocks that fit the cache, the metric reduced inside
each block. A plan is checked against the plain suffix when it is first used, and where it fails or there is none the
plain suffix runs. On the eager engine each job is a whole forward pass. Memory: two runs of all pairs and one block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Node
from rlmech.core.hook_point import HookPoint
from rlmech.core.layout import Layout
from rlmech.core.masked import agree
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.recent import Recent
from rlmech.core.site import Site
from rlmech.errors import SiteError
from rlmech.metrics.measure import BoundMetric, Outputs
from rlmech.patching.sweeps.delta import DeltaPlan, NoDeltaError
from rlmech.patching.sweeps.delta_steps import Block, Reading, Runs
from rlmech.patching.sweeps.distinct import distinct_rows, run_distinct
from rlmech.patching.sweeps.independence import check_rows, refuse_train_mode
from rlmech.patching.sweeps.journal import Journal
from rlmech.patching.sweeps.suffix import Replaced, SuffixPlan

ELEMENTS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 27}
"""Elements of the widest value in a block: a megabyte in a processor's second-level cache, half a gigabyte on a GPU.

Measured on a processor with a megabyte of it per core, in time per sweep relative to this: an eighth of it 2.9 and 1.2
(perceptron, ego attention), half 1.3 and 1.0, twice 0.9 and 1.0, four times 1.2 and 1.2, eight times 1.8 and 1.6.
"""
CHECKED_ROWS = 8
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
"""Largest difference of a delta plan from the plain suffix, relative to the scale of the outputs."""
ORDINARY = 1e6
"""Scores below this are no mask's (`core.masked`), nor does a patch of them make one."""
FEW_ROWS = 512
PLANS = 16
"""Sets of jobs whose plans a policy keeps, the last used ones, so that a search over ever other sites is bounded."""

Source = Mapping[str, Tensor]
"""By hook name, the values that jobs put in, canonical axes, a row per pair or one for all."""


Job = tuple[Site, ...]
"""One intervention: the sites that are replaced together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep gives.

    Attributes:
        measured: The metric of every job and pair.
        active: Rows that could differ from the base run, and were computed.
        schemes: How many jobs were run by `delta`, `suffix` or `forward`.
    """

    measured: Float[Tensor, "site pair"]
    active: Bool[Tensor, "site pair"]
    schemes: dict[str, int]


def outputs_of(policy: HookedPolicy, obs: Observation) -> Outputs:
    """Scores, and the state value where the policy has that head, of a batch; equal observations have equal ones."""
    names = [name for name in ("hook_value",) if name in policy.hook_dict]
    scores, cache = run_distinct(policy, obs, names)
    return Outputs(scores=scores, value=cache["hook_value"] if names else None)


def run_sweep(
    policy: HookedPolicy,
    obs: Observation,
    jobs: Sequence[Job],
    *,
    sources: Sequence[Source],
    metric: BoundMetric,
    source_of: Sequence[int] | None = None,
    journal: Journal | None = None,
    on_jobs: Callable[[int], None] = lambda n: None,
) -> Swept:
    """The metric under each job, one after the other, in the same base runs.

    Args:
        policy: The policy.
        obs: The base runs' observations, one row per pair; who binds the metric compares them with the live module.
        jobs: What is replaced.
        sources: What it is replaced by.
        metric: Bound to the unpatched runs.
        source_of: The source of each job; None: the first one's for all.
        journal: Where finished groups of jobs are kept, so that a sweep that was stopped goes on from there.
        on_jobs: Called with the number of jobs finished since the last call.

    Raises:
        EngineError: Rows are not independent: the network is in train mode, or mixes the rows of a batch.
        SiteError: No output depends on a site.
    """
    refuse_train_mode(policy)
    own = [0] * len(jobs) if source_of is None else source_of
    with torch.no_grad():
        if policy.engine != "graph" or policy.has_hooks:  # what is attached goes on acting
            mine = [sources[i] for i in own]
            return _forward_passes(policy, obs, jobs, mine, metric, journal, on_jobs)
        check_rows(policy, obs)
        return _Sweep(policy, policy.coerce(obs, compare=False), jobs, sources, metric, own).run(journal, on_jobs)


@dataclass(slots=True, kw_only=True)
class _Group:
    """Jobs on the same points with selections of the same shape."""

    names: tuple[str, ...]
    source: int
    places: slice | Tensor
    n_jobs: int
    masks: dict[str, Tensor]
    plan: DeltaPlan | None = None
    checked: bool = False
    suffix: SuffixPlan | None = None


_plans: WeakKeyDictionary[GraphEngine, Recent[object, list[_Group]]] = WeakKeyDictionary()


class _Sweep:
    def __init__(
        self,
        policy: HookedPolicy,
        arrays: tuple[Tensor, ...],
        jobs: Sequence[Job],
        sources: Sequence[Source],
        metric: BoundMetric,
        source_of: Sequence[int],
    ) -> None:
        self.policy, self.engine, self.arrays = policy, policy.graph_engine, arrays
        self.sources, self.metric, self.jobs, self.source_of = sources, metric, jobs, source_of
        self.n_pairs, self.device = arrays[0].shape[0], arrays[0].device
        self.distinct = distinct_rows(arrays)
        names = [name for name, point in policy.points.items() if point.kind == "output"]
        self.ends = [policy.points[name].address for name in names]
        self.groups = self._planned()
        self.matrices: dict[tuple[Node, Node], Tensor] = {}
        self.reading: Reading | None = None
        self.base = self._base_run()
        self.outputs = [end.layout.show(Layout.of(end.node).restore(self.base[end.node])) for end in self.ends]

    def run(self, journal: Journal | None, on_jobs: Callable[[int], None]) -> Swept:
        pair = torch.arange(self.n_pairs, device=self.device)
        base = self._measure(self.outputs, pair)
        unpatched, self.reading = base.to(torch.float64), self._reading(base)
        measured = unpatched.expand(len(self.jobs), -1).clone()
        active = torch.ones(len(self.jobs), self.n_pairs, dtype=torch.bool, device=self.device)
        for number, group in enumerate(self.groups):
            done = None if journal is None else journal.read(number)
            if done is None:
                done = self._run_group(group, unpatched)
                if journal is not None:
                    journal.write(number, *done)
            measured[group.places], active[group.places] = (value.to(self.device) for value in done)
            on_jobs(group.n_jobs)
        schemes = Counter[str]()
        for group in self.groups:
            schemes["suffix" if group.plan is None else "delta"] += group.n_jobs
        return Swept(measured=measured.cpu(), active=active.cpu(), schemes=dict(schemes))

    # ---- planning

    def _planned(self) -> list[_Group]:
        fold = self.n_pairs * len(self.jobs) >= FEW_ROWS
        key = (tuple(self.jobs), tuple(self.source_of), fold, self.device)
        return _plans.setdefault(self.engine, Recent(PLANS)).get(key, lambda: self._plan(fold=fold))

    def _plan(self, *, fold: bool) -> list[_Group]:
        self._check_reach()
        together: dict[tuple[object, int], list[int]] = {}
        for place, job in enumerate(self.jobs):
            shapes = tuple((s.name, tuple((a, len(p)) for a, p in self._positions(s))) for s in job)
            together.setdefault((shapes, self.source_of[place]), []).append(place)
        groups = []
        for (_, source), places in together.items():
            names = tuple(dict.fromkeys(site.name for site in self.jobs[places[0]]))
            masks = {name: torch.stack([self._mask(self.jobs[i], name) for i in places]) for name in names}
            group = _Group(names=names, source=source, places=_index(places), n_jobs=len(places), masks=masks)
            if len(names) == 1:
                group.plan = self._delta(*names, masks[names[0]], fold=fold)
            if group.plan is None:
                group.suffix = self._suffix(group)
            groups.append(group)
        return groups

    def _check_reach(self) -> None:
        ends = [end.node for end in self.ends]
        for name in dict.fromkeys(site.name for job in self.jobs for site in job):
            start = self.policy.points[name].address.node
            if start not in ends and not set(ends).intersection(self.engine.graph.behind({start}, ends)):
                raise SiteError(
                    f"No output of the policy depends on {name!r}.",
                    given=name,
                    expected="a point on the way from the observation to the action scores or the state value",
                    fix="choose another point; policy.hook_dict lists them",
                )

    def _positions(self, site: Site) -> list[tuple[str, tuple[int, ...]]]:
        return sorted(site.positions(self.policy.point(site.name)).items())

    def _mask(self, job: Job, name: str) -> Tensor:
        point = self.policy.point(name)
        masks = [site.mask(point) for site in job if site.name == name]
        return torch.stack(masks).any(0).to(self.device)

    def _delta(self, name: str, mask: Tensor, *, fold: bool) -> DeltaPlan | None:
        address = self.policy.points[name].address
        laid_out = _unsigned(address.layout).restore(mask)
        ends = [end.node for end in self.ends]
        try:
            return DeltaPlan(self.engine.graph, address.node, laid_out, ends, fold=fold)
        except NoDeltaError:
            return None

    def _suffix(self, group: _Group) -> SuffixPlan:
        starts = [self.policy.points[name].address.node for name in group.names]
        return SuffixPlan(self.engine, starts, self.ends)

    # ---- running

    def _base_run(self) -> dict[Node, Tensor]:
        wanted = {end.node for end in self.ends}
        for group in self.groups:
            wanted |= set(group.plan.base_nodes) if group.plan is not None else set()
            wanted |= set(group.suffix.prefix) if group.suffix is not None else set()
        return self._values(wanted)

    def _values(self, wanted: set[Node]) -> dict[Node, Tensor]:
        nodes, distinct = tuple(sorted(wanted, key=lambda node: node.index)), self.distinct
        arrays = self.arrays if distinct is None else tuple(array[distinct.first] for array in self.arrays)
        values = self.engine.program(returned=nodes)(arrays, (), ())
        shown = {node: Layout.of(node).show(value) for node, value in zip(nodes, values, strict=True)}
        if distinct is None:
            return shown
        return {node: distinct.repeat(value) if node.has_batch else value for node, value in shown.items()}

    def _replaced(self, group: _Group) -> list[Replaced]:
        replaced = []
        for name in group.names:
            address = self.policy.points[name].address
            value = self.sources[group.source][name]
            value = value.expand(self.n_pairs, *value.shape[1:])
            replaced.append(Replaced(address=address, mask=group.masks[name], value=value))
        return replaced

    def _run_group(self, group: _Group, unpatched: Tensor) -> tuple[Tensor, Tensor]:
        if group.plan is not None and not group.checked:
            self._check(group)
        if group.plan is None:
            return self._run_suffix(group)
        elements = ELEMENTS_AT_ONCE.get(self.device.type, ELEMENTS_AT_ONCE["cpu"])
        while True:
            try:
                return self._run_delta(group, group.plan, unpatched, elements)
            except torch.OutOfMemoryError:
                if elements <= group.plan.width:
                    raise
                elements //= 2

    def _run_delta(self, group: _Group, plan: DeltaPlan, unpatched: Tensor, elements: int) -> tuple[Tensor, Tensor]:
        runs = self._runs(group, plan)
        active = plan.active(runs)
        measured = unpatched.expand(group.n_jobs, -1).clone()
        for block in plan.blocks(runs, active, elements=elements):
            block.put(self._measured(plan, block), measured)
        active = active.T
        return torch.where(active, measured, unpatched), active

    def _measured(self, plan: DeltaPlan, block: Block) -> Tensor:
        """The metric of a block, a number for each pair and slot."""
        if block.runs.reading is not None and plan.can_read:
            return self.metric.checked(plan.read(block, block.runs.reading).reshape(-1))
        outputs = [end.layout.show(v) for end, v in zip(self.ends, plan.run(block), strict=True)]
        return self._measure(outputs, block.rows_of(self.device)[0])

    def _reading(self, base: Tensor) -> Reading | None:
        """The metric as a weighted sum of the scores, where it is one, and no score is of a size that masks have."""
        weights, scores = self.metric.weights, self.outputs[0]
        ordinary = weights is not None and scores.ndim == 2 and self.ends[0].layout.is_identity
        if not ordinary or weights is None or not bool((scores.abs() < ORDINARY).all()):
            return None
        return Reading(weights=weights.to(scores), base=base.to(scores))

    def _runs(self, group: _Group, plan: DeltaPlan) -> Runs:
        source = self._replaced(group)[0]
        value = source.address.layout.restore(source.value)
        if plan.source_nodes == (plan.start,):
            shown = {plan.start: Layout.of(plan.start).show(value)}
            return Runs(base=self.base, source=shown, reading=self.reading, matrices=self.matrices)
        program = self.engine.program(returned=plan.source_nodes, given=(plan.start,))
        values = program(self.arrays, (value,), ())
        shown = {n: Layout.of(n).show(v) for n, v in zip(plan.source_nodes, values, strict=True)}
        return Runs(base=self.base, source=shown, reading=self.reading, matrices=self.matrices)

    def _run_suffix(self, group: _Group) -> tuple[Tensor, Tensor]:
        suffix, replaced = self._ready(group), self._replaced(group)
        measured = torch.empty(group.n_jobs, self.n_pairs, dtype=torch.float64, device=self.device)
        widest = max(1, *(value[0].numel() for value in (*self.base.values(), *(r.value for r in replaced))))
        most = max(1, ELEMENTS_AT_ONCE.get(self.device.type, ELEMENTS_AT_ONCE["cpu"]) // widest)
        for rows in torch.arange(measured.numel(), device=self.device).split(most):
            job, pair = rows // self.n_pairs, rows % self.n_pairs
            outputs = suffix.run(self.arrays, self.base, replaced, job=job, pair=pair)
            measured[job, pair] = self._measure(outputs, pair).to(measured)
        return measured, torch.ones_like(measured, dtype=torch.bool)

    def _ready(self, group: _Group) -> SuffixPlan:
        if group.suffix is None:
            group.suffix = self._suffix(group)
        missing = set(group.suffix.prefix) - set(self.base)
        if missing:
            self.base |= self._values(missing)
        return group.suffix

    def _check(self, group: _Group) -> None:
        """Compare a delta plan with the plain suffix on a few of its rows; forget it where they differ."""
        plan = group.plan
        assert plan is not None  # noqa: S101  # the caller looked
        runs, suffix = self._runs(group, plan), self._ready(group)
        active = plan.active(runs)
        rows = active.flatten().nonzero()[:, 0]
        rows = rows[torch.linspace(0, len(rows) - 1, min(CHECKED_ROWS, len(rows)), device=rows.device).long()]
        few = torch.zeros_like(active)
        few.view(-1)[rows] = True
        agrees = True
        for block in plan.blocks(runs, few, elements=plan.width * max(1, few.shape[1])):
            pair, job = block.rows_of(self.device)
            theirs = suffix.run(self.arrays, self.base, self._replaced(group), job=job, pair=pair)
            mine = [end.layout.show(v) for end, v in zip(self.ends, plan.run(block), strict=True)]
            measured = self._measure(theirs, pair)
            for ours, plain in ((self._measured(plan, block), measured), *zip(mine, theirs, strict=True)):
                agrees &= agree(ours, plain, tolerance=TOLERANCE.get(plain.dtype, 1e-2), smallest_scale=1.0)
        group.checked = len(rows) > 0
        if not agrees:
            group.plan = None

    def _measure(self, outputs: Sequence[Tensor], pair: Tensor) -> Tensor:
        return self.metric(outputs[0], pair=pair, value=outputs[1] if len(outputs) > 1 else None)


def _index(places: Sequence[int]) -> slice | Tensor:
    in_a_row = list(places) == list(range(places[0], places[0] + len(places)))
    return slice(places[0], places[0] + len(places)) if in_a_row else torch.tensor(places)


def _unsigned(layout: Layout) -> Layout:
    return Layout(shape=layout.shape, split=layout.split, order=layout.order)


def _forward_passes(
    policy: HookedPolicy,
    obs: Observation,
    jobs: Sequence[Job],
    sources: Sequence[Source],
    metric: BoundMetric,
    journal: Journal | None,
    on_jobs: Callable[[int], None],
) -> Swept:
    n_pairs = policy.coerce(obs, compare=False)[0].shape[0]
    measured = torch.empty(len(jobs), n_pairs, dtype=torch.float64)
    for place, job in enumerate(jobs):
        done = None if journal is None else journal.read(place)
        if done is None:
            with policy.hooks(fwd_hooks=list(_hooks(policy, job, sources[place]))):
                outputs = outputs_of(policy, obs)
            row = metric(outputs.scores, value=outputs.value).to(torch.float64).cpu()[None]
            done = row, torch.ones_like(row, dtype=torch.bool)
            if journal is not None:
                journal.write(place, *done)
        measured[place] = done[0][0]
        on_jobs(1)
    active = torch.ones_like(measured, dtype=torch.bool)
    return Swept(measured=measured, active=active, schemes={"forward": len(jobs)})


def _hooks(policy: HookedPolicy, job: Job, source: Source) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    for name in dict.fromkeys(site.name for site in job):
        point = policy.point(name)
        mask = torch.stack([site.mask(point) for site in job if site.name == name]).any(0)
        yield name, partial(_replace, mask=mask, source=source[name])


def _replace(value: Tensor, hook: HookPoint, *, mask: Tensor, source: Tensor) -> Tensor:
    return torch.where(mask.to(value.device), source.expand_as(value), value)
