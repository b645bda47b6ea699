"""How strongly one attention head reads what an earlier head writes: Q-, K- and V-composition.

    score = |W_VO,1 R|_F / (|W_VO,1|_F |R|_F),     R = M W_QK,2  (Q),   M W_QK,2^T  (K),   M W_VO,2  (V)

M is the map from the earlier block's output to what the later one reads: the identity along a plain residual stream,
where this is the formula of Elhage et al. 2021; else the product of what lies between, gates and norms' scales as in
each state. Cost: a backward pass through what lies between for each column of the later block's q, k and v.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.circuits.feature_space import visible_keys
from rlmech.circuits.held import bends_of, linear_run
from rlmech.circuits.labels import policy_attrs
from rlmech.circuits.random_matrices import (
    NULLS,
    Null,
    Shape,
    against,
    check_draws,
    gaussian_compositions,
    rotated_compositions,
)
from rlmech.core.attention import AttentionBlock
from rlmech.core.attention_nodes import Source
from rlmech.core.hold import hold
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError, ObservationError
from rlmech.results import storable

Composition = Literal["Q", "K", "V"]
READ_AS: dict[Composition, Source] = {"Q": "q", "K": "k", "V": "v"}
AGAINST = ("random_mean", "random_std", "z", "percentile")
_NUMBERS_AT_ONCE = 2**24
_TOLERANCE = 1e-4
_CHECK_SEED = 0


@explain_misuse
def composition_scores(
    policy: HookedPolicy, *, obs: Observation | None = None, n_controls: int = 200, seed: int = 0
) -> xr.Dataset:
    """Q-, K- and V-composition between every two heads of which the later one's block reads the earlier one's.

    Args:
        policy: A policy with at least two attention blocks.
        obs: States, needed where gates or norms lie between two blocks.
        n_controls: Draws of each baseline.
        seed: Of the draws.

    Returns:
        `score[composition, earlier, later]` between 0 and 1, the root mean square over states and positions, and
        `spread`, the standard deviation of single ones; NaN where the later head does not read the earlier one. Against
        two baselines, `null`: `gaussian`, factors of the same shapes with independent normal entries; `rotated`, the
        two circuits themselves, turned at random against each other, which keeps their singular values. For each,
        `random_mean`, `random_std`, `z` and `percentile` (share of draws below the score, in %). `between` in `attrs`
        says what lies between each two blocks. Heads also have coordinates `earlier_block`, `earlier_head` and so on.

    Raises:
        AttentionError: Fewer than two blocks, none that reads another, positions mix in between, or a block has no
            weights of its own for a head, with the reason.
        ConfigError: `n_controls` below 2.
        EngineError: The policy runs on the eager engine.
        ObservationError: Gates or norms lie between two blocks and no states are given.

    Source:
        Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*, "composition".

    Exact on each state. A way through a third block is not followed; `path_expansion` has those.

    Example:
        >>> import torch
        >>> import rlmech as rlm
        >>> from rlmech.circuits.composition import composition_scores
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> states = torch.rand(8, 5, 7)
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3, self_attention_heads=1), states)
        >>> composition_scores(policy).score.sel(composition="V").shape
        (5, 5)
    """
    policy = policy.fitting(obs)
    check_draws(n_controls)
    pairs = _pairs(policy)
    arrays = _states(policy, obs, pairs)
    heads = [(path, head) for path, block in policy.attention.items() for head in range(block.n_heads)]
    shape = (len(READ_AS), len(heads), len(heads))
    score, spread = np.full(shape, np.nan), np.full(shape, np.nan)
    null = {name: np.full((len(NULLS), *shape), np.nan) for name in AGAINST}
    for pair in pairs:
        rows = [place for place, (path, _) in enumerate(heads) if path == pair.earlier.path]
        columns = [place for place, (path, _) in enumerate(heads) if path == pair.later.path]
        for place, composition in enumerate(READ_AS):
            if composition not in pair.reads:
                continue
            found = _compose(policy, pair, composition, arrays, anywhere=obs is None)
            where = np.ix_([place], rows, columns)
            score[where], spread[where] = found.score[None], found.spread[None]
            for number, baseline in enumerate(_baselines(found, n_controls, seed)):
                for name, values in baseline.items():
                    null[name][(number, *where)] = values[None]
    values = {"score": score, "spread": spread, **null}
    return _dataset(policy, heads, values, pairs, n_controls=n_controls, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Two blocks, which roles of the later one read the earlier one, and the operations between that bend."""

    earlier: AttentionBlock
    later: AttentionBlock
    reads: tuple[Composition, ...]
    between: tuple[str, ...]

    @property
    def label(self) -> str:
        held = ", ".join(self.between)
        return f"{self.earlier.path} > {self.later.path}: {f'{held} as in each state' if held else 'linear'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Composed:
    """Scores `[earlier later]`; for the baselines the circuits' squared singular values, as shares, and shapes."""

    score: np.ndarray
    spread: np.ndarray
    writes: Float[Tensor, "earlier rank"]
    reads: Float[Tensor, "later inner"]
    shapes: tuple[Shape, Shape]


def _pairs(policy: HookedPolicy) -> list[_Pair]:
    blocks = dict(policy.attention)
    if len(blocks) < 2:
        raise AttentionError(
            "Composition is between two attention blocks, the later of which reads the earlier one.",
            given=f"{len(blocks)} in {type(policy.module).__name__}" + "".join(f": {path!r}" for path in blocks),
            expected="two blocks or more",
            fix="rlm.circuits.path_expansion has the paths through a single block's heads",
        )
    pairs = [_pair(policy, earlier, later) for earlier in blocks.values() for later in blocks.values()]
    found = [pair for pair in pairs if pair is not None]
    if not found:
        raise AttentionError(
            "No attention block reads what another one writes.",
            given=", ".join(map(repr, blocks)),
            expected="blocks one after the other",
            fix="rlm.circuits.path_expansion has the paths through each",
        )
    return found


def _pair(policy: HookedPolicy, earlier: AttentionBlock, later: AttentionBlock) -> _Pair | None:
    """Two blocks, where the later one reads the earlier one without passing a third."""
    if earlier is later:
        return None
    points, blocks = policy.points, policy.attention.values()
    written = points[earlier.names.get("attn_out", earlier.names["z"])].address.node
    others = [points[block.names["z"]].address.node for block in blocks if block is not earlier]
    held = hold(policy, norms=True, cut=others)
    reads: list[Composition] = []
    between: set[str] = set()
    for composition, role in READ_AS.items():
        end = points[later.names[role]].address.node
        if held.reaches(written, end):
            reads.append(composition)
            between |= set(bends_of(held, end, start=[written]))
    if not reads:
        return None
    _ = earlier.W_O  # where heads have none, this says why
    return _Pair(earlier=earlier, later=later, reads=tuple(reads), between=tuple(sorted(between)))


def _states(policy: HookedPolicy, obs: Observation | None, pairs: Sequence[_Pair]) -> tuple[Tensor, ...]:
    """The observation's arrays; where nothing that depends on them lies between the blocks, any will do."""
    if obs is not None:
        return policy.coerce(obs)
    gated = [pair for pair in pairs if pair.between]
    if gated:
        raise _states_needed(gated[0].label)
    generator = torch.Generator().manual_seed(_CHECK_SEED)
    like = next(policy.module.parameters())
    return tuple(
        torch.randn([-2 * size if size < 0 else size for size in node.sizes], generator=generator).to(like)
        for node in policy.graph_engine.graph.inputs
    )


def _states_needed(between: str) -> ObservationError:
    return ObservationError(
        "How heads compose depends on the state: what lies between their blocks does.",
        given=f"obs=None; {between}",
        expected="states whose gates and norms' scales are taken",
        fix="pass obs=, e.g. a recording's observations",
    )


def _compose(
    policy: HookedPolicy, pair: _Pair, composition: Composition, arrays: Sequence[Tensor], *, anywhere: bool
) -> _Composed:
    """One kind of composition between two blocks, over all states and positions; `anywhere` if no state was given."""
    W_V, W_O = pair.earlier.W_V.detach(), pair.earlier.W_O.detach()
    write = _triangle(W_V) @ W_O
    other = {"Q": "W_K", "K": "W_Q", "V": "W_O"}[composition]
    onward = getattr(pair.later, other).detach()
    onward = onward.mT if composition == "V" else onward
    n_positions = policy.hook_dict[pair.earlier.names["attn_out"]].size("query")
    at_once = max(2, _NUMBERS_AT_ONCE // (n_positions * write.shape[-1] * pair.later.n_heads * pair.later.d_head))
    singles: list[Tensor] = []
    spectra: list[Tensor] = []
    for rows in torch.arange(len(arrays[0])).split(at_once):
        part = tuple(array[rows] for array in arrays)
        maps, seen = _maps(policy, pair, composition, part, anywhere=anywhere)
        if anywhere and not torch.allclose(
            maps, maps[:1].expand_as(maps), rtol=_TOLERANCE, atol=float(maps.abs().max()) * _TOLERANCE
        ):
            raise _states_needed(f"{pair.label}, and depends on the observation")
        read = einsum(
            maps[seen], _triangle(onward), "row d_model later d_head, later out d_head -> row later d_model out"
        )
        moved = einsum(write, read, "earlier inner d_model, row later d_model out -> row earlier later inner out")
        size = _norm(write)[:, None] * _norm(read)[:, None]
        singles.append((_norm(moved) / size).cpu().double())
        spectra.append((torch.linalg.svdvals(read) ** 2).cpu().double())
    single, spectrum, writes = torch.cat(singles), torch.cat(spectra), torch.linalg.svdvals(write).cpu().double() ** 2
    score = single.square().nanmean(0).sqrt()
    return _Composed(
        score=score.numpy(),
        spread=(score**2 - single.nanmean(0) ** 2).clamp(min=0).sqrt().numpy(),
        writes=writes / writes.sum(-1, keepdim=True),
        reads=(spectrum / spectrum.sum(-1, keepdim=True)).nanmean(0),
        shapes=((W_V.shape[1], W_V.shape[2], W_O.shape[2]), (W_O.shape[2], onward.shape[2], onward.shape[1])),
    )


def _triangle(matrix: Float[Tensor, "head tall d_head"]) -> Float[Tensor, "head rank d_head"]:
    """A small matrix that can stand in for a tall one in products with its transpose: the R of its QR."""
    return torch.linalg.qr(matrix, mode="r").R


def _norm(matrices: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrices, dim=(-2, -1))


def _maps(
    policy: HookedPolicy, pair: _Pair, composition: Composition, arrays: tuple[Tensor, ...], *, anywhere: bool
) -> tuple[Float[Tensor, "batch query d_model head d_head"], Bool[Tensor, "batch query"]]:
    """The map from each position of the earlier block's output to a later role, and which positions count."""
    engine, blocks = policy.graph_engine, policy.attention
    start = engine.points[pair.earlier.names["attn_out"]].address
    end = engine.points[pair.later.names[READ_AS[composition]]].address
    cut = [start.node, *(engine.points[b.names["z"]].address.node for b in blocks.values() if b is not pair.earlier)]
    patterns = [engine.points[block.names["pattern"]].address.node for block in blocks.values()]
    with torch.no_grad():
        values = dict(zip((*cut, *patterns), engine.program(returned=(*cut, *patterns))(arrays, (), ()), strict=True))
    run = linear_run(
        policy,
        arrays,
        end.node,
        cuts={node: values[node] for node in cut},
        patterns={node: values[node] for node in patterns},
        start=start.node,
    )

    def pulled(weights: Tensor) -> Tensor:
        return start.layout.show(run.pull(end.layout.restore(weights))[1][start.node])

    shown = end.layout.show(run.end)
    columns: list[Tensor] = []
    for head, d_head in np.ndindex(*shown.shape[2:]):
        weights = torch.zeros_like(shown)
        weights[:, :, head, d_head] = 1
        columns.append(pulled(weights))
    maps = rearrange(torch.stack(columns, -1), "... (head d_head) -> ... head d_head", head=shown.shape[2])
    if shown.shape[1] > 1:
        _check_apart(pair, shown, maps, pulled)
    read = maps.flatten(2).any(-1)
    visible = visible_keys(policy, arrays, pair.later)
    if visible is None or visible.shape != shown.shape[:2] or anywhere:
        return maps, read
    return maps, read & visible


def _check_apart(pair: _Pair, shown: Tensor, maps: Tensor, pulled: Callable[[Tensor], Tensor]) -> None:
    """Whether each position of the later block reads its own position of the earlier one, and no other."""
    generator = torch.Generator().manual_seed(_CHECK_SEED)
    weights = torch.randn(shown.shape[1:], generator=generator, dtype=torch.float64).to(shown)
    together = pulled(weights.expand_as(shown))
    apart = shown.shape[1] == maps.shape[1]
    if apart:
        own = einsum(maps, weights, "batch query d_model head d_head, query head d_head -> batch query d_model")
        apart = bool((together - own).abs().amax() <= _TOLERANCE * own.abs().amax())
    if not apart:
        raise AttentionError(
            f"Positions mix between {pair.earlier.path!r} and {pair.later.path!r}: heads do not compose one to one.",
            given=f"{maps.shape[1]} positions written, {shown.shape[1]} read",
            expected="a later block each of whose positions reads its own position of the earlier one",
            fix="rlm.circuits.path_expansion gives each pair of heads its share of the scores all the same",
        )


def _baselines(found: _Composed, n: int, seed: int) -> list[dict[str, np.ndarray]]:
    """The scores against each of `NULLS`."""
    write, read = found.shapes
    by_chance = gaussian_compositions(write, read, n, torch.Generator().manual_seed(seed))
    draws: dict[Null, Tensor] = {
        "gaussian": by_chance[:, None, None].expand(-1, *found.score.shape),
        "rotated": rotated_compositions(found.writes, found.reads, read[0], n, torch.Generator().manual_seed(seed)),
    }
    return [against(found.score, draws[null]) for null in NULLS]


def _dataset(
    policy: HookedPolicy,
    heads: Sequence[tuple[str, int]],
    values: dict[str, np.ndarray],
    pairs: Sequence[_Pair],
    **attrs: Any,
) -> xr.Dataset:
    dims: dict[int, tuple[str, ...]] = {3: ("composition", "earlier", "later")}
    dims[4] = ("null", *dims[3])
    labels = [f"{path} head {head}".strip() for path, head in heads]
    sides = {
        f"{side}_{part}": (side, [head[place] for head in heads])
        for side in ("earlier", "later")
        for place, part in enumerate(("block", "head"))
    }
    return storable(
        xr.Dataset(
            {
                name: (dims[array.ndim], array, {"units": "%" if name == "percentile" else "1"})
                for name, array in values.items()
            },
            coords={"composition": list(READ_AS), "null": list(NULLS), "earlier": labels, "later": labels, **sides},
        ),
        policy_attrs(policy, between="; ".join(pair.label for pair in pairs), **attrs),
    )
