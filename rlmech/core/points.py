"""Names, axes and addresses of all hook points of a graph.

`<path>.hook_out` for leaf layers, `<path>.<op>_<k>.hook_out` for functional ones, TransformerLens's names for
attention, `hook_obs` and the output heads. A module called again is `<path>@1`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from rlmech.axes import Axis
from rlmech.core.attention_nodes import Found, Role
from rlmech.core.axis_names import AxisNames
from rlmech.core.cells import LAYERS
from rlmech.core.graph import Graph, Node, depends_on_input
from rlmech.core.hook_point import Kind
from rlmech.core.layout import Layout
from rlmech.core.operations.table import known
from rlmech.core.program import Address
from rlmech.errors import ConfigError

OutputKind = Literal["q_values", "logits", "mean_action"]

ROLE_KINDS: dict[Role, Kind] = {
    "q": "query",
    "k": "key",
    "v": "value",
    "mask": "mask",
    "attn_scores": "scores",
    "pattern": "pattern",
    "z": "z",
    "result": "result",
    "attn_out": "attn_out",
}
ROLE_AXES: dict[Role, tuple[Axis, ...]] = {
    "q": ("batch", "entity", "head", "d_head"),
    "k": ("batch", "entity", "head", "d_head"),
    "v": ("batch", "entity", "head", "d_head"),
    "attn_scores": ("batch", "head", "query", "key"),
    "pattern": ("batch", "head", "query", "key"),
    "z": ("batch", "query", "head", "d_head"),
    "result": ("batch", "query", "head", "d_model"),
    "attn_out": ("batch", "query", "d_model"),
}
SCORES_NAME: dict[OutputKind, str] = {
    "q_values": "hook_q_values",
    "logits": "hook_logits",
    "mean_action": "hook_mean_action",
}
MOST_AXES = 6
STEPPED = "network"
"""Name of a recurrent module in the step that is traced."""
NORMALIZATION = "normalization"
"""Name of the submodule that an adapter puts before a policy: what it puts out is `hook_obs`."""
QUANTILES = "mean_over_quantiles"
"""Name of the submodule that an adapter puts behind a distributional one: what it reads is `hook_quantiles`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A hook point before it is bound to a policy."""

    name: str
    kind: Kind
    axes: tuple[Axis, ...]
    address: Address


def name_points(
    graph: Graph,
    module: nn.Module,
    *,
    root: str,
    blocks: dict[str, Found],
    output_kind: OutputKind,
    states: Sequence[str] = (),
) -> dict[str, Point]:
    """All hook points of a graph, in the order in which they are computed, the outputs last.

    Args:
        graph: The graph.
        module: What it was traced from.
        root: Module path that falls away.
        blocks: Attention blocks by path.
        output_kind: What the scores are.
        states: Names of the recurrent state's parts: keys of the last inputs, and in their order the last outputs.
    """
    return _Namer(graph, module, root=root, blocks=blocks, states=states).name(output_kind)


def strip_root(path: str, root: str) -> str:
    """A module path as seen from the network's root."""
    return path[len(root) :].lstrip(".") if root and (path == root or path.startswith(f"{root}.")) else path


class _Namer:
    def __init__(
        self, graph: Graph, module: nn.Module, *, root: str, blocks: dict[str, Found], states: Sequence[str]
    ) -> None:
        self.graph, self.module, self.root, self.blocks = graph, module, root, blocks
        self.after = dict(zip(states, graph.outputs[len(graph.outputs) - len(states) :], strict=True))
        self.axis_names = AxisNames(graph, blocks.values(), states=states)
        self.recurrent = any(known(node.op).kind == "recurrent" for node in graph.nodes)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.points: dict[str, Point] = {}

    def name(self, output_kind: OutputKind) -> dict[str, Point]:
        blocks = self.blocks
        in_attention = {node for block in blocks.values() for node in (block.softmax, block.pattern.node)}
        by_node: dict[Node, list[Point]] = {}
        found = (*self._observation(), *self._layers(in_attention), *self._attention(blocks), *self._cells())
        for point in (*found, *self._states({point.name for point in found})):
            by_node.setdefault(point.address.node, []).append(point)
        for node in self.graph.nodes:
            for point in by_node.get(node, ()):
                self.points[point.name] = point
        for point in self._outputs(output_kind):
            self.points[point.name] = point
        return self.points

    def _observation(self) -> list[Point]:
        points: list[Point] = []
        for node in self.graph.inputs:
            if node.owner in self.after:
                continue
            normalized = self._normalized(node.owner)
            end = f".{node.owner}" if node.owner else ""
            name = f"hook_obs_raw{end}" if normalized else f"hook_obs{end}"
            shape = node.sizes
            axes = self.axis_names.of_observation(node)
            if len(shape) > MOST_AXES:
                raise ConfigError(
                    "The observation has more axes than have names.",
                    given=f"{len(shape)} axes",
                    expected=f"at most {MOST_AXES}",
                    fix="flatten some of them inside the module",
                )
            if self.recurrent and len(shape) == 3:
                axes = ("batch", "step", "feature")
            points.append(
                Point(name=name, kind="observation", axes=axes, address=Address(node=node, layout=Layout.of(node)))
            )
            if normalized:
                address = Address(node=normalized, layout=Layout.of(normalized))
                points.append(Point(name=f"hook_obs{end}", kind="observation", axes=axes, address=address))
        return points

    def _normalized(self, key: str) -> Node | None:
        """What the policy's own layer of statistics makes of an observation."""
        scope = f"{NORMALIZATION}.{key}" if key else NORMALIZATION
        found = (node for node in reversed(self.graph.nodes) if self._scope(node) == scope and node.shape)
        return next(found, None)

    def _is_normalization(self, node: Node) -> bool:
        return self._scope(node).split(".")[0] == NORMALIZATION

    def _scope(self, node: Node) -> str:
        """Where a node stands in the user's module."""
        return strip_root(node.scope, STEPPED) if self.after else node.scope

    def _layers(self, in_attention: set[Node]) -> list[Point]:
        """What leaf modules put out, and every other operation that has a kind, as the k-th of its module."""
        ends = self._leaf_ends()
        points: list[Point] = []
        cells = {mark.scope for mark in self.graph.marks if isinstance(self._module(mark.scope), LAYERS)}
        for node in self.graph.nodes:
            if (
                self._is_normalization(node)
                or _is_mean_of_quantiles(node)
                or (node.scope in cells and ends.get(node.scope) is not node)
            ):
                continue
            kind = known(node.op).kind
            ends_leaf = ends.get(node.scope) is node
            if (kind is None or node in in_attention) and not ends_leaf:
                continue
            shown = self._first_output(node)
            if shown is None or not _has_batch(shown) or not depends_on_input(node):
                continue
            path = strip_root(node.scope, self.root)
            if ends_leaf:
                name = f"{path}.hook_out"
            else:
                op = node.op.lstrip("_")
                name = f"{path}.{op}_{self.counts[path, op]}.hook_out".lstrip(".")
                self.counts[path, op] += 1
            address = Address(node=shown, layout=Layout.of(shown))
            axes = self._axes(shown, address.layout)
            points.append(Point(name=name, kind=kind or "layer", axes=axes, address=address))
        return points

    def _leaf_ends(self) -> dict[str, Node]:
        """The last operation of each call of a module without children; the recurrent one where there is one."""
        ends: dict[str, Node] = {}
        for node in self.graph.nodes:
            if (
                node.synthetic
                or node.op in ("parameter", "constant", "input", "getitem", "dropout", "sym_size")
                or known(node.op).keeps_elements
            ):
                continue
            before = ends.get(node.scope)
            if before is not None and known(before.op).kind == "recurrent":
                continue
            ends[node.scope] = node
        ends |= {mark.scope: mark.node for mark in self.graph.marks if mark.role.endswith("h")}  # of the last layer
        return {scope: node for scope, node in ends.items() if self._is_leaf(scope)}

    def _first_output(self, node: Node) -> Node | None:
        if node.shape is not None:
            return node
        for other in self.graph.nodes:
            if other.op == "getitem" and other.args[0] is node and other.args[1] == 0:
                return other
        return None

    def _axes(self, node: Node, layout: Layout) -> tuple[Axis, ...]:
        rank = len(layout.canonical_shape)
        if rank > MOST_AXES:
            raise ConfigError(
                f"An activation in {node.scope or 'the root'!r} has more axes than have names.",
                given=f"{rank} axes",
                expected=f"at most {MOST_AXES}",
                fix="flatten some of them inside the module",
            )
        axes = self.axis_names.of(node, layout)
        return ("batch", "step", "neuron") if self.recurrent and rank == 3 and "channel" not in axes else axes

    def _attention(self, blocks: dict[str, Found]) -> list[Point]:
        points: list[Point] = []
        for path, block in blocks.items():
            prefix = f"{path}." if path else ""
            for role, address in block.addresses.items():
                axes = block.mask[1] if role == "mask" and block.mask else ROLE_AXES[role]
                points.append(
                    Point(name=f"{prefix}hook_{role}", kind=ROLE_KINDS[role], axes=axes, address=address)  # type: ignore[arg-type]
                )
        return points

    def _cells(self) -> list[Point]:
        """States and gates of torch's own recurrent layers."""
        points: list[Point] = []
        for mark in self.graph.marks:
            layer, _, role = mark.role.rpartition(".")
            path = strip_root(mark.scope, self.root)
            name = ".".join(part for part in (path, layer, f"hook_{role}") if part)
            address = Address(node=mark.node, layout=Layout.of(mark.node))
            axes: tuple[Axis, ...] = ("batch", "gate", "neuron") if role == "gates" else ("batch", "neuron")
            points.append(Point(name=name, kind="gate" if role == "gates" else "state", axes=axes, address=address))
        return points

    def _states(self, known: set[str]) -> list[Point]:
        """The state as it comes in, `<name>_pre`, and as it goes out where no layer of torch's has that name."""
        points: list[Point] = []
        inputs = {node.owner: node for node in self.graph.inputs}
        for name, after in self.after.items():
            axes = self._axes(after, Layout.of(after))
            ends = {f"{name}_pre": inputs[name]} | ({} if name in known else {name: after})
            for end, node in ends.items():
                points.append(
                    Point(name=end, kind="state", axes=axes, address=Address(node=node, layout=Layout.of(node)))
                )
        return points

    def _outputs(self, output_kind: OutputKind) -> list[Point]:
        scores, *rest = self.graph.outputs[: len(self.graph.outputs) - len(self.after)]
        shape = scores.shape or ()
        if len(shape) < 2 or shape[0] != -1 or len(shape) > 3:
            raise ConfigError(
                "The module does not return action scores.",
                given=f"an output of {len(shape)} axes" if shape else "an output that is no tensor",
                expected="a tensor [batch action], or a tuple that starts with it",
                fix="wrap the module in one whose forward returns the scores, and the state value second if any",
            )
        axes: tuple[Axis, ...] = ("batch", "action") if len(shape) == 2 else ("batch", "choice", "action")
        address = Address(node=scores, layout=Layout.of(scores))
        points = [Point(name=SCORES_NAME[output_kind], kind="output", axes=axes, address=address)]
        read = next((node.args[0] for node in self.graph.nodes if _is_mean_of_quantiles(node) and node.args), None)
        if isinstance(read, Node):  # axis_1 counts the quantiles
            address = Address(node=read, layout=Layout.of(read))
            points.insert(
                0, Point(name="hook_quantiles", kind="layer", axes=("batch", "axis_1", "action"), address=address)
            )
        if rest and rest[0].shape in ((-1,), (-1, 1)):
            layout = Layout(shape=rest[0].sizes, split=(-1,), order=(0,))
            points.append(
                Point(name="hook_value", kind="output", axes=("batch",), address=Address(node=rest[0], layout=layout))
            )
        return points

    def _module(self, scope: str) -> nn.Module | None:
        path = ".".join(part.partition("@")[0] for part in scope.split("."))
        try:
            return self.module.get_submodule(path)
        except AttributeError:
            return None

    def _is_leaf(self, scope: str) -> bool:
        module = self._module(scope)
        return (
            bool(scope)
            and module is not None
            and all(name == "parametrizations" for name, _ in module.named_children())
        )


def _is_mean_of_quantiles(node: Node) -> bool:
    return node.scope.rpartition(".")[2] == QUANTILES


def _has_batch(node: Node) -> bool:
    return bool(node.shape) and sum(size < 0 for size in node.sizes) == 1
