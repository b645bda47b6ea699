"""Attribution patching: what patching each site would do, to first order, for all sites in one backward pass.

    estimate[site, pair] = sum over the site of (source - base) * d metric(base run) / d activation

Cost: a forward pass of each run and one backward pass, for any number of sites; with `n_steps`, one of each per point
and step. First order: it misses what a patch does by opening or closing a gate, and a saturated softmax; `exact` and
`certificate` say where. Needs a metric that has a gradient; repairs, steps and the certificate need the traced graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.certificate import certify
from rlmech.attribution.eager_estimate import estimate_eagerly
from rlmech.attribution.repairs import (
    dropout_magnitude,
    droppable_nodes,
    nodes_before_patterns,
    softmax_repaired,
)
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.program import Address
from rlmech.core.site import Site
from rlmech.errors import ConfigError
from rlmech.gradients.at_nodes import (
    MeasuredRun,
    differentiable_run,
    finite_change,
    first_order_change,
    integrated_gradient,
    measure_outputs,
    measured_run,
    output_addresses,
    outputs_at,
    refuse_discrete,
    refuse_undifferentiable,
    row_sums,
    sites_at,
    sum_over_sites,
)
from rlmech.gradients.downstream import Continuation
from rlmech.metrics.measure import BoundMetric, Metric, MetricFunction, as_metric, bind
from rlmech.metrics.score_metrics import default_metric
from rlmech.patching.activations import activation_patching
from rlmech.patching.results import Direction, bind_pairs, coerce_pairs, patching_result, unknown_choice
from rlmech.patching.sites import Sites, choose_sites
from rlmech.patching.sweeps.distinct import distinct_rows
from rlmech.patching.sweeps.independence import check_rows, refuse_unfit
from rlmech.statistics import Clusters
from rlmech.untyped import Variables

Repair = Literal["softmax", "dropout"]


@explain_misuse
def attribution_patching(
    policy: HookedPolicy,
    *,
    clean: Observation,
    corrupt: Observation,
    sites: Sites = "auto",
    metric: Metric | MetricFunction | None = None,
    direction: Direction = "denoise",
    n_steps: int = 0,
    repairs: Sequence[Repair] | None = None,
    exact: bool = False,
    certificate: bool = False,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Estimate `activation_patching` of each site to first order, all sites at once.

    How good it is depends on the policy and on how far the runs lie apart. Correlation with the exact effects over all
    `auto` sites and pairs, states from the shipped policies' own episodes: `highway-dqn-mlp` 0.97 for unrelated states
    (0.96 in the first hidden layer, 1.00 in the last) and 0.99 where one vehicle was moved by a tenth of the range;
    `intersection-ego-attention` 0.24 for unrelated states (0.45 with `n_steps=50`) and 0.60 where one vehicle was moved
    (0.95 with `n_steps=10`). Integration follows the whole point's line, which helps where a point's elements act
    together, and hurts for single neurons of the MLP (0.84): look at `exact` before you trust a ranking.

    Args:
        policy: The policy.
        clean: Observations, one row per pair.
        corrupt: Their counterparts, row by row.
        sites: `auto`, a hook name or glob, or a list of sites.
        metric: What is measured; None for the action gap with actions fixed from the unpatched runs.
        direction: `denoise`: clean activations into corrupt runs; `noise`: corrupt ones into clean runs.
        n_steps: 0 for the gradient at the base run; else the points at which the gradient is averaged along the
            straight line from the base to the source activation of the site's whole hook point (integrated gradients).
        repairs: Of AtP*. `softmax`: for sites that act through one attention pattern only (queries, keys, scores), the
            pattern's exact change times the gradient there. `dropout`: adds `magnitude`, which does not cancel. None:
            `softmax` for `n_steps=0`, nothing with `n_steps`, which cannot be combined with them.
        exact: Also patch each site, and report `patched` and `remainder`. Costs what `activation_patching` costs.
        certificate: Also run each patch, and report where no gate changed, so that the estimate is exact. Costs about
            as much as `exact`, whose variables it gives too.
        clusters: A label for each pair, say its episode: pairs of one label are resampled together. None: every pair by
            itself, which makes intervals too narrow where pairs resemble each other.
        seed: Of the bootstrap.

    Returns:
        Dimensions `site` and `pair`. `estimate[site, pair]`, the estimated change of the metric, in its unit;
        `clean[pair]`, `corrupt[pair]`; `change[site]`, its mean over pairs; `effect[site]`, the normalised recovery
        mean(estimate) / mean(source - base), on `activation_patching`'s scale; each with `_low` and `_high`, 95 %
        bootstrap over pairs; `tiny_denominator[pair]`. With `dropout`, `magnitude[site, pair]`: the mean of the
        estimate's absolute value over gradients with one layer's contribution dropped. With `n_steps`,
        `completeness_error[site, pair]`: the estimates of the site's whole point, summed, less its exact patch. With
        `exact` or `certificate`, `patched[site, pair]` and `remainder` = patched - base - estimate. With `certificate`,
        `certified[site, pair]`, and the attribute `certified_share`.

    Raises:
        ObservationError: Clean and corrupt do not pair up.
        SiteError: A site does not fit the policy, or has no gradient.
        MetricError: The metric does not fit the policy, or has no gradient.
        EngineError: The policy couples the rows of a batch, or runs on the eager engine, where there are neither
            repairs (by default none then) nor steps nor a certificate.
        ConfigError: Options that do not go together.

    Source:
        Nanda 2023, *Attribution patching*; Kramár et al. 2024, arXiv 2403.00745; Sundararajan et al. 2017, arXiv
        1703.01365; Hanna et al. 2024, arXiv 2403.17806. The certificate is derived in
        `rlmech.attribution.gates`.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.attribution.first_order import attribution_patching
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> clean, corrupt = torch.rand(16, 4), torch.rand(16, 4)
        >>> result = attribution_patching(policy, clean=clean, corrupt=corrupt, certificate=True)
        >>> dict(result.sizes), result.attrs["certified_share"]  # nothing but a linear layer is behind a hidden unit
        ({'site': 8, 'pair': 16}, 1.0)
    """
    policy = policy.fitting(clean)
    wanted = _checked_options(direction, n_steps=n_steps, repairs=repairs, certificate=certificate)
    chosen = choose_sites(policy, sites, metric=metric)
    refuse_discrete(policy, chosen)
    base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    if policy.engine == "eager" and not (n_steps or repairs or certificate):
        bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
        refuse_undifferentiable(bound)
        refuse_unfit(policy)
        wanted = ()
        found = estimate_eagerly(policy, chosen, base=base, source=source, metric=bound)
    else:
        estimator = Estimator.start(
            policy, chosen, clean=clean, corrupt=corrupt, metric=metric, direction=direction, repairs=wanted
        )
        bound = estimator.metric
        found = estimator.integrated(n_steps) if n_steps else estimator.at_base(wanted, certificate=certificate)
    if exact and not certificate:
        patching = activation_patching(
            policy, clean=clean, corrupt=corrupt, sites=chosen, metric=metric, direction=direction, seed=seed
        )
        found["patched"] = patching["patched"].to_numpy()
    assert bound.corrupt is not None  # noqa: S101  # pairs have both runs
    start = (bound.corrupt if direction == "denoise" else bound.clean).double().cpu().numpy()
    estimate = found.pop("estimate")
    if "patched" in found:
        found["remainder"] = found["patched"] - start - estimate
    attrs: Variables = {
        "sign": "estimate positive: the patch raises the metric; effect 1: it does all that exchanging the input does",
        "order": "first order at the base run" if not n_steps else "path integral of each point, midpoint rule",
        "n_steps": n_steps,
        "repairs": ", ".join(wanted) or "none",
    }
    if certificate:
        attrs["certified_share"] = float(found["certified"].mean())
    units = {name: {} if name == "certified" else {"units": bound.unit} for name in found}
    return patching_result(
        policy,
        chosen,
        bound,
        patched=start + estimate,
        method=f"attribution patching, integrated over {n_steps} steps" if n_steps else "attribution patching",
        direction=direction,
        clusters=clusters,
        seed=seed,
        estimate=estimate,
        more={name: (("site", "pair"), value, units[name]) for name, value in found.items()},
        more_attrs=attrs,
    )


def _checked_options(
    direction: str, *, n_steps: int, repairs: Sequence[Repair] | None, certificate: bool
) -> tuple[Repair, ...]:
    if direction not in ("denoise", "noise"):
        raise unknown_choice("direction", direction, ("denoise", "noise"))
    default: tuple[Repair, ...] = () if n_steps else ("softmax",)
    wanted = default if repairs is None else tuple(repairs)
    for repair in wanted:
        if repair not in get_args(Repair):
            raise unknown_choice("repair", repair, get_args(Repair))
    if n_steps < 0:
        raise ConfigError("The number of steps is negative.", given=n_steps, expected="0 or more", fix="n_steps=0")
    if n_steps and (wanted or certificate):
        raise ConfigError(
            "Repairs and the certificate are for the gradient at the base run, not for an integrated one.",
            given=f"n_steps={n_steps}, repairs={wanted}, certificate={certificate}",
            expected="n_steps=0, or neither repairs nor a certificate",
            fix="leave out n_steps, or take exact=True to see what the integrated estimate misses",
        )
    return wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """What the estimates of all points share: both runs, and the base run's backward pass."""

    policy: HookedPolicy
    sites: Sequence[Site]
    metric: BoundMetric
    arrays: tuple[Tensor, ...]
    run: MeasuredRun
    source: dict[str, Tensor]
    """Value of each point in the source runs, in its node's own shape."""
    patterns: dict[str, Address]
    """The attention pattern behind each point that is repaired."""

    @classmethod
    def start(
        cls,
        policy: HookedPolicy,
        sites: Sequence[Site],
        *,
        clean: Observation,
        corrupt: Observation,
        metric: Metric | MetricFunction | None,
        direction: Direction,
        repairs: Sequence[Repair],
    ) -> Estimator:
        """Run both, keeping what the backward pass needs, and bind the metric to them.

        Raises:
            ObservationError: Clean and corrupt do not pair up.
            MetricError: The metric does not fit the policy, or has no gradient.
            EngineError: Rows are coupled, or something is attached, or there is no graph.
        """
        measure = as_metric(metric or default_metric(policy.output_kind))
        both = coerce_pairs(policy, clean=clean, corrupt=corrupt)
        refuse_undifferentiable(measure)
        check_rows(policy, clean)
        arrays, others = both[::-1] if direction == "denoise" else both
        names = list(dict.fromkeys(site.name for site in sites))
        nodes = [policy.points[name].address.node for name in names]
        ends = [address.node for address in output_addresses(policy)]
        before = nodes_before_patterns(policy) if "softmax" in repairs else {}
        patterns = {name: before[node] for name, node in zip(names, nodes, strict=True) if node in before}
        kept = [*nodes, *(pattern.node for pattern in patterns.values()), *ends]
        kept += droppable_nodes(policy) if "dropout" in repairs else ()
        values, outputs = differentiable_run(policy, arrays, nodes=kept)
        with torch.no_grad():
            found = policy.graph_engine.program(returned=[*nodes, *ends])(others, (), ())
        plainly = not any(other.triggers & set(kept) for other in policy.graph_engine.graph.alternatives.values())
        if plainly and distinct_rows(arrays) is None and distinct_rows(others) is None:
            base, source = outputs_at(policy, outputs), outputs_at(policy, found[len(nodes) :])
            runs = (source, base) if direction == "denoise" else (base, source)
            bound = bind(measure, policy, clean=runs[0], corrupt=runs[1])
        else:  # equal observations have equal baselines, wherever they stand and however a hooked run is computed
            bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=measure)
        return cls(
            policy=policy,
            sites=sites,
            metric=bound,
            arrays=arrays,
            run=measured_run(policy, values, outputs, bound),
            source=dict(zip(names, found, strict=False)),  # the outputs stand last, without a name
            patterns=patterns,
        )

    def at_base(self, repairs: Sequence[Repair], *, certificate: bool) -> dict[str, np.ndarray]:
        """Estimates from the gradient at the base run."""
        extra = (["magnitude"] if "dropout" in repairs else []) + (["patched", "certified"] if certificate else [])
        found = self._empty("estimate", *extra)
        nodes = [self.policy.points[name].address.node for name in self.source]
        gradients = self.run.gradients([*nodes, *(pattern.node for pattern in self.patterns.values())])
        for name in self.source:
            places, here = sites_at(self.sites, name)
            layout, node = self.policy.points[name].address.layout, self.policy.points[name].address.node
            base, source = layout.show(self.run.values[node].detach()), layout.show(self.source[name])
            pattern = self.patterns.get(name)
            if pattern is None:
                slope = layout.show(gradients[node])
                point = self.policy.hook_dict[name]
                found["estimate"][places] = first_order_change(point, here, base=base, source=source, slope=slope)
            else:
                found["estimate"][places] = softmax_repaired(
                    self.policy, here, pattern=pattern, gradient=gradients[pattern.node], arrays=self.arrays,
                    base=base, source=source,
                ).double().cpu()  # fmt: skip
            if "dropout" in repairs:
                change = finite_change(base, source, name=name)
                magnitude = dropout_magnitude(self.policy, self.run, here, delta=change)
                found["magnitude"][places] = magnitude.double().cpu()
            if certificate:
                checked = certify(
                    self.policy, here, run=self.run, metric=self.metric, arrays=self.arrays, base=base, source=source,
                    exact_until=None if pattern is None else pattern.node,
                )  # fmt: skip
                found["patched"][places] = checked.patched.double().cpu()
                found["certified"][places] = checked.certified.cpu()
        return found

    def integrated(self, n_steps: int) -> dict[str, np.ndarray]:
        """Estimates from the gradient averaged along each point's own line."""
        found = self._empty("estimate", "completeness_error")
        ends = [address.node for address in output_addresses(self.policy)]
        for name, source in self.source.items():
            places, here = sites_at(self.sites, name)
            address = self.policy.points[name].address
            onwards = Continuation.start(self.policy.graph_engine, address.node, returned=ends, arrays=self.arrays)
            base = self.run.values[address.node].detach()
            change = finite_change(base, source, name=name)
            slope = integrated_gradient(
                self.policy, onwards, base=base, change=change, metric=self.metric, n_steps=n_steps
            )
            product = address.layout.show(change * slope)
            found["estimate"][places] = sum_over_sites(product, here, self.policy.hook_dict[name]).double().cpu()
            with torch.no_grad():
                whole = measure_outputs(self.policy, onwards.run(source), self.metric) - self.run.measured
            found["completeness_error"][places] = (row_sums(product) - whole).double().cpu()
        return found

    def _empty(self, *names: str) -> dict[str, np.ndarray]:
        shape = (len(self.sites), self.arrays[0].shape[0])
        return {name: np.zeros(shape, dtype=bool if name == "certified" else np.float64) for name in names}
