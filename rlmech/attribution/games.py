"""Games that attributions are values of: who plays, and what the policy measures where only some of them are there.

* entities: every vehicle but the ego; one that is out has its row as the simulator writes an absent one, all zeros.
  Rows keep their places: a network that is told apart by place, not by attention, sees a gap.
* features: one that is out has the reference's value in every entity that is present; the presence is no feature.
* heads: one that is out is ablated, by the reference's mean or by zero.

Cost: a row of the policy for each coalition and row; entities that leave by an attention's mask cost what stands behind
the attention only (`masked_attention`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from rlmech.attribution.masked_attention import MaskedAttention
from rlmech.attribution.readouts import observed_arrays
from rlmech.core.edit import Edit
from rlmech.core.interventions import mean_ablation, zero_ablation
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.errors import AttentionError, ConfigError, ObservationError
from rlmech.metrics.measure import BoundMetric, Metric, MetricFunction, bind
from rlmech.metrics.score_metrics import default_metric
from rlmech.patching.jobs import edited_activations, run_groups
from rlmech.patching.results import unknown_choice
from rlmech.patching.sweeps.sweep import outputs_of

Players = Literal["entities", "features", "heads"]
HeadAblation = Literal["mean", "zero"]
PRESENT = 0.5
"""A presence below this says that the entity is not there."""
ROWS_AT_ONCE = 4096


class Game(Protocol):
    """Who plays, by row, and what coalitions are worth.

    Attributes:
        dim: Name of the players' axis in results.
        names: The players.
        playing: `[row player]`: a player that is not there in a row is worth nothing in it.
        bound: The metric.
        scheme: How coalitions are run.
    """

    dim: str
    names: list[Any]
    playing: np.ndarray
    bound: BoundMetric
    scheme: str

    def worth(self, rows: np.ndarray, players: np.ndarray, coalitions: np.ndarray) -> np.ndarray:
        """The metric of some rows, `[row coalition]`.

        Args:
            rows: Which.
            players: `[row place]`: who plays there, as many in each row.
            coalitions: `[coalition place]`: who of them is there.
        """
        ...


def game_of(
    policy: HookedPolicy,
    obs: Observation,
    *,
    players: Players,
    metric: Metric | MetricFunction | None = None,
    reference: Observation | None = None,
    ablation: HeadAblation = "mean",
) -> Game:
    """The game of some players.

    Raises:
        ConfigError: No such players, or a reference that they have no use for.
        ObservationError: The observations have no such players.
        AttentionError: The policy has no heads.
    """
    if players not in get_args(Players):
        raise unknown_choice("players", players, get_args(Players))
    bound = bind(metric or default_metric(policy.output_kind), policy, clean=outputs_of(policy, obs))
    if len(bound.clean) == 0:
        raise ObservationError(
            "There is nothing to share out.", given="no observations", expected="a row or more", fix="give some"
        )
    if players == "heads":
        return HeadGame(policy, obs, bound, reference=reference, ablation=ablation)
    if ablation != "mean":
        raise ConfigError(
            "Only heads are ablated.", given=f"ablation={ablation!r}", expected="players='heads'", fix="leave it out"
        )
    if players == "entities":
        if reference is not None:
            raise ConfigError(
                "Entities are taken away by their presence, which needs no reference.",
                given="reference=",
                expected="none: an absent row is zeros, as the simulator writes it",
                fix="leave it out, or take players='features'",
            )
        return EntityGame(policy, obs, bound)
    return FeatureGame(policy, obs, bound, reference=reference)


@dataclass(frozen=True, slots=True)
class Table:
    """The one array of a policy's observations, as players of it are found.

    Attributes:
        values: `[row feature]` or `[row entity feature]`.
        presence: Place of the presence among the features, of entities.
    """

    values: Tensor
    presence: int | None

    @property
    def has_entities(self) -> bool:
        """Whether it is a table of entities."""
        return self.values.ndim == 3

    @property
    def present(self) -> Tensor:
        """`[row entity]`: who is there; everyone, where nothing says."""
        if self.presence is None:
            return torch.ones(self.values.shape[:2], dtype=torch.bool, device=self.values.device)
        return self.values[..., self.presence] >= PRESENT


def table_of(policy: HookedPolicy, obs: Observation, *, players: Players) -> Table:
    """The observations as one array of features, or of entities and features.

    Raises:
        ObservationError: They are none.
    """
    observed = observed_arrays(policy)
    kinds = (("entity", "feature"),) if players == "entities" else (("feature",), ("entity", "feature"))
    if len(observed) != 1 or observed[0].key or observed[0].dims not in kinds:
        shown = ", ".join(f"{each.key or 'obs'} [{' '.join(each.dims)}]" for each in observed)
        raise ObservationError(
            f"The observations have no {players} to play with.",
            given=shown,
            expected="one array [entity feature]" + (", or [feature]" if players == "features" else ""),
            fix="name entities and features: HookedPolicy(..., spec=PolicySpec(entities=..., features=...))"
            if players == "entities"
            else "of other observations use rlm.ablation_sweep, or where they are real numbers saliency",
        )
    return Table(policy.coerce(obs)[0], policy.spec.presence_index if observed[0].dims[0] == "entity" else None)


def run_rows(policy: HookedPolicy, bound: BoundMetric, obs: Tensor, pair: Tensor) -> Tensor:
    """The metric of observations that belong to the pairs given."""
    names = [name for name in ("hook_value",) if name in policy.hook_dict]
    parts: list[Tensor] = []
    with torch.no_grad():
        for part, own in zip(obs.split(ROWS_AT_ONCE), pair.split(ROWS_AT_ONCE), strict=True):
            scores, cache = policy.run_with_cache(part, names)
            parts.append(bound(scores, pair=own, value=cache["hook_value"] if names else None))
    return torch.cat(parts).double().cpu()


class EntityGame:
    """Vehicles that are there or not, the ego always."""

    dim = "entity"

    def __init__(self, policy: HookedPolicy, obs: Observation, bound: BoundMetric) -> None:
        self.policy, self.bound = policy, bound
        self.table = table_of(policy, obs, players="entities")
        if self.table.presence is None:
            raise ObservationError(
                "Which entities are there is not told.",
                given="a spec without a presence",
                expected="the feature that says whether an entity is there",
                fix="HookedPolicy(..., spec=PolicySpec(presence='presence', features=..., entities=...)), or "
                "players='features'",
            )
        self.names = list(observed_arrays(policy)[0].coords["entity"])[1:]
        self.playing = self.table.present[:, 1:].cpu().numpy()
        self.fast = MaskedAttention.of(policy, self.table.values, self.table.present, bound)
        self.scheme = "the policy" if self.fast is None else "what stands behind the attention"

    def worth(self, rows: np.ndarray, players: np.ndarray, coalitions: np.ndarray) -> np.ndarray:  # noqa: D102
        kept = self._kept(rows, players, coalitions)
        if self.fast is not None:
            return self.fast.measure(rows, kept)
        chosen = self.table.values[torch.from_numpy(rows)]
        found = np.empty(kept.shape[:2])
        at_once = max(1, ROWS_AT_ONCE // max(1, len(rows)))
        for start in range(0, kept.shape[1], at_once):
            part = torch.from_numpy(kept[:, start : start + at_once]).to(chosen.device)
            obs = torch.where(part[..., None], chosen[:, None], 0)
            pair = torch.from_numpy(rows).to(chosen.device)[:, None].expand(part.shape[:2])
            measured = run_rows(self.policy, self.bound, obs.flatten(0, 1), pair.reshape(-1))
            found[:, start : start + at_once] = measured.unflatten(0, part.shape[:2]).numpy()
        return found

    def _kept(self, rows: np.ndarray, players: np.ndarray, coalitions: np.ndarray) -> np.ndarray:
        """`[row coalition entity]`: whose rows stay; rows of absent entities stay as they are, whatever is in them."""
        kept = np.repeat(~self.table.present.cpu().numpy()[rows][:, None], len(coalitions), 1)
        kept[..., 0] = True
        for row, own in enumerate(players + 1):
            kept[row][:, own] = coalitions
        return kept


class FeatureGame:
    """Features that have their value or the reference's, the mean over the reference's rows taken."""

    dim = "feature"

    def __init__(
        self, policy: HookedPolicy, obs: Observation, bound: BoundMetric, *, reference: Observation | None
    ) -> None:
        self.policy, self.bound = policy, bound
        self.table = table_of(policy, obs, players="features")
        names = list(observed_arrays(policy)[0].coords["feature"])
        self.columns = [place for place in range(len(names)) if place != self.table.presence]
        self.names = [names[place] for place in self.columns]
        others = self.table if reference is None else table_of(policy, reference, players="features")
        if len(others.values) == 0:
            raise ObservationError(
                "The reference has no rows.", given="an empty reference", expected="one or more", fix="give some"
            )
        self.stand_ins = _stand_ins(others)
        if reference is None:
            self.stand_ins = self.stand_ins.mean(0, keepdim=True)
        self.playing = np.ones((len(bound.clean), len(self.names)), dtype=bool)
        self.scheme = "the policy"

    def worth(self, rows: np.ndarray, players: np.ndarray, coalitions: np.ndarray) -> np.ndarray:  # noqa: D102
        chosen, present = self.table.values[torch.from_numpy(rows)], self.table.present[torch.from_numpy(rows)]
        found = np.zeros((len(rows), len(coalitions)))
        at_once = max(1, ROWS_AT_ONCE // max(1, len(rows)))
        for start in range(0, len(coalitions), at_once):
            stay = torch.ones(len(rows), len(coalitions[start : start + at_once]), chosen.shape[-1], dtype=torch.bool)
            for row, own in enumerate(players):
                stay[row][:, [self.columns[player] for player in own]] = torch.from_numpy(
                    coalitions[start : start + at_once]
                )
            pair = torch.from_numpy(rows).to(chosen.device)[:, None].expand(stay.shape[:2]).reshape(-1)
            total = torch.zeros(stay.shape[:2], dtype=torch.float64)
            for stand_in in self.stand_ins:
                out = stay.to(chosen.device)
                if self.table.has_entities:  # what is not there has no features to lose
                    out = out[:, :, None] | ~present[:, None, :, None]
                obs = torch.where(out, chosen[:, None], stand_in.to(chosen))
                total += run_rows(self.policy, self.bound, obs.flatten(0, 1), pair).unflatten(0, total.shape)
            found[:, start : start + at_once] = total.numpy() / len(self.stand_ins)
        return found


def _stand_ins(reference: Table) -> Tensor:
    """By reference row what stands for a feature: of entities the ego's own, and the mean of the vehicles present."""
    values = reference.values
    if not values.is_floating_point():
        raise ObservationError(
            "Features of whole numbers have no mean to be replaced by.",
            given=f"observations of {values.dtype}",
            expected="real numbers",
            fix="take players='heads', or ablate embeddings: rlm.ablation_sweep",
        )
    if not reference.has_entities:
        return values
    present = reference.present[:, 1:, None]
    seen = present.sum(1, keepdim=True)
    if not bool(seen.any()) and values.shape[1] > 1:
        raise ObservationError(
            "No vehicle is there in the reference, whose features could stand for others.",
            given=f"{len(values)} rows without vehicles",
            expected="a row with one",
            fix="give other observations as the reference",
        )
    overall = (values[:, 1:] * present).sum((0, 1)) / max(1, int(seen.sum()))
    own = (values[:, 1:] * present).sum(1, keepdim=True) / seen.clamp(min=1)
    vehicles = torch.where(seen > 0, own, overall)
    return torch.cat([values[:, :1], vehicles.expand(-1, values.shape[1] - 1, -1)], 1)


class HeadGame:
    """Attention heads, ablated where they are out; jobs of the sweep engine."""

    dim = "head"

    def __init__(
        self,
        policy: HookedPolicy,
        obs: Observation,
        bound: BoundMetric,
        *,
        reference: Observation | None,
        ablation: HeadAblation,
    ) -> None:
        if ablation not in get_args(HeadAblation):
            raise unknown_choice("ablation", ablation, get_args(HeadAblation))
        blocks = {path: block for path, block in policy.attention.items() if "z" in block.names}
        if not blocks:
            raise AttentionError(
                "The policy has no attention heads.",
                given=f"players='heads', and {type(policy.module).__name__}",
                expected="a policy with attention",
                fix="take players='features', or sweep over its layers: rlm.ablation_sweep",
            )
        self.policy, self.obs, self.bound = policy, obs, bound
        self.sites = [Site(b.names["z"], head=head) for b in blocks.values() for head in range(b.n_heads)]
        alone = len(blocks) == 1
        self.names = [h if alone else f"{path} {h}" for path, b in blocks.items() for h in range(b.n_heads)]
        edits: dict[str, Edit] = {}
        for block in blocks.values():
            name = block.names["z"]
            mean = mean_ablation(name, reference=obs if reference is None else reference).on(policy)
            edits[name] = mean if ablation == "mean" else zero_ablation(name)
        self.source = edited_activations(policy, obs, edits)
        self.playing = np.ones((len(bound.clean), len(self.sites)), dtype=bool)
        self.scheme = "the sweep engine"

    def worth(self, rows: np.ndarray, players: np.ndarray, coalitions: np.ndarray) -> np.ndarray:  # noqa: D102
        out = [tuple(self.sites[players[0][place]] for place in np.flatnonzero(~each)) for each in coalitions]
        jobs = [place for place, sites in enumerate(out) if sites]
        found = np.repeat(self.bound.clean.double().cpu().numpy()[rows][:, None], len(out), 1)
        if jobs:
            groups = [out[place] for place in jobs]
            swept = run_groups(self.policy, self.obs, groups, sources=[self.source], metric=self.bound, what="heads")
            found[:, jobs] = swept.measured.double().cpu().numpy().T[rows]
        return found
