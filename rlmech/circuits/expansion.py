"""Every action score as a sum over the paths from the observation: directly, by one head, by one head into another.

    score_a = sum over paths  features_a(path) + bias_a(path),      path = (), (h), (h1, h2) ...

Attention patterns and norms' scales are held, and gates and tangents are as each state has them, so a path is a product
of matrices.
A head passes on what it reads (its OV), not where it looks: patching tells what a pattern does. Cost: one backward pass
for each action and each path that can be longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.circuits.held import HeldRun, linear_run
from rlmech.circuits.labels import Action, action_weights, policy_attrs, score_units
from rlmech.core.graph import Node
from rlmech.core.hold import hold
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError, ConfigError
from rlmech.results import storable

Head = tuple[str, int]
Path = tuple[Head, ...]
_STATES_AT_ONCE = 512


@explain_misuse
def path_expansion(
    policy: HookedPolicy,
    obs: Observation,
    *,
    better: Action | None = None,
    worse: Action | None = None,
    longest: int = 2,
) -> xr.Dataset:
    """What each path through the heads contributes to each action's score, or to a gap between two actions.

    Args:
        policy: A policy with attention; around it curves such as tanh act by their tangents at each state, and layer
            norms keep the scale that they have.
        obs: States.
        better: With `worse`: the action whose lead is explained, by name or number.
        worse: The action that it leads over.
        longest: Most heads on a path; what longer ones carry goes into `longer`.

    Returns:
        `features[batch, path, action]`, what the observation sends down a path; `bias[batch, path, action]`, what the
        constants do that enter on it (biases, and what saturated gates and tangents add); `longer[batch, action]`; and
        `total[batch, action]`, the policy's own score, all in the unit of the scores, positive for the action (or for
        the better one). `remainder[batch, action]` is what features and biases summed over paths, and
        `longer`, lack to give `total`, measured: rounding, as the tangents meet the policy at each state; its largest
        size is the attribute `completeness_error`. Coordinate `path` names the
        heads in their order, `direct` for none; `n_heads` counts them. With a gap, `action` is the one gap.

    Raises:
        AttentionError: No attention, or something bends that is no curve of each number (softmax outside of attention).
        ConfigError: Only one of `better` and `worse`, an unknown action, or `longest` below 0.
        EngineError: The policy runs on the eager engine.
        ObservationError: The observation does not fit, or is not made of real numbers.

    Source:
        Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "path expansion".

    Exact on each state, with patterns, gates, norms' scales and curves' tangents held.

    Example:
        >>> import torch
        >>> import rlmech as rlm
        >>> from rlmech.circuits.expansion import path_expansion
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> found = path_expansion(policy, torch.rand(3, 15, 7), better="FASTER", worse="SLOWER")
        >>> [str(path) for path in found.path.values]
        ['direct', 'head 0', 'head 1', 'head 2', 'head 3']
    """
    policy = policy.fitting(obs)
    if longest < 0:
        raise ConfigError(
            "A path has no fewer than 0 heads.", given=f"longest={longest}", expected="0 or more", fix="longest=2"
        )
    weights, names = action_weights(policy, better, worse)
    arrays = policy.coerce(obs)
    expansion = _Expansion(policy, longest)
    parts: list[_Shares] = []
    for rows in torch.arange(len(arrays[0])).split(_STATES_AT_ONCE):
        parts.append(expansion.of(tuple(array[rows] for array in arrays), weights))
    return _dataset(policy, expansion, parts, names, gap=better is not None, longest=longest)


@dataclass(slots=True, kw_only=True)
class _Shares:
    """The terms of some states, `[action][path] -> [batch]`."""

    total: Tensor
    features: list[dict[Path, Tensor]] = field(default_factory=list[dict[Path, Tensor]])
    bias: list[dict[Path, Tensor]] = field(default_factory=list[dict[Path, Tensor]])
    longer: list[Tensor] = field(default_factory=list[Tensor])


class _Expansion:
    """The cuts of a policy, one behind the heads of each block, and what lies before each of them."""

    def __init__(self, policy: HookedPolicy, longest: int) -> None:
        self.policy, self.longest = policy, longest
        engine = policy.graph_engine
        if not policy.attention:
            raise AttentionError(
                "The policy has no attention, hence no paths through heads.",
                given=type(policy.module).__name__,
                expected="a policy with attention",
                fix="patch or ablate its layers instead: rlm.ablation_sweep",
            )
        self.scores = next(point.address for point in engine.points.values() if point.kind == "output")
        self.z = {path: engine.points[block.names["z"]].address for path, block in policy.attention.items()}
        self.patterns = [engine.points[block.names["pattern"]].address.node for block in policy.attention.values()]
        self.block_at: dict[Node, str] = {address.node: path for path, address in self.z.items()}
        self.before: dict[Node, list[str]] = {}
        waiting = [self.scores.node]
        while waiting:  # blocks that only a state value reads are on no path
            end = waiting.pop()
            if end not in self.before:
                self.before[end] = self._before(end)
                waiting += [self.z[path].node for path in self.before[end]]

    def _before(self, end: Node) -> list[str]:
        """The blocks whose heads reach a node without passing another block's, in the order of the graph."""
        held = hold(self.policy, norms=True, cut=[node for node in self.block_at if node is not end])
        return [path for node, path in self.block_at.items() if node is not end and held.reaches(node, end)]

    def paths(self) -> list[Path]:
        """All paths of at most `longest` heads, the short ones first."""
        found: list[Path] = [()]
        newest: list[Path] = [()]
        for _ in range(self.longest):
            newest = [
                ((block, head), *path)
                for path in newest
                for block in self.before[self._end(path)]
                for head in range(self.policy.attention[block].n_heads)
            ]
            found += newest
        return found

    def _end(self, path: Path) -> Node:
        return self.z[path[0][0]].node if path else self.scores.node

    def of(self, arrays: Sequence[Tensor], weights: Tensor) -> _Shares:
        """The terms of some states; `weights` is `[term action]`, one row for each score or gap."""
        ends = (self.scores.node, *self.block_at)
        program = self.policy.graph_engine.program(returned=(*ends, *self.patterns))
        with torch.no_grad():
            values = dict(zip((*ends, *self.patterns), program(tuple(arrays), (), ()), strict=True))
        cuts = {node: values[node] for node in self.block_at}
        patterns = {node: values[node] for node in self.patterns}
        runs = {
            end: linear_run(self.policy, arrays, end, cuts=cuts, patterns=patterns, curves="tangent")
            for end in self.before
        }
        scores = self.scores.layout.show(values[self.scores.node])
        shares = _Shares(total=scores @ weights.to(scores).T)
        for weight in weights.to(scores):
            on_scores = self.scores.layout.restore(weight.expand_as(scores))
            shares.features.append({})
            shares.bias.append({})
            shares.longer.append(torch.zeros_like(scores[:, 0]))
            self._expand(runs, (), on_scores, shares)
        return shares

    def _expand(self, runs: dict[Node, HeldRun], path: Path, weights: Tensor, shares: _Shares) -> None:
        """Split what arrives at a path's end into what came directly, and what came through each head before it."""
        end = self._end(path)
        run = runs[end]
        if not run.end.requires_grad:
            slopes: tuple[tuple[Tensor, ...], dict[Node, Tensor]] = ((), {})
        else:
            slopes = run.pull(weights)
        by_rows = self.z[path[0][0]].layout if path else self.scores.layout
        features = sum(
            (_rows(slope * array) for slope, array in zip(slopes[0], run.arrays, strict=False)),
            torch.zeros_like(shares.longer[-1]),
        )
        arrived = _rows(by_rows.show(weights * run.end.detach()))
        through = torch.zeros_like(features)
        for node, slope in slopes[1].items():
            layout = self.z[self.block_at[node]].layout
            shown = layout.show(slope)
            by_head = (shown * layout.show(run.cuts[node].detach())).sum((1, 3))
            through += by_head.sum(1)
            if self.block_at[node] not in self.before[end]:
                continue
            for head in range(by_head.shape[1]):
                if len(path) == self.longest:
                    shares.longer[-1] += by_head[:, head]
                    continue
                alone = torch.zeros_like(shown)
                alone[:, :, head] = shown[:, :, head]
                self._expand(runs, ((self.block_at[node], head), *path), layout.restore(alone), shares)
        shares.features[-1][path] = features.detach()
        shares.bias[-1][path] = (arrived - features - through).detach()


def _rows(values: Tensor) -> Tensor:
    """The sum over all axes but the batch."""
    return values.detach().flatten(1).sum(1)


def _dataset(
    policy: HookedPolicy,
    expansion: _Expansion,
    parts: Sequence[_Shares],
    names: Sequence[Any],
    *,
    gap: bool,
    longest: int,
) -> xr.Dataset:
    paths = expansion.paths()
    single = len(policy.attention) == 1

    def gathered(term: str) -> np.ndarray:
        return np.concatenate([_stacked(getattr(part, term), paths) for part in parts])

    longer = np.concatenate([torch.stack(part.longer, -1).cpu().numpy() for part in parts])
    total = np.concatenate([part.total.detach().cpu().numpy() for part in parts])
    features, bias = gathered("features"), gathered("bias")
    remainder = total - features.sum(1) - bias.sum(1) - longer
    units = {"units": score_units(policy)}
    return storable(
        xr.Dataset(
            {
                "features": (("batch", "path", "action"), features, units),
                "bias": (("batch", "path", "action"), bias, units),
                "remainder": (("batch", "action"), remainder, units),
                "longer": (("batch", "action"), longer, units),
                "total": (("batch", "action"), total, units),
            },
            coords={
                "path": [_name(path, single=single) for path in paths],
                "n_heads": ("path", [len(path) for path in paths]),
                "action": list(names),
            },
        ),
        policy_attrs(
            policy,
            metric="action gap" if gap else "action score",
            held="attention patterns, gates, norms' scales and tangents, as in each state",
            completeness_error=float(np.abs(remainder).max(initial=0.0)),
            longest=longest,
        ),
    )


def _stacked(terms: Sequence[dict[Path, Tensor]], paths: Sequence[Path]) -> np.ndarray:
    """`[batch path action]`."""
    return torch.stack([torch.stack([term[path] for path in paths], 1) for term in terms], -1).cpu().numpy()


def _name(path: Path, *, single: bool) -> str:
    if not path:
        return "direct"
    return " > ".join(f"head {head}" if single or not block else f"{block} head {head}" for block, head in path)
