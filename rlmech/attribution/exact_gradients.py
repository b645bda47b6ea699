"""Integrated gradients without a grid: the linear pieces between a baseline and an observation, one gradient each.

    attribution = (x - x') sum_pieces (t_k+1 - t_k) grad f(x' + (t_k + t_k+1) / 2 (x - x'))

`line_pieces` finds the pieces. Cost: a pass to each layer of gates, and one gradient for each piece, of which there are
about as many as gates that turn.
"""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor

from rlmech.arguments import explain_misuse
from rlmech.attribution.baselines import baseline_arrays
from rlmech.attribution.line_pieces import Line
from rlmech.attribution.readouts import array, made_by, observed_arrays, readouts
from rlmech.circuits.labels import score_units
from rlmech.core.masked import less, weighed
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError
from rlmech.results import storable

_ROWS_AT_ONCE = 32


@explain_misuse
def exact_integrated_gradients(
    policy: HookedPolicy,
    obs: Observation,
    *,
    baseline: Observation,
    better: int | str | None = None,
    worse: int | str | None = None,
    tolerance: float = 1e-6,
) -> xr.Dataset:
    """Integrated gradients of action scores, or of a gap, from a baseline to each observation.

    Exact, to rounding, for piecewise linear policies: every piece of the line is found. With attention the pattern
    moves along the line, and so do curves such as tanh; nothing is frozen. Pieces are then integrated by Gauss-Legendre
    rules and halved until these agree to the tolerance, and `completeness_error` says how well that went.

    Args:
        policy: A policy whose layers are linear, gated or curved, with attention or without.
        obs: A batch of observations.
        baseline: Where the line starts: as many rows, or one row for all, with the same entities present.
        better: One action, by name or number; None for all of them.
        worse: The score of `better` less that of this one.
        tolerance: Where there is attention or a curve, the error that is aimed at, of the summed sizes of a line's
            attributions; rounding in the policy's precision can keep it from being reached.

    Returns:
        In the unit of the scores, `attribution[batch, action, ...observation axes]` (`attribution_<key>` for each array
        of a dict observation), positive where the observation's value instead of the baseline's raises the score;
        `total[batch, action]`, the score less the baseline's; `completeness_error[batch, action]`, the attributions'
        sum less `total`, to which a jump on the way (a threshold, a comparison) belongs; `n_pieces[batch]`. The
        attribute `kind` is `affine` where pieces are linear, else `curved`, with `quadrature_error`, the largest
        difference between the two rules, summed over a line.

    Raises:
        ConfigError: The tolerance is not positive.
        ObservationError: The baseline has other entities present, or another number of rows.
        EngineError: The policy runs on the eager engine, or something on the way bends that is no curve of each number.
        AttentionError: A softmax is on the way that belongs to no verified attention block.
        MetricError: No such action.

    Source:
        Sundararajan, Taly and Yan 2017, *Axiomatic Attribution for Deep Networks*, arXiv 1703.01365, section 3.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.attribution.exact_gradients import exact_integrated_gradients
        >>> policy = rlm.load("zoo:highway-dqn-mlp")
        >>> obs = torch.rand(2, *policy.hook_dict["hook_obs"].shape[1:])
        >>> baseline = obs.clone()
        >>> baseline[..., 1:] = 0  # the same vehicles, all at the origin
        >>> found = exact_integrated_gradients(policy, obs, baseline=baseline, better="FASTER", worse="IDLE")
        >>> bool(abs(found.completeness_error).max() < 1e-4)
        True
    """
    policy = policy.fitting(obs)
    if not tolerance > 0:
        raise ConfigError(
            "A tolerance is positive.", given=tolerance, expected="a small number, e.g. 1e-6", fix="tolerance=1e-6"
        )
    line = Line.of(policy)
    rows, arrays = readouts(policy, better=better, worse=worse), policy.coerce(obs)
    start = baseline_arrays(policy, obs, baseline)
    dtype = rows.weights.dtype
    arrays, start = (tuple(v if v.is_floating_point() else v.to(dtype) for v in each) for each in (arrays, start))
    attributions: list[list[Tensor]] = [[] for _ in arrays]
    counts: list[Tensor] = []
    errors: list[Tensor] = []
    for first in range(0, max(1, len(arrays[0])), _ROWS_AT_ONCE):
        base, ends = (tuple(v[first : first + _ROWS_AT_ONCE] for v in each) for each in (start, arrays))
        found = line.integrate(base, ends, rows, tolerance)
        counts.append(found.n_pieces)
        errors.append(found.error)
        for collected, part in zip(attributions, found.attributions, strict=True):
            collected.append(part)
    with torch.no_grad():
        total = weighed(less(line.scores(arrays), line.scores(start)), rows.weights)
    unit, lead = score_units(policy), ("batch", "action")
    summed = -total
    data = {"total": array(total, lead, units=unit), "n_pieces": ("batch", torch.cat(counts).cpu().numpy())}
    coords: dict[str, object] = {"action": list(rows.names)}
    for observed, collected in zip(observed_arrays(policy), attributions, strict=True):
        values = torch.cat(collected)
        summed = summed + values.flatten(2).sum(2)
        data[observed.named("attribution")] = array(values, (*lead, *observed.dims), units=unit)
        coords |= observed.coords
    data["completeness_error"] = array(summed, lead, units=unit)
    attrs = made_by(
        policy,
        "integrated gradients",
        rule="exact: piecewise linear" if line.linear else "Gauss-Legendre in pieces, halved until it agrees",
        kind="affine" if line.linear else "curved",
        largest_completeness_error=_largest(summed),
    )
    if not line.linear:
        attrs |= {"tolerance": tolerance, "quadrature_error": _largest(torch.cat(errors))}
    return storable(xr.Dataset(data, coords=coords), attrs | {"sign": "positive raises the score"})


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
