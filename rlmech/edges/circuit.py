"""`Circuit`: the edges of a policy that are said to make a decision, with their scores and how good they are.

A frozen value without the policy in it: it is saved as JSON, and measured again on any observations. Nothing about it
is taken on trust: on another policy, or with an edge that is none, it raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.edges.circuit_evaluation import evaluate_edges
from rlmech.edges.components import ComponentGraph, Edge, component_graph
from rlmech.edges.edge_runs import EdgeRuns
from rlmech.edges.references import ABLATIONS, CONSISTENT, CircuitAblation, reference_values
from rlmech.errors import ConfigError
from rlmech.files import read_sealed_json, reading, write_sealed_json
from rlmech.metrics.measure import Metric, MetricFunction
from rlmech.patching.results import bind_pairs, sweep_attrs, unknown_choice
from rlmech.results import storable
from rlmech.statistics import Clusters

FORMAT = "rlmech.circuit/1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Circuit:
    """A circuit: some of the edges of a component graph.

    Attributes:
        units: All units of the component graph, each after those that it depends on.
        candidates: All its edges, as pairs of numbers of units.
        kept: The numbers of those that belong to the circuit.
        dataset: By `edge`: `score` (what discovery ranked by, a share of what ablating everything does), `effect` (the
            signed change) and `in_circuit`, coordinates `sender` and `receiver`; and what `evaluate` gave on the
            pairs held out.

    Raises:
        ConfigError: A number is out of range, or the dataset belongs to other edges.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.and_gate()
        >>> found = rlm.edges.discover_circuit(known.policy, clean=known.clean, corrupt=known.corrupt, n_controls=2)
        >>> rlm.edges.Circuit.load(found.save("circuit.json")).edges == found.edges
        True
    """

    units: tuple[Site, ...]
    candidates: tuple[tuple[int, int], ...]
    kept: tuple[int, ...]
    dataset: xr.Dataset

    def __post_init__(self) -> None:
        units, edges = range(len(self.units)), range(len(self.candidates))
        fits = all(a in units and b in units for a, b in self.candidates) and all(n in edges for n in self.kept)
        if not fits or self.dataset.sizes.get("edge") != len(self.candidates):
            raise ConfigError(
                "The parts of this circuit do not belong together.",
                given=f"{len(self.units)} units, {len(self.candidates)} edges, kept {self.kept[:5]}…",
                expected="numbers of units and edges that are there, and a dataset over these edges",
                fix="take what discover_circuit or Circuit.load gave",
            )

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The circuit's edges, (sender, receiver)."""
        return tuple((self.units[a], self.units[b]) for a, b in (self.candidates[number] for number in self.kept))

    @property
    def nodes(self) -> tuple[Site, ...]:
        """The units that an edge of the circuit begins or ends at."""
        touched = {unit for number in self.kept for unit in self.candidates[number]}
        return tuple(site for number, site in enumerate(self.units) if number in touched)

    @property
    def scores(self) -> xr.DataArray:
        """What discovery ranked all edges by, `[edge]`: a share of what ablating everything does to the metric."""
        return self.dataset["score"]

    def __repr__(self) -> str:
        found = f", {self.headline}" if self.headline else ""
        return f"Circuit of {len(self.kept)} of {len(self.candidates)} edges, {len(self.nodes)} nodes{found}"

    @property
    def headline(self) -> str:
        """How good the circuit is in one phrase, with its interval; empty where it was not measured.

        Where ablating everything does not move the mean of the metric clear of zero, faithfulness says nothing: the
        phrase says so and gives `error`, in which pairs cannot cancel.
        """
        if "faithfulness" not in self.dataset:
            return ""
        trusted = bool(self.dataset.attrs.get("denominator_trustworthy", True))
        if trusted:
            return _with_interval(self.dataset, "faithfulness")
        return (
            f"{_with_interval(self.dataset, 'error')} (0 is best; faithfulness says nothing here: "
            "ablating everything leaves the mean of the metric about where it is)"
        )

    def graph(self, policy: HookedPolicy) -> ComponentGraph:
        """The component graph of a policy over this circuit's units.

        Raises:
            SiteError: The policy lacks a unit.
            ConfigError: Its edges are others: the circuit is another policy's.
        """
        graph = component_graph(policy, units=self.units)
        if graph.units != self.units or graph.edges != self.candidates:
            raise ConfigError(
                "The circuit was found in a policy with another graph.",
                given=f"{len(graph.edges)} edges between {len(graph.units)} units",
                expected=f"{len(self.candidates)} edges between {len(self.units)} units",
                fix="evaluate it on the policy that it was found in, or on one of the same architecture",
            )
        return graph

    def run(
        self,
        policy: HookedPolicy,
        *,
        clean: Observation,
        corrupt: Observation,
        ablation: CircuitAblation = "patch",
        seed: int = 0,
    ) -> Float[Tensor, "batch action"]:
        """The scores when only the circuit's edges carry the clean run, and all others the ablated values.

        Args:
            policy: The policy.
            clean: Observations, one row per run.
            corrupt: Their counterparts, row by row; read by `patch`, and by `mean` together with the clean ones.
            ablation: What the other edges carry; see `discover_circuit`.
            seed: Of resampled rows.
        """
        policy = policy.fitting(clean)
        graph = self.graph(policy)
        runs = circuit_runs(graph, policy.coerce(clean), policy.coerce(corrupt), ablation=ablation, seed=seed)
        return runs.outputs(self.off()[None])[0].scores

    def off(self) -> np.ndarray:
        """Which edges are outside the circuit, by number."""
        off = np.ones(len(self.candidates), dtype=bool)
        off[list(self.kept)] = False
        return off

    def evaluate(
        self,
        policy: HookedPolicy,
        *,
        clean: Observation,
        corrupt: Observation,
        metric: Metric | MetricFunction | None = None,
        ablation: CircuitAblation = "patch",
        n_controls: int = 20,
        clusters: Clusters | None = None,
        seed: int = 0,
    ) -> xr.Dataset:
        """Measure the circuit on other observations; variables as `evaluate_edges` lists them.

        Args:
            policy: The policy.
            clean: Observations, one row per pair.
            corrupt: Their counterparts, row by row.
            metric: What is measured; None for the action gap with actions fixed from the unpatched runs.
            ablation: What the other edges carry; see `discover_circuit`.
            n_controls: Random circuits of the same size to compare with.
            clusters: A label for each pair, say its episode: pairs of one label are resampled together.
            seed: Of resampled rows, the random circuits and the bootstrap.

        Raises:
            SiteError, ConfigError: The policy is not of the circuit's architecture.
            ObservationError: Clean and corrupt do not pair up.
        """
        if ablation not in ABLATIONS:
            raise unknown_choice("ablation", ablation, ABLATIONS)
        policy = policy.fitting(clean)
        graph = self.graph(policy)
        bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
        runs = circuit_runs(graph, policy.coerce(clean), policy.coerce(corrupt), ablation=ablation, seed=seed)
        result = evaluate_edges(
            graph,
            self.kept,
            runs,
            metric=bound,
            pair=None,
            n_controls=n_controls,
            seed=seed,
            consistent=ablation in CONSISTENT,
            clusters=clusters,
        )
        ends = {name: self.dataset.coords[name] for name in ("sender", "receiver")}
        said = sweep_attrs(policy, bound, n_pairs=result.sizes["pair"], seed=seed) | {"ablation": ablation}
        return storable(result.assign_coords(ends), said)

    def save(self, path: str | Path) -> Path:
        """Write the circuit as JSON with a checksum, in one step, replacing a file of that name."""
        path = Path(path)
        content = {
            "format": FORMAT,
            "units": [[site.name, [[axis, choice] for axis, choice in site.selection]] for site in self.units],
            "candidates": self.candidates,
            "kept": self.kept,
            "dataset": self.dataset.to_dict(),
        }
        write_sealed_json(path, content)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read a circuit that `save` wrote.

        Raises:
            MissingFileError: There is no such file.
            ConfigError: It is no circuit, or damaged.
        """
        path = Path(path)
        with reading(
            path,
            what="circuit",
            writer="Circuit.save",
            expected=f"JSON of the format {FORMAT!r}, bit for bit as it was written",
        ):
            content = read_sealed_json(path)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}")
            units = tuple(
                Site(name, **{axis: tuple(c) if isinstance(c, list) else c for axis, c in selection})
                for name, selection in content["units"]
            )
            dataset = xr.Dataset.from_dict(content["dataset"])
            candidates = tuple((int(a), int(b)) for a, b in content["candidates"])
            kept = tuple(int(number) for number in content["kept"])
        return cls(units=units, candidates=candidates, kept=kept, dataset=dataset)


def circuit_runs(
    graph: ComponentGraph,
    clean: Sequence[Tensor],
    corrupt: Sequence[Tensor],
    *,
    ablation: CircuitAblation,
    seed: int,
    dataset: Sequence[Tensor] | None = None,
) -> EdgeRuns:
    """Clean runs whose ablated edges carry a reference.

    Args:
        graph: Units and edges.
        clean: Observations of the base runs.
        corrupt: Their counterparts.
        ablation: What ablated edges carry.
        seed: Of resampled rows.
        dataset: What means are taken over; None for clean and corrupt observations together.
    """
    over = [torch.cat(both) for both in zip(clean, corrupt, strict=True)] if dataset is None else dataset
    reference = reference_values(graph, ablation=ablation, clean=clean, corrupt=corrupt, dataset=over, seed=seed)
    return EdgeRuns(graph, clean, reference=reference)


def _with_interval(dataset: xr.Dataset, name: str) -> str:
    value, low, high = (float(dataset[name + suffix]) for suffix in ("", "_low", "_high"))
    return f"{name} {value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) and np.isfinite(high) else "")
