"""Every action score as a sum of named terms: what each head reads of each entity, the way past it, the biases.

    score = sum_{i,h,f} ov[i,h,f] + sum_f skip[f] + sum_s bias[s],    ov[i,h,f] = x[i,f] d score / d x[i,f] by head h

The gradient is that of the observation's own linear region, or of the tangent there, attention patterns frozen; the
policy is its tangent at the observation, so nothing remains but rounding. Cost: a
forward pass, a backward pass to the attention for each action and one behind it for each action and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from einops import einsum, rearrange
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.readouts import (
    ObservedArray,
    Readouts,
    array,
    as_variables,
    made_by,
    observed_arrays,
    readouts,
    scores_of,
)
from rlmech.attribution.regions import FROZEN
from rlmech.circuits.frozen import Frozen, Source, freeze, offsets
from rlmech.circuits.labels import score_units
from rlmech.core.attention import AttentionBlock
from rlmech.core.graph import Node
from rlmech.core.masked import is_masked, weighed
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.program import Address
from rlmech.errors import AttentionError, MetricError, ShapeError
from rlmech.results import storable

ROWS_AT_ONCE = 256
"""Rows of a chunk."""
_ROUNDING = 1024
"""Epsilons, relative to the sum of all terms' sizes, within which terms add up."""

Terms = dict[str, Tensor]


@explain_misuse
def attribute_actions(
    policy: HookedPolicy, obs: Observation, *, better: int | str | None = None, worse: int | str | None = None
) -> xr.Dataset:
    """Split each action's score, or one gap between actions, into named terms that add up to it.

    Args:
        policy: A policy whose layers are linear, gated or curved (tanh, GELU...); patterns and masks are frozen.
        obs: A batch of observations.
        better: Explain this action alone, by name or number; None for all of them.
        worse: The score of `better` less that of this one.

    Returns:
        All in the unit of the scores; positive raises the score. `total[batch, action]`, and terms that add up to it
        when each is summed over its own axes:
        `ov[batch, action, entity, head, feature]`: through the attention head (the last one on the way where several
        layers follow each other; `ov_<path>` for each of several blocks), by the feature of the observation;
        `skip[batch, action, feature]` or with all observation axes: past every attention block (`input` with all
        observation axes where there is none); the ego's alone where no other entity has such a way;
        `bias[batch, action, source]`: what each bias and constant adds, by whatever way; of a curve what its tangent at
        the observation adds, its value less its slope times what it reads.
        `remainder[batch, action]`, where there are curves: what the others lack to give `total`, measured, its largest
        size in the attribute `completeness_error`. Terms of a tangent say what small changes do, `local_affine` with a
        box how far that holds.
        A single gap has one `action`, named `better - worse`. Arrays of a dict observation have terms of their own,
        `<term>_<key>`.

    Raises:
        EngineError: The policy runs on the eager engine, or something on the way bends between its gates.
        AttentionError: Heads or entities are mixed on the way, so that no term belongs to one of them.
        MetricError: No such action, or a gap between two actions that are both masked with -inf.

    Source:
        Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "Path expansion"; ReLU gates as in
        Srinivas and Fleuret 2019, *Full-Gradient Representation for Neural Network Visualization*, arXiv 1905.00780.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.attribution.action_terms import attribute_actions
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> terms = attribute_actions(policy, torch.rand(2, 15, 7))
        >>> terms.ov.dims, terms.skip.dims
        (('batch', 'action', 'entity', 'head', 'feature'), ('batch', 'action', 'feature'))
        >>> again = terms.ov.sum(("entity", "head", "feature")) + terms.skip.sum("feature") + terms.bias.sum("source")
        >>> bool(abs(again - terms.total).max() < 1e-5 * abs(terms.total).max())
        True
    """
    policy = policy.fitting(obs)
    scores_at, rows = scores_of(policy), readouts(policy, better=better, worse=worse)
    plan = _plan(policy, scores_at)
    arrays = policy.coerce(obs)
    parts: list[Terms] = []
    for start in range(0, max(1, len(arrays[0])), ROWS_AT_ONCE):
        variables = as_variables([value[start : start + ROWS_AT_ONCE] for value in arrays], policy)
        parts.append(_terms(plan, scores_at, variables, rows))
    terms = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    _refuse_undefined(terms["total"])
    if not plan.curved:  # else what is missing is told
        _refuse_incomplete(policy, terms)
    return _result(policy, plan, rows, terms)


def _refuse_undefined(total: Tensor) -> None:
    rows = total.isnan().any(-1).nonzero()[:, 0]
    if len(rows):
        raise MetricError(
            "There is no gap between two actions that are both masked.",
            given=f"scores of -inf for both in {len(rows)} of {len(total)} rows, the first one {int(rows[0])}",
            expected="an action that may be taken in each row",
            fix="leave these rows out, or explain each action by itself: attribute_actions(policy, obs)",
        )


def _refuse_incomplete(policy: HookedPolicy, terms: Terms) -> None:
    total = terms["total"]
    parts = [value.flatten(2).double() for name, value in terms.items() if name != "total"]
    scale = sum((part.abs().sum(-1) for part in parts), total.abs().double())
    missing = (total.double() - sum((part.sum(-1) for part in parts), torch.zeros_like(scale))).abs()
    wrong = total.isfinite() & (missing > _ROUNDING * torch.finfo(total.dtype).eps * scale)
    if bool(wrong.any()):
        raise EngineError(
            "The terms do not add up to the scores.",
            given=f"{float(missing[wrong].max()):.3g} missing, in {int(wrong.any(-1).sum())} of {len(total)} rows",
            expected="terms that add up to the scores, but for rounding",
            fix=f"report {type(policy.module).__name__}: one of its operations adds what is not told; "
            "local_affine and rlm.ablation_sweep need no terms",
        )


@explain_misuse
def centre_actions(result: xr.Dataset) -> xr.Dataset:
    """Take off each term's mean over the actions: raw action values are mostly the value of the state.

    The mean is over the actions that are not masked in that row; where all are, nothing is taken off.

    Args:
        result: Of `attribute_actions`, for all actions.

    Returns:
        The same with every term centred; the terms add up to the centred total.

    Raises:
        ShapeError: There is one action only, or none.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
        >>> from rlmech.attribution import centre_actions
        >>> centred = centre_actions(rlm.attribute_actions(policy, torch.rand(4, 15, 7)))
        >>> bool(abs(centred.total.mean("action")).max() < 1e-5)
        True
    """
    n_actions = result.sizes.get("action", 0)
    if n_actions < 2:
        raise ShapeError(
            "Only scores of several actions can be centred.",
            given=f"{n_actions} actions",
            expected="all actions: attribute_actions without better and worse",
            fix="leave out better and worse; a gap needs no centring",
        )
    shown = ~xr.DataArray(is_masked(torch.from_numpy(result["total"].to_numpy())).numpy(), dims=result["total"].dims)
    with xr.set_options(keep_attrs=True):
        data = {
            str(name): values - values.where(shown).mean("action").fillna(0) if "action" in values.dims else values
            for name, values in result.data_vars.items()
        }
    return storable(xr.Dataset(data), result.attrs | {"centred": "each term less its mean over actions"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Through:
    """A block: where its parts lie, and the policy up to its values."""

    name: str
    pattern: Address
    v: Address
    z: Address
    before: Frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is run: the whole policy, the part of it that is left when attention is cut out, and the blocks."""

    whole: Frozen
    around: Frozen
    blocks: tuple[_Through, ...]
    sources: tuple[str, ...]
    passing: tuple[str | None, ...]

    @property
    def curved(self) -> bool:
        """Whether smooth curves are on the way, so that the map is a tangent."""
        return bool(self.around.curves or any(block.before.curves for block in self.blocks))


def _plan(policy: HookedPolicy, scores_at: Address) -> _Plan:
    whole = freeze(policy, (scores_at.node,), curves="tangent")
    at = {
        path: {role: policy.points[name].address for role, name in b.names.items()}
        for path, b in policy.attention.items()
    }
    paths = [path for path in at if at[path]["z"].node in whole.varying]
    for path in paths:
        _refuse_scrambled(policy.attention[path])
    around = freeze(policy, (scores_at.node,), given=[at[path]["z"].node for path in paths], curves="tangent")
    blocks: list[_Through] = []
    for path in paths:
        name = "ov" if len(paths) == 1 else f"ov_{path.replace('.', '_')}"
        v = policy.points[policy.attention[path].names["v"]].address  # words where the heads share their values
        before = freeze(policy, (v.node,), curves="tangent")
        blocks.append(_Through(name=name, pattern=at[path]["pattern"], v=v, z=at[path]["z"], before=before))
    named = dict.fromkeys(s.name for part in (*(b.before for b in blocks), around) for s in part.sources)
    passing = tuple(_passing(around, node, bool(blocks)) for node in policy.graph_engine.graph.inputs)
    return _Plan(whole=whole, around=around, blocks=tuple(blocks), sources=tuple(named), passing=passing)


def _refuse_scrambled(block: AttentionBlock) -> None:
    if "output" in block.reasons:
        raise AttentionError(
            f"What passes {block.path!r} belongs to no single head and entity: {block.reasons['output']}.",
            given=f"{block.path!r}",
            expected="heads whose outputs are combined linearly, entity by entity",
            fix="local_affine gives the exact map from the whole observation, without heads",
        )


def _passing(around: Frozen, node: Node, attentive: bool) -> str | None:  # noqa: FBT001
    """The term of what reaches the scores past attention: `input`, `skip`, `ego` for a skip of entity 0, or None."""
    readers = [user for user in around.varying if node in user.inputs()]
    if not attentive:
        return "input"
    if not readers and node not in around.ends:
        return None
    first = all(
        (user.op == "slice" and user.args[1:4] == (1, 0, 1)) or (user.op == "select" and user.args[1:3] == (1, 0))
        for user in readers
    )
    return "ego" if first and len(node.sizes) == 3 else "skip"


def _terms(plan: _Plan, scores_at: Address, variables: Sequence[Tensor], rows: Readouts) -> Terms:
    around, blocks = plan.around, plan.blocks
    behind = [node for block in blocks for node in (block.pattern.node, block.v.node, block.z.node)]
    befores = [source for block in blocks for source in block.before.sources]
    with torch.enable_grad():
        held = plan.whole.run(variables, [*behind, *_of(befores)]) if blocks else {}
        cuts = [held[block.z.node].detach().requires_grad_() for block in blocks]
        values = around.run(variables, [scores_at.node, *_of(around.sources)], given=cuts)
        scores = scores_at.layout.show(values[scores_at.node])
    terms: dict[str, list[Tensor]] = {}
    biases: list[Tensor] = []
    for weight in rows.weights:
        bias = torch.zeros(len(scores), len(plan.sources), dtype=scores.dtype, device=scores.device)
        targets = [*variables, *cuts, *(values[source.node] for source in around.sources)]
        slopes = _gradients(scores, weight.expand_as(scores), targets)
        n, m = len(variables), len(variables) + len(cuts)
        for place, (variable, slope) in enumerate(zip(variables, slopes[:n], strict=True)):
            terms.setdefault(f"around {place}", []).append(variable.detach() * slope)
        _add(plan, bias, around, around.sources, slopes[m:], values)
        for block, slope in zip(blocks, slopes[n:m], strict=True):
            mixed = _to_values(block, held, slope)
            for place, heads in enumerate(_by_head(block, held, mixed, variables)):
                terms.setdefault(f"{block.name} {place}", []).append(heads)
            sources = block.before.sources
            whole = _gradients(held[block.v.node], block.v.layout.restore(mixed), [held[s.node] for s in sources])
            _add(plan, bias, block.before, sources, whole, held)
        biases.append(bias)
    total = weighed(scores.detach(), rows.weights)
    return {"total": total, "bias": torch.stack(biases, 1), **{name: torch.stack(v, 1) for name, v in terms.items()}}


def _of(sources: Sequence[Source]) -> list[Node]:
    return [node for source in sources for node in (source.node, *source.reads)]


def _gradients(value: Tensor, weight: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not targets or not value.requires_grad:
        return tuple(torch.zeros_like(target) for target in targets)
    return torch.autograd.grad(value, targets, weight, retain_graph=True, materialize_grads=True)


def _add(
    plan: _Plan,
    bias: Tensor,
    part: Frozen,
    sources: Sequence[Source],
    slopes: Sequence[Tensor],
    values: dict[Node, Tensor],
) -> None:
    """Add the sources' shares to the columns of their names, in place."""
    if sources:
        gradients = {source.node: slope for source, slope in zip(sources, slopes, strict=True)}
        columns = torch.tensor([plan.sources.index(source.name) for source in sources], device=bias.device)
        bias.index_add_(
            1, columns, offsets(part, gradients, values, sources=sources).to(bias)
        )  # statistics are float64


def _to_values(block: _Through, held: dict[Node, Tensor], slope: Tensor) -> Tensor:
    """The gradient at the values, `[batch entity head d_head]`, given that at z, through the frozen pattern."""
    pattern, onward = block.pattern.layout.show(held[block.pattern.node]), block.z.layout.show(slope)
    if pattern.shape[2] == 1:  # an outer product, which is no matter for a matrix product
        return rearrange(pattern[:, :, 0], "batch head entity -> batch entity head 1") * onward
    return einsum(
        pattern.detach(), onward, "batch head query entity, batch query head d_head -> batch entity head d_head"
    )


def _by_head(block: _Through, held: dict[Node, Tensor], mixed: Tensor, variables: Sequence[Tensor]) -> list[Tensor]:
    """For each array of the observation what each head adds, the heads before the last axis."""
    parts: list[list[Tensor]] = [[] for _ in variables]
    for head in range(mixed.shape[2]):
        alone = torch.zeros_like(mixed)
        alone[:, :, head] = mixed[:, :, head]
        slopes = _gradients(held[block.v.node], block.v.layout.restore(alone), variables)
        for part, variable, slope in zip(parts, variables, slopes, strict=True):
            part.append(variable.detach() * slope)
    return [torch.stack(part, dim=-2) for part in parts]


def _result(policy: HookedPolicy, plan: _Plan, rows: Readouts, terms: Terms) -> xr.Dataset:
    unit, lead = score_units(policy), ("batch", "action")
    data = {
        "total": array(terms["total"], lead, units=unit),
        "bias": array(terms["bias"], (*lead, "source"), units=unit),
    }
    coords: dict[str, object] = {"action": list(rows.names), "source": list(plan.sources)}
    for place, observed in enumerate(observed_arrays(policy)):
        coords |= observed.coords
        around, passing = terms[f"around {place}"], plan.passing[place]
        if passing == "ego":
            data[observed.named("skip")] = array(around.sum(2), (*lead, *observed.dims[1:]), units=unit)
        elif passing is not None:
            data[observed.named(passing)] = array(around, (*lead, *observed.dims), units=unit)
        for block in plan.blocks:
            through = terms[f"{block.name} {place}"]
            data[observed.named(block.name)] = array(through, (*lead, *_with_head(observed)), units=unit)
            coords["head"] = list(range(through.shape[-2]))
    curved = plan.curved
    attrs = made_by(
        policy,
        "attribute_actions",
        frozen=FROZEN,
        exact="the terms, summed over their own axes, add up to total",
        kind="tangent" if curved else "affine",
        sign="positive raises the score",
    )
    if curved:
        given = [values for name, values in data.items() if name != "total"]
        summed = sum((v.sum([d for d in v.dims if d not in lead]) for v in given[1:]), given[0].sum("source"))
        remainder = data["total"] - summed
        data["remainder"] = array(remainder.values, lead, units=unit)
        attrs |= {"completeness_error": float(abs(remainder).max()) if remainder.size else 0.0}
    return storable(xr.Dataset(data, coords=coords), attrs)


def _with_head(observed: ObservedArray) -> tuple[str, ...]:
    return (*observed.dims[:-1], "head", observed.dims[-1])
