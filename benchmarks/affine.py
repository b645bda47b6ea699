"""Exact decompositions against the usual ways to the same numbers, and against forward passes; one thread.

The affine maps beside `vmap(jacrev)`, the attribution to entities, heads and features, and integrated gradients beside
captum's quadrature of 1,000 steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import rlmech as rlm
from benchmarks.clock import interleave, ratios
from benchmarks.networks import observations, raw_network
from rlmech.attribution.action_terms import attribute_actions
from rlmech.attribution.affine import local_affine
from rlmech.attribution.exact_gradients import exact_integrated_gradients

N_OBSERVATIONS, N_LINES, N_STEPS = 4096, 64, 1000


def measure(*, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of the table: each decomposition in times of its reference, and the target it is to stay under."""
    raw, obs = raw_network("ego_attention"), observations("ego_attention", N_OBSERVATIONS)
    policy = rlm.HookedPolicy(raw, obs[:4])
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: raw(row[None])[0]))
    whole = {
        "forward": lambda: _without_gradient(policy, obs),
        "local_affine": lambda: local_affine(policy, obs),
        "attribute_actions": lambda: attribute_actions(policy, obs),
        "vmap(jacrev)": lambda: jacobians(obs),
    }
    yield from _rows(whole, reference="forward", targets={"local_affine": 5, "attribute_actions": 20}, rounds=rounds)
    two = {name: whole[name] for name in ("vmap(jacrev)", "local_affine")}
    yield from _rows(two, reference="vmap(jacrev)", targets={"local_affine": 1 / 3}, rounds=rounds)
    yield from _integrated(rounds=rounds)


def _integrated(*, rounds: int) -> Iterator[dict[str, Any]]:
    from captum.attr import IntegratedGradients

    raw, obs = raw_network("mlp"), observations("mlp", N_LINES)
    policy, baseline = rlm.HookedPolicy(raw, obs[:4]), torch.zeros(1, obs.shape[1])
    captum, name = IntegratedGradients(raw), f"captum, {N_STEPS} steps"
    options = {"target": 0, "n_steps": N_STEPS, "method": "riemann_middle", "internal_batch_size": 512}
    found = exact_integrated_gradients(policy, obs, baseline=baseline, better=0)
    quadrature = captum.attribute(obs, baseline, **options).detach()
    calls = {
        name: lambda: captum.attribute(obs, baseline, **options),
        "exact": lambda: exact_integrated_gradients(policy, obs, baseline=baseline, better=0),
    }
    errors = {
        name: float((quadrature.sum(1) - torch.from_numpy(found.total.values[:, 0])).abs().max()),
        "exact": found.attrs["largest_completeness_error"],
    }
    for row in _rows(calls, reference=name, targets={"exact": 1 / 10}, rounds=rounds):
        yield row | {"completeness_error": errors[row["method"]]}


def _rows(
    calls: dict[str, Callable[[], object]], *, reference: str, targets: dict[str, float], rounds: int
) -> Iterator[dict[str, Any]]:
    for method, ratio in ratios(interleave(calls, rounds=rounds), reference=reference).items():
        yield {
            "method": method,
            "reference": reference,
            "ratio": ratio.median,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "microseconds": ratio.microseconds,
            "target": targets.get(method),
        }


def _without_gradient(policy: rlm.HookedPolicy, obs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return policy(obs)
