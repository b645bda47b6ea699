"""Programs: flat Python functions generated from the graph for just what one call needs.

A program takes the observation, values given for some points (everything before them is then left out) and one
interceptor per hooked point, and returns the values asked for. It reads parameters through their owners' dicts and
frees each tensor after its last use. Cost: compiled once per set of points, in about a millisecond.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlmech.core.conditions import conditions
from rlmech.core.graph import Graph, Node
from rlmech.core.layout import Layout
from rlmech.core.operations.table import known
from rlmech.untyped import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a hook point lies: a node, and how its value is shown."""

    node: Node
    layout: Layout


Interceptor = Callable[[Tensor], Tensor]
Program = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Interceptor]], tuple[Tensor, ...]]
"""(observation arrays, given node values, interceptors) -> values."""


def compile_program(
    graph: Graph, *, returned: Sequence[Node], given: Sequence[Node] = (), hooked: Sequence[Node] = ()
) -> Program:
    """Generate the program that computes some nodes.

    Args:
        graph: The graph.
        returned: Nodes whose values, after their hooks, are returned, in order.
        given: Nodes whose values are passed in instead of computed.
        hooked: Nodes whose values pass through an interceptor; computed even where nothing returned needs them.
    """
    return _Writer(graph, given=given, hooked=hooked).write(returned)


class _Writer:
    def __init__(self, graph: Graph, *, given: Sequence[Node], hooked: Sequence[Node]) -> None:
        self.graph, self.given, self.hooked = graph, list(given), list(hooked)
        self.conditions = conditions(graph)
        self.bound: JsonObject = {}
        self.owners: dict[int, str] = {}
        replaced = {*given, *hooked}
        self.definition = {
            node: alternative.definition
            for node, alternative in graph.alternatives.items()
            if alternative.triggers & replaced and node not in self.given
        }

    def write(self, returned: Sequence[Node]) -> Program:
        order = self._needed(returned)
        last_use = self._last_uses(order, returned)
        lines = ["def run(X, G, H):"]
        if any(self._reads_batch(node) for node in order):
            lines.append(" b = X[0].shape[0]")
        for place, node in enumerate(order):
            if node.op == "parameter":
                continue
            value = self._expression(node)
            if node in self.hooked:
                value = f"H[{self.hooked.index(node)}]({value})"
            lines.append(f" {self._name(node)} = {value}")
            dead = [self._name(other) for other in last_use.get(place, ())]
            if dead:
                lines.append(f" del {', '.join(dead)}")
        lines.append(f" return ({''.join(self._name(node) + ', ' for node in returned)})")
        source = "\n".join(lines)
        namespace = dict(self.bound)
        exec(compile(source, "<rlmech program>", "exec"), namespace)  # our own text, built above
        program = namespace["run"]
        program.source = source
        return program

    def _sources(self, node: Node) -> Iterable[Node]:
        if node in self.given:
            return ()
        definition = self.definition.get(node)
        return (definition,) if definition is not None else node.inputs()

    def _needed(self, returned: Sequence[Node]) -> list[Node]:
        """What is computed or passed in, in order; sizes of the batch only where they are hooked."""
        order = self.graph.computed_order(
            [*returned, *self.hooked], replaced={*self.given, *self.hooked}, cut=self.given
        )
        return [*self.given, *(node for node in order if node.op != "sym_size" or node in self.hooked)]

    def _last_uses(self, order: Sequence[Node], returned: Sequence[Node]) -> dict[int, list[Node]]:
        last: dict[Node, int] = {}
        for place, node in enumerate(order):
            last[node] = place
            for source in self._sources(node):
                last[source] = place
        dying: dict[int, list[Node]] = {}
        for node, place in last.items():
            if node not in returned and node.op not in ("parameter", "sym_size") and node.shape is not None:
                dying.setdefault(place, []).append(node)
        return dying

    def _reads_batch(self, node: Node) -> bool:
        if node in self.given:
            return False
        return self._is_reshape(node) or any(source.op == "sym_size" for source in self._sources(node))

    @staticmethod
    def _is_reshape(node: Node) -> bool:
        """Whether its sizes are all there is to it; `expand` makes no copy, as a reshape may."""
        return known(node.op).moves == "reshape" and node.op != "expand"

    def _name(self, node: Node) -> str:
        if node.op == "parameter":
            return f"{self._owner(node)}['{node.args[0]}']"
        if node.op == "sym_size":
            return "b"
        return f"v{node.index}"

    def _owner(self, node: Node) -> str:
        key = id(node.owner)
        if key not in self.owners:
            self.owners[key] = f"p{len(self.owners)}"
            self.bound[self.owners[key]] = node.owner
        return self.owners[key]

    def _expression(self, node: Node) -> str:
        if node in self.given:
            return f"G[{self.given.index(node)}]"
        if node in self.definition:
            return self._name(self.definition[node])
        if node.op == "input":
            value = f"X[{self.graph.inputs.index(node)}]"
            return f"{value}.bool()" if node in self.conditions else value  # on a line between two states a real number
        if node.op == "constant":
            self.bound["C"] = self.graph.constants
            return f"C[{node.args[0]!r}]"
        return self._call(node)

    def _call(self, node: Node) -> str:
        args = [self._text(argument) for argument in node.args]
        written = known(node.op).written
        if self._is_reshape(node) and node.shape is not None:
            # reshape, for a hook may have put in other strides; the sizes known, for -1 is ambiguous at batch 0
            sizes = ("b" if size == -1 else f"b * {-size}" if size < 0 else str(size) for size in node.shape)
            return f"{args[0]}.reshape({', '.join(sizes)})"
        if not node.kwargs and written.infix and len(args) == 2:
            return f"{args[0]} {written.infix} {args[1]}"
        if not node.kwargs and written.function is not None:
            self.bound[node.op] = written.function
            return f"{node.op}({', '.join(args)})"
        if not node.kwargs and written.method and not isinstance(node.args[0], int):
            return f"{args[0]}.{written.method}({', '.join(args[1:])})"
        if node.op == "slice" and (narrow := self._narrow(node)):
            return narrow
        if node.call is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        function = f"f{node.index}"
        self.bound[function] = node.call
        keywords = [f"{key}={self._text(value)}" for key, value in node.kwargs.items()]
        return f"{function}({', '.join(itertools.chain(args, keywords))})"

    def _narrow(self, node: Node) -> str | None:
        if len(node.args) < 4:  # to the end, as decompositions write it
            return None
        source, dim, start, _, *step = node.args
        if step or dim == 0 or source.shape is None or node.shape is None or source.shape[dim] < 0:
            return None
        start = 0 if start is None else start + source.shape[dim] if start < 0 else start
        return f"{self._name(source)}.narrow({dim}, {start}, {node.shape[dim]})"

    def _text(self, value: Any) -> str:
        if isinstance(value, Node):
            return self._name(value)
        if isinstance(value, list | tuple):
            items = ", ".join(self._text(item) for item in value)
            if isinstance(value, list):
                return f"[{items}]"
            return f"({items},)" if items else "()"  # the size of a scalar, as in torch.zeros(())
        if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and value - value == 0):
            return repr(value)
        name = f"k{len(self.bound)}"
        self.bound[name] = value
        return name
