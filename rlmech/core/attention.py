"""The attention layers of a policy as its users see them: sizes, weights per head as they are now, hook names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jaxtyping import Float
from torch import Tensor

from rlmech.core.attention_nodes import Found, OutputProjection, Role, Source, value_of
from rlmech.core.graph import Graph
from rlmech.errors import AttentionError, nearest


class AttentionBlock:
    """One attention layer of a policy: its sizes, its weights per head, as they are now, and its hook names.

    Attributes:
        path: Path of the module it stands in; empty for the root.
        n_heads: Number of heads.
        d_head: Size of a head's queries, keys and values.
        scale: What scores are multiplied with, 1/sqrt(d_head) as a rule.
        names: Hook name of each role: `q k v attn_scores pattern z`, and `mask result attn_out` where there are.
        reasons: For what is not offered: why.
    """

    def __init__(self, graph: Graph, found: Found, *, path: str, names: Mapping[Role, str]) -> None:
        self.path, self.scale = path, found.scale
        self.n_heads, self.d_head = (found.q or found.z).layout.canonical_shape[2:]
        self.reasons = dict[str, str](found.reasons)
        self.names: dict[Role, str] = _RoleNames(names, path=path, reasons=self.reasons)
        self._graph, self._found = graph, found

    def __repr__(self) -> str:
        return f"AttentionBlock({self.path!r}, n_heads={self.n_heads}, d_head={self.d_head})"

    @property
    def d_model(self) -> int:
        """Size of what the queries are read from."""
        return self.W_Q.shape[1]

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights."""
        return self._projection("q")[0]

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights."""
        return self._projection("k")[0]

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights."""
        return self._projection("v")[0]

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights."""
        output = self._output()
        return output.split(value_of(self._graph, output.weight))

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"] | None:
        """Query bias, or None."""
        return self._projection("q")[1]

    @property
    def b_K(self) -> Float[Tensor, "head d_head"] | None:
        """Key bias, or None."""
        return self._projection("k")[1]

    @property
    def b_V(self) -> Float[Tensor, "head d_head"] | None:
        """Value bias, or None."""
        return self._projection("v")[1]

    @property
    def b_O(self) -> Float[Tensor, " d_model"] | None:
        """Output bias, or None."""
        output = self._output()
        return None if output.bias is None else value_of(self._graph, output.bias)

    def _projection(self, source: Source) -> tuple[Tensor, Tensor | None]:
        if source not in self._found.projections:
            raise self._refuse(f"W_{source.upper()}", source)
        projection = self._found.projections[source]
        bias = None if projection.bias is None else value_of(self._graph, projection.bias)
        return projection.split(value_of(self._graph, projection.weight), bias)

    def _output(self) -> OutputProjection:
        if self._found.output is None:
            raise self._refuse("W_O", "output")
        return self._found.output

    def _refuse(self, what: str, part: str) -> AttentionError:
        return AttentionError(
            f"The attention in {self.path or 'the root'!r} has no {what}: {self.reasons[part]}.",
            given=what,
            expected="a single linear layer whose rows are entities and whose columns are heads",
            fix=f"use the hook points that there are: {', '.join(self.names.values())}",
        )


class _RoleNames(dict[Role, str]):
    """Hook names by role; asking for a role that is not offered is an error with the reason."""

    def __init__(self, names: Mapping[Role, str], *, path: str, reasons: Mapping[str, str]) -> None:
        super().__init__(names)
        self.path, self.reasons = path, reasons

    def __missing__(self, role: Role) -> str:
        reason = self.reasons.get(role)
        raise AttentionError(
            f"The attention in {self.path or 'the root'!r} has no point {role!r}" + (f": {reason}." if reason else "."),
            given=repr(role),
            expected=f"one of {', '.join(self)}",
            fix="use the hook points that there are",
        )


class AttentionBlocks(Mapping[str, AttentionBlock]):
    """The attention layers of a policy by module path; asking for one that failed its check raises with the reason."""

    def __init__(self, blocks: Mapping[str, AttentionBlock], reasons: Mapping[str, str]) -> None:
        self._blocks, self._reasons = dict(blocks), dict(reasons)

    def __getitem__(self, path: str) -> AttentionBlock:
        if path in self._blocks:
            return self._blocks[path]
        close = nearest(path, self._blocks)
        reason = self._reasons.get(path)
        raise AttentionError(
            f"There is no attention block at {path!r}" + (f": {reason}." if reason else "."),
            given=repr(path),
            expected=f"one of {list(self._blocks)}" if self._blocks else "nothing: no attention was found",
            fix=f"did you mean {close[0]!r}?" if close else "policy.attention lists the blocks",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)
