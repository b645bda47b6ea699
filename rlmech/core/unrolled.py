"""A recurrent policy over a few steps as one graph: the step's graph, copied once for each, the state threaded through.

    step_0 -> state -> step_1 -> state -> ... -> scores of the step that is read

It is a policy like any other, whose observations are sequences: sweeps, gradients, attributions and circuits work on it
as they are, and what a value at step t does at step t + k is a patch on it. Hook points are those of the step, behind
the step that they stand in: `step_3.lstm.hook_h`; `Site("lstm.hook_h", step=3)` means the same. Cost: a copy of the
nodes a step, milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlmech.axes import Axis
from rlmech.core.attention import AttentionBlocks
from rlmech.core.engine import GraphEngine
from rlmech.core.graph import Alternative, Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.points import OutputKind, Point
from rlmech.core.program import Address
from rlmech.core.site import Site
from rlmech.core.stateful import Sequence, StatefulFormat
from rlmech.errors import SiteError, StateError

_IN_STEP = re.compile(r"step_(\d+)\.(.+)")
_LEAVES = ("parameter", "constant")


class UnrolledEngine(GraphEngine):
    """Programs over the graph of several steps.

    Args:
        module: The steps.
        observation: The format of its sequences.
        root: Module path that falls away in names.
        output_kind: What the scores are.

    Raises:
        NotTraceable: There is no graph of a step.
    """

    reason = "the module was exported, and its step copied"

    def __init__(
        self, module: Sequence, observation: StatefulFormat, *, root: str, output_kind: OutputKind, anew: bool = False
    ) -> None:
        step = GraphEngine(module.step, observation.of_one_step(), root=root, output_kind=output_kind, anew=anew)
        self.is_known = step.is_known
        unrolled = unroll(step.graph, observation.states, n_steps=module.n_steps, read=module.read)
        self.graph, self._step = unrolled.graph, step
        self.attention = AttentionBlocks({}, {})
        self.points = dict(_points(step, unrolled, module.read))
        self.left_out = {f"step_{t}.{name}": why for t in range(module.n_steps) for name, why in step.left_out.items()}
        self._begin()

    def stored(self) -> str | None:
        """The step's graph as JSON, of which that of all steps is made."""
        return self._step.stored()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrolled:
    """The graph of several steps.

    Attributes:
        graph: All of them.
        observations: From the step's inputs to those of the sequence, the state's at its beginning among them.
        copies: For each step, from the step's nodes to their copies in it.
    """

    graph: Graph
    observations: dict[Node, Node]
    copies: list[dict[Node, Node]]


def unroll(step: Graph, states: Collection[str], *, n_steps: int, read: int) -> Unrolled:
    """Copy a step's graph for each step of a sequence.

    Args:
        step: The graph of one step.
        states: Names of the state's parts: keys of inputs, and in their order the last outputs.
        n_steps: Steps of a sequence.
        read: The step whose scores are given; those after it are left out.
    """
    graph = Graph(nodes=[], inputs=(), outputs=(), constants=step.constants)
    n_outputs = len(step.outputs) - len(states)
    after = dict(zip(states, step.outputs[n_outputs:], strict=True))

    def add(node: Node, **changes: Any) -> Node:
        fields = {name: getattr(node, name) for name in node.__slots__ if name != "index"} | changes
        made = Node(len(graph.nodes), **fields)
        graph.nodes.append(made)
        return made

    shared = {node: add(node) for node in step.nodes if node.op in _LEAVES}
    inputs = {
        node: add(node, shape=node.sizes if node.owner in after else (node.sizes[0], n_steps, *node.sizes[1:]))
        for node in step.inputs
    }
    copies: list[dict[Node, Node]] = []
    for number in range(read + 1):
        here = dict(shared)
        for node, whole in inputs.items():
            if node.owner in after:  # a value of its own, so that a change of it leaves the step before alone
                before = copies[-1][after[node.owner]] if copies else whole
                here[node] = add(node, op="clone", call=torch.ops.aten.clone.default, args=(before,), owner=None)
            else:
                call = torch.ops.aten.select.int
                here[node] = add(node, op="select", call=call, args=(whole, 1, number), owner=None)
        for node in step.nodes:
            if node not in here:
                args, kwargs = _moved(node.args, here), _moved(node.kwargs, here)
                here[node] = add(node, args=args, kwargs=kwargs)
        for node, other in step.alternatives.items():
            triggers = frozenset(here[trigger] for trigger in other.triggers)
            graph.alternatives[here[node]] = Alternative(triggers=triggers, definition=here[other.definition])
        copies.append(here)
    graph.inputs = tuple(inputs.values())
    graph.outputs = tuple(copies[read][node] for node in step.outputs[:n_outputs])
    return Unrolled(graph=graph, observations=inputs, copies=copies)


def _moved(value: object, copies: Mapping[Node, Node]) -> object:
    if isinstance(value, Node):
        return copies[value]
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, copies) for item in value)
    if isinstance(value, Mapping):
        return {key: _moved(item, copies) for key, item in value.items()}
    return value


def _points(step: GraphEngine, unrolled: Unrolled, read: int) -> list[tuple[str, Point]]:
    """The hook points of all steps, the sequence before them and the scores that are read last."""
    whole: list[Point] = []
    inside: list[Point] = []
    for point in step.points.values():
        if point.kind == "observation" and point.address.node.op == "input":
            node = unrolled.observations[point.address.node]
            axes: tuple[Axis, ...] = (point.axes[0], "step", *point.axes[1:])
            whole.append(replace(point, axes=axes, address=Address(node=node, layout=Layout.of(node))))
    for number, copies in enumerate(unrolled.copies):
        for name, point in step.points.items():
            if point.kind == "observation" and point.address.node.op == "input":
                continue
            address = replace(point.address, node=copies[point.address.node])
            kind = "layer" if point.kind == "output" else point.kind
            inside.append(replace(point, name=at_step(name, number), kind=kind, address=address))
    ends = [
        replace(point, address=replace(point.address, node=unrolled.copies[read][point.address.node]))
        for point in step.points.values()
        if point.kind == "output"
    ]
    return [(point.name, point) for point in (*whole, *inside, *ends)]


def step_to_read(n_steps: int, read: int | None, *, is_recurrent: bool) -> int:
    """The step whose scores an unrolled policy gives: the last, unless another one is named.

    Raises:
        StateError: The policy has no state, or there is no such step.
    """
    if not is_recurrent:
        raise StateError(
            "There is nothing to unroll.",
            given=f"a policy without a state, {n_steps} steps",
            expected="a recurrent policy",
            fix="wrap a recurrent module with state=...",
        )
    last = n_steps - 1
    if not 0 <= (last if read is None else read) <= last:
        raise StateError(
            "There is no such step to read.",
            given=f"read={last if read is None else read}",
            expected=f"0 to {last}, of {n_steps} steps",
            fix="read=None reads the last",
        )
    return last if read is None else read


def at_step(name: str, step: int) -> str:
    """The name of a step's hook point in the graph of several."""
    return f"step_{step}.{name}"


def in_step(name: str) -> tuple[int | None, str]:
    """The step that a name stands in, None for none, and its name there.

    Example:
        >>> in_step("step_3.lstm.hook_h"), in_step("hook_obs")
        ((3, 'lstm.hook_h'), (None, 'hook_obs'))
    """
    found = _IN_STEP.fullmatch(name)
    return (int(found[1]), found[2]) if found else (None, name)


def located(site: Site, known: Collection[str]) -> Site:
    """A site by the name that its step has in the graph of several: itself where it selects none.

    Raises:
        SiteError: There is no such step, or several are selected at once.
    """
    chosen = dict(site.selection)
    if site.name in known or "step" not in chosen:
        return site
    steps = sorted(
        {number for name in known for number, inner in [in_step(name)] if inner == site.name and number is not None}
    )
    step = chosen.pop("step")
    if not steps:
        return site  # what it names is told by whoever looks it up
    if step not in steps:
        raise SiteError(
            f"No step of the sequence that leads to the scores is {step!r}."
            if not isinstance(step, tuple)
            else "A site of a sequence stands at one step.",
            given=f"{site}",
            expected=f"a step from {steps[0]} to {steps[-1]}",
            fix="a tuple of sites is changed together: [(Site(name, step=0), Site(name, step=1))]"
            if isinstance(step, tuple)
            else "give a longer sequence, or read the scores of a later step: policy.unrolled(n_steps, read=…)",
        )
    return Site(at_step(site.name, step), **chosen)  # type: ignore[arg-type]  # the site was made of it
