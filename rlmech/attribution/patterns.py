"""What the attention pattern itself contributes: the scores after a key, or a feature of it, is taken from the softmax.

    effect = score(softmax of the changed attention scores) - score

Nothing is linearised: the softmax and all that follows is computed again for each change. Cost: the part of the policy
behind the attention, once for each key and head, and for each key and feature. Values stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xarray as xr
from einops import einsum, rearrange, repeat
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.readouts import Readouts, array, made_by, observed_arrays, readouts, scores_of
from rlmech.circuits.feature_space import States, as_states
from rlmech.circuits.gated import gated_maps
from rlmech.circuits.labels import choose_block, score_units
from rlmech.core.attention import AttentionBlock
from rlmech.core.masked import is_masked
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.results import storable

_ROWS_AT_ONCE = 8192
_SIGN = "score with the changed pattern less the score: negative where what is taken away was raising the score"


@explain_misuse
def pattern_effects(
    policy: HookedPolicy,
    obs: Observation,
    *,
    block: str | None = None,
    better: int | str | None = None,
    worse: int | str | None = None,
) -> xr.Dataset:
    """How each action's score changes when a key leaves the softmax, or when its score is set to zero; exact.

    Args:
        policy: A policy with attention; what follows it may bend.
        obs: A batch of observations.
        block: Path of the attention block; None where there is one.
        better: One action, by name or number; None for all of them.
        worse: The score of `better` less that of this one.

    Returns:
        In the unit of the scores, `removed[batch, action, key]`: the key taken from every head, the others' weights
        growing in its place; `removed_by_head[batch, action, head, key]`: from one head;
        `zeroed_by_head[batch, action, head, key]`: its score set to 0 in one head. Zero for a key that is masked
        anyway; NaN where no key that can be seen is left. Later layers follow the change, their patterns included.

    Raises:
        AttentionError: No such block, or several and none named.
        EngineError: The policy runs on the eager engine.
        MetricError: No such action.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.attribution.patterns import pattern_effects
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> pattern_effects(policy, torch.ones(2, 15, 7)).removed_by_head.sizes["key"]
        15
    """
    policy = policy.fitting(obs)
    run = _Run.of(policy, obs, block)
    rows = readouts(policy, better=better, worse=worse)
    n_heads, n_keys = run.scores.shape[1], run.scores.shape[3]
    keys = torch.eye(n_keys, dtype=torch.bool, device=run.scores.device)
    every = repeat(keys, "changed key -> changed head key", head=n_heads)
    heads = torch.eye(n_heads, dtype=torch.bool, device=run.scores.device)
    single = rearrange(heads[:, None, :, None] & keys[None, :, None, :], "a b head key -> (a b) head key")
    unit, lead = {"units": score_units(policy)}, ("batch", "action")
    data = {
        "removed": ((*lead, "key"), _as_numpy(run.masked(every, -torch.inf, rows)), unit),
        "removed_by_head": ((*lead, "head", "key"), _by_head(run.masked(single, -torch.inf, rows), n_heads), unit),
        "zeroed_by_head": ((*lead, "head", "key"), _by_head(run.masked(single, 0.0, rows), n_heads), unit),
    }
    coords = {"action": list(rows.names), "head": list(range(n_heads)), "key": run.keys}
    attrs = made_by(policy, "pattern_effects", block=run.block.path, sign=_SIGN, exact="softmax computed again")
    return storable(xr.Dataset(data, coords=coords), attrs)


@explain_misuse
def key_feature_effects(
    policy: HookedPolicy,
    obs: States,
    *,
    block: str | None = None,
    better: int | str | None = None,
    worse: int | str | None = None,
) -> xr.Dataset:
    """How each action's score changes when the keys no longer see one feature of one entity; exact.

    The feature's part of the key, through the embedding as it is gated on the state, is taken off in every head, and
    the softmax computed again; values and queries still see it.

    Args:
        policy: A policy whose keys are piecewise linear in their own entity's features.
        obs: States.
        block: Path of the attention block; None where there is one.
        better: One action, by name or number; None for all of them.
        worse: The score of `better` less that of this one.

    Returns:
        `effect[batch, action, entity, feature]` in the unit of the scores; zero for an entity that is masked.

    Raises:
        AttentionError: No such block, entities mix before it, or a key bends between its gates.
        ObservationError: The observation is no table of entities.
        EngineError: The policy runs on the eager engine.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.nets import EgoAttentionNetwork
        >>> policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
        >>> from rlmech.attribution import key_feature_effects
        >>> dict(key_feature_effects(policy, torch.rand(2, 15, 7)).effect.sizes)
        {'batch': 2, 'action': 3, 'entity': 15, 'feature': 7}
    """
    policy = policy.fitting(obs)
    states = as_states(policy, obs)
    run = _Run.of(policy, states, block)
    rows = readouts(policy, better=better, worse=worse)
    key = gated_maps(policy, states, [run.block.names["k"]])[run.block.names["k"]][:, :, :-1]
    with torch.no_grad():
        _, cache = policy.run_with_cache(states, run.block.names["q"])
        taken = run.block.scale * einsum(
            cache[run.block.names["q"]],
            key * states[..., None, None],
            "batch query head d_head, batch entity feature head d_head -> batch entity feature head query",
        )
        n, n_entities, n_features = taken.shape[:3]
        effects: list[Tensor] = []
        for entity in range(n_entities):
            changed = repeat(run.scores, "batch ... -> batch feature ...", feature=n_features).clone()
            changed[..., entity] -= torch.where(run.hidden[:, None, ..., entity], 0.0, taken[:, entity])
            effects.append(run.effects(changed, rows))
    values = torch.stack(effects, dim=2) if n else taken.new_zeros(0, len(rows.names), n_entities, n_features)
    observed = observed_arrays(policy)[0]
    coords = {"action": list(rows.names), **observed.coords}
    data = {"effect": array(values, ("batch", "action", "entity", "feature"), units=score_units(policy))}
    attrs = made_by(policy, "key_feature_effects", block=run.block.path, sign=_SIGN, exact="softmax computed again")
    return storable(xr.Dataset(data, coords=coords), attrs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One pass up to the attention, and what it takes to go on from a changed pattern."""

    policy: HookedPolicy
    block: AttentionBlock
    arrays: tuple[Tensor, ...]
    outputs: Tensor
    scores: Tensor
    hidden: Tensor
    v: Tensor
    keys: list[int | str]

    @classmethod
    def of(cls, policy: HookedPolicy, obs: Observation, path: str | None) -> _Run:
        block, scores_at = choose_block(policy, path), scores_of(policy)
        arrays = policy.coerce(obs)
        at = [policy.points[block.names[role]].address for role in ("attn_scores", "v")]
        program = policy.graph_engine.program(returned=[scores_at.node, *(address.node for address in at)])
        with torch.no_grad():
            outputs, *values = program(arrays, (), ())
            scores, v = (address.layout.show(value) for address, value in zip(at, values, strict=True))
        point = policy.hook_dict[block.names["attn_scores"]]
        keys = list(point.labels.get("key") or range(scores.shape[-1]))
        shown = scores_at.layout.show(outputs)
        return cls(
            policy=policy,
            block=block,
            arrays=arrays,
            outputs=shown,
            scores=scores,
            hidden=is_masked(scores),
            v=v,
            keys=keys,
        )

    def masked(self, masks: Tensor, value: float, rows: Readouts) -> Tensor:
        """Effects of setting the scores under each mask, `[changed head key]`, to a value; hidden keys stay hidden."""
        n, at_once = len(self.scores), max(1, _ROWS_AT_ONCE // max(1, len(self.scores)))
        found: list[Tensor] = []
        for part in masks.split(at_once):
            under = part[None, :, :, None, :] & ~self.hidden[:, None]
            changed = torch.where(under, value, self.scores[:, None])
            effects = self.effects(changed, rows)
            if value == -torch.inf:
                left = (~self.hidden[:, None] & ~under).any(-1) | self.hidden.all(-1)[:, None]
                effects = torch.where(left.flatten(2).all(-1)[:, None], effects, torch.nan)
            found.append(effects)
        return torch.cat(found, dim=2) if n else self.outputs.new_zeros(0, len(rows.names), len(masks))

    def effects(self, changed: Tensor, rows: Readouts) -> Tensor:
        """Effects of changed attention scores `[batch changed head query key]`: `[batch action changed]`."""
        scores_at, z = scores_of(self.policy), self.policy.points[self.block.names["z"]].address
        n_changes = changed.shape[1]
        with torch.no_grad():
            pattern = torch.softmax(changed, -1)
            mixed = einsum(pattern, self.v, "b changed h q k, b k h d -> b changed q h d").flatten(0, 1)
            program = self.policy.graph_engine.program(returned=[scores_at.node], given=[z.node])
            stacked = tuple(value.repeat_interleave(n_changes, 0) for value in self.arrays)
            after = scores_at.layout.show(program(stacked, (z.layout.restore(mixed),), ())[0])
            change = after.unflatten(0, (-1, n_changes)) - self.outputs[:, None]
            return einsum(change, rows.weights, "batch changed action, readout action -> batch readout changed")


def _as_numpy(values: Tensor) -> object:
    return values.cpu().numpy()


def _by_head(values: Tensor, n_heads: int) -> object:
    return _as_numpy(rearrange(values, "batch action (head key) -> batch action head key", head=n_heads))
