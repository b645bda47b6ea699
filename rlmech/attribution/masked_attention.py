"""Entities that leave by an attention's mask: what a policy gives for many subsets of them.

    z_S = sum over i in S of exp(score_i) v_i / sum over i in S of exp(score_i)

Scores, values, their exponentials and all that no vehicle reaches but through the attention (the ego's own embedding)
are computed once a row; for each subset there is one product with its mask, and what stands behind the attention.
Offered where one attention reads every entity in a row of its own and where the whole policy, run on a sample of
subsets of these very rows, gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from rlmech.core.attention import AttentionBlock
from rlmech.core.graph import Graph, Node
from rlmech.core.masked import agree, is_masked
from rlmech.core.policy import HookedPolicy
from rlmech.metrics.measure import BoundMetric

BLOCK_ROWS = 8192
LARGEST_SPREAD = 600.0
"""Of a row's attention scores: beyond it the exponentials of the lowest vanish in double precision."""
CHECKED_ROWS, CHECKED_SUBSETS = 64, 4
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
"""Largest difference from the whole policy, relative to the scale of the scores; other types are not offered."""


class MaskedAttention:
    """One attention of a policy, and rows of observations whose entities may leave.

    Args:
        policy: The policy.
        block: The attention.
        values: `[row entity feature]`.
        bound: The metric.
    """

    def __init__(self, policy: HookedPolicy, block: AttentionBlock, values: Tensor, bound: BoundMetric) -> None:
        self.policy, self.values, self.bound = policy, values, bound
        points, engine = policy.points, policy.graph_engine
        self.output = next(point for point in points.values() if point.kind == "output").address
        self.z = points[block.names["z"]].address
        self.value = points["hook_value"].address if "hook_value" in points else None
        ends = [self.output.node, *([] if self.value is None else [self.value.node])]
        self.beside = _read_beside(engine.graph, self.z.node, ends)
        self.rest = engine.program(returned=ends, given=[self.z.node, *self.beside])
        at = [points[block.names[role]].address for role in ("attn_scores", "v")]
        self.before = engine.program(returned=[*(address.node for address in at), *self.beside])
        with torch.no_grad():
            scores, v, *self.around = self.before((values,), (), ())
        scores, v = at[0].layout.show(scores), at[1].layout.show(v).double()
        self.scores = scores.double().masked_fill(is_masked(scores), -torch.inf)  # [row head query key]
        self.v = rearrange(v, "row key head d -> row head key d").contiguous()
        top = self.scores.amax(-1, keepdim=True)
        below = (top - self.scores).masked_fill(self.scores.isneginf(), 0)
        self.narrow = below.flatten(1).amax(1) < LARGEST_SPREAD  # by row
        weights = (self.scores - top).exp()
        weighted = torch.einsum("rhqk,rhkd->rkqhd", weights, self.v)
        self.shape = weighted.shape[2:]
        self.weighted = weighted.flatten(2)  # [row key (query head d)]
        self.weights = rearrange(weights, "row head query key -> row key (query head)")

    @classmethod
    def of(cls, policy: HookedPolicy, values: Tensor, present: Tensor, bound: BoundMetric) -> MaskedAttention | None:
        """The short way, where there is one that gives what the policy gives; else None."""
        if policy.engine != "graph" or policy.has_hooks or len(policy.attention) != 1 or not len(values):
            return None
        (block,) = policy.attention.values()
        if values.dtype not in TOLERANCE or not {"attn_scores", "v", "z"} <= set(block.names):
            return None
        keys = policy.hook_dict[block.names["attn_scores"]].labels.get("key")
        if keys is None or keys != policy.spec.entities:
            return None
        found = cls(policy, block, values, bound)
        return found if found._agrees(present) else None

    def measure(self, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The metric of some rows where only some entities are left, `[row subset]`.

        Args:
            rows: Which.
            kept: `[row subset entity]`: whose rows stay.
        """
        found = np.empty(kept.shape[:2])
        n_subsets = min(kept.shape[1], BLOCK_ROWS)
        n_rows = max(1, BLOCK_ROWS // max(1, n_subsets))
        for first in range(0, len(rows), n_rows):
            own = torch.from_numpy(rows[first : first + n_rows]).to(self.values.device)
            for start in range(0, kept.shape[1], n_subsets):
                part = torch.from_numpy(kept[first : first + n_rows, start : start + n_subsets]).to(self.values.device)
                scores, value = self._outputs(own, part)
                measured = self.bound(scores, pair=own.repeat_interleave(part.shape[1]), value=value)
                found[first : first + n_rows, start : start + n_subsets] = (
                    measured.double().cpu().unflatten(0, part.shape[:2]).numpy()
                )
        return found

    def _outputs(self, rows: Tensor, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        n = kept.shape[1]
        with torch.no_grad():
            z = self._mixed(rows, kept).to(self.values.dtype)
            given = [_repeated(value, rows, n) for value in self.around]
            # the observation's own rows tell the batch's size only: all that is read of them is given
            obs = _repeated(self.values, rows, n)
            scores, *value = self.rest((obs,), (self.z.layout.restore(z), *given), ())
            return self.output.layout.show(scores), None if self.value is None else self.value.layout.show(value[0])

    def _mixed(self, rows: Tensor, kept: Tensor) -> Tensor:
        """What each query gathers from those that are left, `[(row subset) query head d]`."""
        if bool(self.narrow[rows].all()):
            left = kept.double()
            above = (left @ self.weighted[rows]).unflatten(2, self.shape)
            below = (left @ self.weights[rows]).unflatten(2, self.shape[:2])
            return above.div_(below[..., None]).flatten(0, 1)
        left = self.scores[rows, None].masked_fill(~kept[:, :, None, None], -torch.inf)
        pattern = rearrange(left.softmax(-1), "row subset head query key -> row head (subset query) key")
        return rearrange(
            pattern @ self.v[rows], "row head (subset query) d -> (row subset) query head d", query=left.shape[3]
        )

    def _agrees(self, present: Tensor) -> bool:
        """Whether the whole policy says the same: of nobody but the ego, of everybody, and of some drawn at random."""
        generator = torch.Generator().manual_seed(0)
        n = min(len(self.values), CHECKED_ROWS)
        here, values = present[:n].cpu(), self.values[:n]
        drawn = torch.rand(n, CHECKED_SUBSETS, here.shape[1], generator=generator) < 0.5
        drawn[:, 0], drawn[:, 1] = False, True
        kept = (drawn | ~here[:, None]).to(values.device)  # rows of absent entities stay as they are
        kept[..., 0] = True
        scores, _ = self._outputs(torch.arange(n, device=values.device), kept)
        obs = torch.where(kept[..., None], values[:, None], 0)
        with torch.no_grad():
            alone = self.before((obs[:, 0],), (), ())[2:]
            whole = self.policy(obs.flatten(0, 1))
        limits = {"tolerance": TOLERANCE[values.dtype], "smallest_scale": 1e-3}
        unmoved = all(agree(one, other[:n], **limits) for one, other in zip(alone, self.around, strict=True))
        return unmoved and agree(scores, whole, **limits)


def _repeated(value: Tensor, rows: Tensor, n: int) -> Tensor:
    """A value's rows, each for `n` subsets; a view where there is one row."""
    chosen = value[rows]
    return chosen.expand(n, *chosen.shape[1:]) if len(rows) == 1 else chosen.repeat_interleave(n, 0)


def _read_beside(graph: Graph, start: Node, ends: Sequence[Node]) -> list[Node]:
    """The values that go into what follows a node and do not follow it themselves."""
    follows: dict[Node, bool] = {start: True}
    beside: dict[Node, None] = {}

    def visit(node: Node) -> bool:
        if node not in follows:
            definition = graph.definition_of(node, replaced=(start,))
            sources = [definition] if definition is not None else list(node.inputs())
            after = [source for source in sources if visit(source)]
            follows[node] = bool(after)
            if after:
                beside.update((s, None) for s in sources if s not in after and s.has_batch and s.op != "sym_size")
        return follows[node]

    for end in ends:
        if not visit(end):
            beside[end] = None
    return list(beside)
