"""Optimal ablation: the constant for each site that hurts the policy least, so that what remains is the site's doing.

    constant = argmin over c of mean over runs of loss(policy with the site set to c)

Zero and mean ablation also add what the network makes of an unusual value; the optimal constant adds the least of it.
Adam from the mean, through the part of the network behind the site, keeping the best: never worse than the mean, not
proved to be the global minimum. Cost: `n_steps` forward and backward passes behind each site, over all runs.
Source: Li and Janson 2024, *Optimal ablation for interpretability*, arXiv 2409.09951.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.core.edit import Edit
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.program import Address
from rlmech.core.site import Site
from rlmech.errors import ConfigError, ObservationError
from rlmech.gradients.at_nodes import (
    measure_outputs,
    output_addresses,
    refuse_discrete,
    refuse_undifferentiable,
)
from rlmech.gradients.downstream import Continuation
from rlmech.metrics.measure import SCORE_UNITS, BoundMetric, Metric, MetricContext, MetricFunction, RowFunction, bind
from rlmech.metrics.score_metrics import policy_kl
from rlmech.patching.sites import Sites, choose_sites
from rlmech.patching.sweeps.independence import check_rows
from rlmech.patching.sweeps.sweep import outputs_of

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimalConstants:
    """One constant for each site, in the shape of its whole hook point; beyond the site it holds the mean.

    Attributes:
        sites: The sites, in order.
        values: By site, `[1, ...]`, the point's canonical axes.
        loss: Mean loss with the site set to its constant, per site.
        mean_loss: The same for the mean over the runs, where the search began; `loss` is never above it.
        loss_name: What was minimised.
        loss_unit: Its unit.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> from rlmech.patching import optimal_constants
        >>> site = rlm.Site("1.hook_out", neuron=0)
        >>> constants = optimal_constants(policy, torch.rand(32, 4), sites=[site], n_steps=20)
        >>> with policy.edited(constants.edit(site)):
        ...     policy(torch.rand(3, 4)).shape
        torch.Size([3, 2])
    """

    sites: tuple[Site, ...]
    values: Mapping[Site, Tensor]
    loss: Float[np.ndarray, " site"]
    mean_loss: Float[np.ndarray, " site"]
    loss_name: str
    loss_unit: str

    def edit(self, site: Site) -> Edit:
        """The ablation of a site, for `policy.edited`."""
        return Edit(site=site, kind="mean", value=self.values[site])


@explain_misuse
def optimal_constants(
    policy: HookedPolicy,
    obs: Observation,
    *,
    sites: Sites = "auto",
    loss: Metric | MetricFunction | None = None,
    n_steps: int = 200,
    learning_rate: float = 0.05,
) -> OptimalConstants:
    """Train, for each site, the constant that changes the policy's outputs least.

    Args:
        policy: The policy.
        obs: The runs over which the loss is averaged, at least one.
        sites: `auto`, a hook name or glob, or a list of sites; each is ablated alone.
        loss: A differentiable metric, the smaller the better, bound to the unedited runs. None: KL divergence from the
            unedited policy for logits, else the squared change of the scores, averaged over actions. For Q-values,
            `policy_kl(temperature=...)` weighs what decides.
        n_steps: Of Adam.
        learning_rate: Its step, in standard deviations of each element; falls to zero along a cosine.

    Returns:
        The constants with their losses, and the mean's.

    Raises:
        SiteError: A site does not fit the policy, or holds no real numbers.
        MetricError: The loss does not fit the policy, or has no gradient.
        ObservationError: There is no run.
        ConfigError: No steps, or a learning rate that is not positive.
        EngineError: The policy runs on the eager engine, or couples the rows of a batch.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.patching.optimal import optimal_constants
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> found = optimal_constants(policy, torch.randn(64, 4), sites="0.hook_out", n_steps=50)
        >>> (site,) = found.sites
        >>> found.values[site].shape, bool(found.loss[0] <= found.mean_loss[0])
        (torch.Size([1, 8]), True)
    """
    policy = policy.fitting(obs)
    if n_steps < 1 or not learning_rate > 0:
        raise ConfigError(
            "A constant is trained in steps.",
            given=f"n_steps={n_steps}, learning_rate={learning_rate}",
            expected="at least one step, and a positive learning rate",
            fix="n_steps=200, learning_rate=0.05",
        )
    chosen = choose_sites(policy, sites, metric=loss)
    refuse_discrete(policy, chosen)
    engine, arrays = policy.graph_engine, policy.coerce(obs)
    if arrays[0].shape[0] == 0:
        raise ObservationError(
            "There is no run to keep unchanged.", given="0 rows", expected="at least 1", fix="give observations"
        )
    with torch.no_grad():
        check_rows(policy, obs)
    bound = bind(_default_loss(policy) if loss is None else loss, policy, clean=outputs_of(policy, obs))
    refuse_undifferentiable(bound)
    values: dict[Site, Tensor] = {}
    losses: dict[Site, tuple[float, float]] = {}
    ends = [end.node for end in output_addresses(policy)]
    for name in dict.fromkeys(site.name for site in chosen):
        address = policy.points[name].address
        with torch.no_grad():
            base = address.layout.show(engine.program(returned=(address.node,))(arrays, (), ())[0])
        onwards = Continuation.start(engine, address.node, returned=ends, arrays=arrays)
        for some in _stacks([site for site in chosen if site.name == name], n_rows=len(base)):
            masks = torch.stack([site.mask(policy.point(name)) for site in some]).to(base.device)[:, None]
            search = _Search(policy=policy, onwards=onwards, address=address, base=base, masks=masks, loss=bound)
            constants, first, best = search.run(n_steps=n_steps, learning_rate=learning_rate)
            for i, site in enumerate(some):
                values[site], losses[site] = constants[i], (float(first[i]), float(best[i]))
    return OptimalConstants(
        sites=tuple(chosen),
        values=values,
        loss=np.array([losses[site][1] for site in chosen]),
        mean_loss=np.array([losses[site][0] for site in chosen]),
        loss_name=bound.name,
        loss_unit=bound.unit,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """The search for the constants of some sites of one point; sites share passes and nothing else."""

    policy: HookedPolicy
    onwards: Continuation
    address: Address
    base: Tensor
    masks: Tensor
    """`[site 1 ...]`: what each site selects."""
    loss: BoundMetric

    def run(self, *, n_steps: int, learning_rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """The constants `[site 1 ...]`, and the losses per site of the mean and of the constant."""
        n_sites = len(self.masks)
        wide = torch.promote_types(self.base.dtype, torch.float32)  # in 16 bits the optimiser's own numbers vanish
        mean = self.base.to(wide).mean(0, keepdim=True)
        spread = self.base.to(wide).std(0, correction=0, keepdim=True)
        unit = torch.where(spread > 0, spread, 1)  # also where a masked score is -inf, and stays so
        moved = torch.zeros(n_sites, *mean.shape, dtype=mean.dtype, device=mean.device, requires_grad=True)
        optimiser = torch.optim.Adam([moved], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
        first = best = torch.full((n_sites,), torch.inf, dtype=mean.dtype, device=mean.device)
        mean_here = mean.to(self.base.dtype)
        constants = mean_here.expand(n_sites, *mean.shape).clone()
        for step in range(n_steps + 1):
            with torch.enable_grad():
                candidates = (mean + moved * unit).to(self.base.dtype)
                losses = self._losses(candidates).to(wide)
                total = losses.sum()
            first = losses.detach() if step == 0 else first
            better = losses.detach() < best
            best = torch.where(better, losses.detach(), best)
            constants[better] = candidates.detach()[better]
            if step < n_steps and total.requires_grad:
                (moved.grad,) = torch.autograd.grad(total, moved, materialize_grads=True)
                optimiser.step()
                schedule.step()
        return torch.where(self.masks, constants, mean_here), first, best

    def _losses(self, constants: Tensor) -> Float[Tensor, " site"]:
        ablated = torch.where(self.masks, constants, self.base[None]).flatten(0, 1)
        rows = torch.arange(len(self.base), device=self.base.device).repeat(len(self.masks))
        outputs = self.onwards.run(self.address.layout.restore(ablated), rows)
        return measure_outputs(self.policy, outputs, self.loss, pair=rows).reshape(len(self.masks), -1).mean(1)


def _stacks(sites: Sequence[Site], *, n_rows: int) -> Iterator[Sequence[Site]]:
    at_once = max(1, _ROWS_AT_ONCE // n_rows)
    for start in range(0, len(sites), at_once):
        yield sites[start : start + at_once]


def _default_loss(policy: HookedPolicy) -> Metric:
    if policy.output_kind == "logits":
        return policy_kl()

    def prepare(context: MetricContext) -> RowFunction:
        return lambda outputs, pair: (outputs.scores - context.clean.scores[pair]).square().mean(-1)

    unit = f"{SCORE_UNITS.get(policy.output_kind, 'score')}^2"
    return Metric(name="squared score change", unit=unit, prepare=prepare)
