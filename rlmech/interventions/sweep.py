"""The sweep engine: many small interventions on the same base runs.

Everything before a patched point is computed once per base run; for each site only what depends on it runs again, with
the rows of several sites stacked up to a budget. On the eager engine each site is one whole forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.core.edit import Site, read, write
from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Graph, Node
from rlmech.core.hook_point import HookPoint
from rlmech.core.layout import Layout
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.program import Program
from rlmech.errors import EngineError
from rlmech.interventions.metrics import BoundMetric, Outputs

ROWS_AT_ONCE = 1024
"""Rows stacked into one suffix run: past the second-level cache a larger stack loses on a CPU."""

Replacement = Callable[[HookPoint, Tensor], Tensor]
"""(point, base value [pair ...]) -> the value to take the selected part from, of the same shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suffix:
    """What must run again when a node is replaced: its program, and the prefix values it reads."""

    program: Program
    prefix: tuple[Node, ...]
    n_outputs: int


def outputs_of(policy: HookedPolicy, obs: Observation) -> Outputs:
    """Scores, and the state value where the policy has that head, of a batch."""
    names = [name for name in ("hook_value",) if name in policy.hook_dict]
    with torch.no_grad():
        scores, cache = policy.run_with_cache(obs, names or [])
    return Outputs(scores=scores, value=cache["hook_value"] if names else None)


def run_sweep(
    policy: HookedPolicy,
    obs: Observation,
    sites: Sequence[Site],
    *,
    replacement: Replacement,
    metric: BoundMetric,
    on_site: Callable[[int], None] = lambda n: None,
) -> Float[Tensor, "site pair"]:
    """The metric with each site replaced, one after the other, in the same base runs.

    Args:
        policy: The policy.
        obs: The base runs' observations, one row per pair.
        sites: Where; each is a job of its own.
        replacement: What the selected parts are taken from.
        metric: Bound to the unpatched runs.
        on_site: Called with the number of sites finished, now and then.
    """
    if policy.couples_rows:
        raise EngineError(
            "The network is in train mode, where batch statistics and dropout couple or randomise rows.",
            given="policy.training with dropout or batch norm",
            expected="eval mode",
            fix="policy.eval()",
        )
    names = list(dict.fromkeys(site.name for site in sites))
    with torch.no_grad():
        arrays = policy.coerce(obs)
        n_pairs = arrays[0].shape[0]
        result = torch.empty(len(sites), n_pairs, dtype=torch.float64)
        if policy.engine == "graph":
            engine = policy.graph_engine
            for name in names:
                mine = [i for i, site in enumerate(sites) if site.name == name]
                _sweep_point(policy, engine, arrays, [sites[i] for i in mine], mine, replacement, metric, result)
                on_site(len(mine))
        else:
            for i, site in enumerate(sites):
                result[i] = _one_pass(policy, obs, site, replacement, metric)
                on_site(1)
    return result


def _sweep_point(
    policy: HookedPolicy,
    engine: GraphEngine,
    arrays: tuple[Tensor, ...],
    sites: Sequence[Site],
    places: Sequence[int],
    replacement: Replacement,
    metric: BoundMetric,
    result: Tensor,
) -> None:
    point = policy.hook_dict[sites[0].name]
    address = policy.points[point.name].address
    suffix = _suffix(engine, address.node, policy)
    values = engine.program(returned=(address.node, *suffix.prefix))(arrays, (), ())
    base = address.layout.show(values[0])
    source = replacement(point, base)
    plain = [Layout.plain(node.shape or ()) for node in suffix.prefix]
    prefix = [layout.show(value) for layout, value in zip(plain, values[1:], strict=True)]
    n_pairs = arrays[0].shape[0]
    for pairs in _chunks(range(n_pairs), ROWS_AT_ONCE):
        rows = torch.tensor(pairs)
        for chosen in _chunks(range(len(sites)), max(1, ROWS_AT_ONCE // len(pairs))):
            n = len(chosen)
            patched = base[rows].repeat(n, *([1] * (base.ndim - 1)))
            for k, i in enumerate(chosen):
                part = patched[k * len(rows) : (k + 1) * len(rows)]
                index = sites[i].index(point)
                write(part, index, read(source[rows], index))
            given = [address.layout.restore(patched)]
            for layout, value in zip(plain, prefix, strict=True):
                given.append(layout.restore(value[rows].repeat(n, *([1] * (value.ndim - 1)))))
            stacked = tuple(array[rows].repeat(n, *([1] * (array.ndim - 1))) for array in arrays)
            outputs = suffix.program(stacked, given, ())
            measured = metric(outputs[0], pair=rows.repeat(n), value=outputs[1] if suffix.n_outputs > 1 else None)
            for k, i in enumerate(chosen):
                result[places[i], rows] = measured[k * len(rows) : (k + 1) * len(rows)].to(result)


def _suffix(engine: GraphEngine, node: Node, policy: HookedPolicy) -> Suffix:
    names = [name for name, point in policy.points.items() if point.kind == "output"]
    ends = [policy.points[name].address for name in names]
    prefix = _prefix(engine.graph, node, [end.node for end in ends])
    program = engine.program(returned=[end.node for end in ends], given=(node, *prefix))

    def shown(arrays: Sequence[Tensor], given: Sequence[Tensor], interceptors: Sequence[object]) -> tuple[Tensor, ...]:
        values = program(arrays, given, ())
        return tuple(end.layout.show(value) for end, value in zip(ends, values, strict=True))

    return Suffix(program=shown, prefix=prefix, n_outputs=len(ends))


def _prefix(graph: Graph, node: Node, ends: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes before which nothing needs to run again when `node` is replaced."""
    active = {
        target: alternative.definition
        for target, alternative in graph.alternatives.items()
        if node in alternative.triggers
    }

    def sources(at: Node) -> list[Node]:
        return [active[at]] if at in active else list(at.inputs())

    depends: dict[Node, bool] = {node: True}
    stack = [(end, False) for end in ends]
    while stack:
        at, expanded = stack.pop()
        if at in depends:
            continue
        if expanded:
            depends[at] = any(depends[source] for source in sources(at))
        else:
            stack.append((at, True))
            stack.extend((source, False) for source in sources(at))
    read_by_suffix = itertools.chain(*(sources(at) for at, does in depends.items() if does and at is not node))
    wanted = {at for at in itertools.chain(read_by_suffix, ends) if not depends[at] and at.shape is not None}
    leaves = {"parameter", "constant", "input"}
    return tuple(sorted((at for at in wanted if at.op not in leaves and _has_batch(at)), key=lambda at: at.index))


def _has_batch(node: Node) -> bool:
    return any(size < 0 for size in node.shape or ())


def _one_pass(
    policy: HookedPolicy, obs: Observation, site: Site, replacement: Replacement, metric: BoundMetric
) -> Tensor:
    point = policy.hook_dict[site.name]
    index = site.index(point)

    def replace(value: Tensor, hook: HookPoint) -> Tensor:
        return write(value, index, read(replacement(point, value.clone()), index))

    with policy.hooks(fwd_hooks=[(site.name, replace)]):
        outputs = outputs_of(policy, obs)
    return metric(outputs.scores, value=outputs.value).to(torch.float64)


def _chunks(items: range, size: int) -> Iterator[range]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
